//! Why TLS was not agreed on with a server, in words that tell a person what to do.

use std::io;

use tokio_rustls::rustls::{CertificateError, Error, InvalidMessage};

/// Most names of a certificate that are repeated.
const NAMES_MAX: usize = 5;

/// Why TLS was not agreed on with a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Nobody who is trusted here has signed its certificate.
    #[error("its certificate is of an authority that is not trusted here")]
    Authority,
    /// Its certificate is that of an authority, which rustls takes from no server.
    #[error(
        "its certificate is an authority's own, which no server may show; it needs one that the authority has signed"
    )]
    AuthoritysOwn,
    /// Its certificate is for others.
    #[error(
        "its certificate is not for this name but for {0}; use one of these, or have one made for it"
    )]
    Name(String),
    /// Its certificate was good.
    #[error("its certificate has expired; it needs a new one, or the clock here is wrong")]
    Expired,
    /// Its certificate will be good.
    #[error("its certificate is not valid yet; its clock or the one here is wrong")]
    NotYet,
    /// What it said is no TLS.
    #[error("it speaks no TLS; use http://, or have it speak TLS")]
    Plain,
    /// It ended the connection before both agreed.
    #[error("it broke the connection off while TLS was agreed on; does it speak TLS?")]
    BrokenOff,
    /// Anything else, in the words of rustls.
    #[error("TLS was not agreed on: {0}")]
    Other(String),
}

impl Trouble {
    /// What an error of connecting by TLS says of TLS; `None` if it is about something else.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<Self> {
        let Some(source) = error.get_ref() else {
            return (error.kind() == io::ErrorKind::UnexpectedEof).then_some(Self::BrokenOff);
        };
        match source.downcast_ref::<Error>() {
            Some(error) => Some(Self::of_rustls(error)),
            None => (error.kind() == io::ErrorKind::UnexpectedEof).then_some(Self::BrokenOff),
        }
    }

    /// What another authority might mend: a caller knows where it is named.
    #[must_use]
    pub fn is_of_authority(&self) -> bool {
        matches!(self, Self::Authority)
    }

    fn of_rustls(error: &Error) -> Self {
        use CertificateError as Wrong;
        let Error::InvalidCertificate(wrong) = error else {
            return if *error == Error::InvalidMessage(InvalidMessage::InvalidContentType) {
                Self::Plain
            } else {
                Self::Other(error.to_string())
            };
        };
        // A signature is also wrong where another authority bears the name of the right one.
        if matches!(wrong, Wrong::UnknownIssuer | Wrong::BadSignature) {
            return Self::Authority;
        }
        if matches!(wrong, Wrong::Expired | Wrong::ExpiredContext { .. }) {
            return Self::Expired;
        }
        if matches!(wrong, Wrong::NotValidYet | Wrong::NotValidYetContext { .. }) {
            return Self::NotYet;
        }
        if let Wrong::NotValidForNameContext { presented, .. } = wrong {
            return Self::Name(names(presented));
        }
        // The library that rustls verifies with is not ours to name types of.
        if let Wrong::Other(other) = wrong
            && other.to_string() == "CaUsedAsEndEntity"
        {
            return Self::AuthoritysOwn;
        }
        Self::Other(error.to_string())
    }
}

/// The names of a certificate, as people write them.
fn names(presented: &[String]) -> String {
    let shown: Vec<String> = presented
        .iter()
        .take(NAMES_MAX)
        .map(|name| bare(name).to_owned())
        .collect();
    match shown.len() {
        0 => "no name at all".to_owned(),
        some if some < presented.len() => format!("{}, …", shown.join(", ")),
        _ => shown.join(", "),
    }
}

/// A name out of what rustls makes of it, such as `DnsName("c.test")`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, rest)| rest);
    inner.trim_end_matches(')').trim_matches('"')
}

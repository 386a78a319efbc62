//! What GitLab sends us: whether it is from GitLab, and what it hints at. Pure.
//!
//! Two ways to prove it (docs.gitlab.com/user/project/integrations/webhooks): a secret token, sent in the clear as
//! `X-Gitlab-Token`, or a signing token, by Standard Webhooks (standardwebhooks.com). Both are checked in constant time, the
//! signature over the raw bytes, before anything is parsed; and whatever the head alone gives away, before the body is read. A hook is a hint and no more: whoever acts on it reads the
//! state back first.

mod dedupe;
mod hint;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use ring::hmac;
use rollout::Timestamp;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

pub use dedupe::Seen;
pub use hint::{Hint, hint};

/// Longest body: GitLab sends at most 25 MB.
pub const BODY_BYTES_MAX: usize = 25 << 20;

/// How far the time in a signed request may be from ours, in seconds (Standard Webhooks, "Verifying the timestamp").
pub const TOLERANCE_SECONDS: i64 = 300;

/// Longest id of a delivery, in bytes. GitLab's are UUIDs.
const ID_BYTES_MAX: usize = 255;

/// Most signatures in one header: there are two while a token is being replaced.
const SIGNATURES_MAX: usize = 16;

/// Longest header that is read, in bytes: sixteen signatures of 48 characters.
const HEADER_BYTES_MAX: usize = 1_024;

/// Fewest bytes of a signing key. GitLab makes 32; less than 24 is none by Standard Webhooks.
const KEY_BYTES_MIN: usize = 24;

/// Why a delivery is not GitLab's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// A signing token is configured, and a header that it needs is not there, or is there more than once.
    #[error(
        "{0} is missing, or there more than once: the hook needs the signing token that this controller has"
    )]
    Header(&'static str),
    /// A header is not as it should be.
    #[error("{0} is not as Standard Webhooks has it")]
    Malformed(&'static str),
    /// The time is too far from ours.
    #[error(
        "webhook-timestamp is more than {TOLERANCE_SECONDS} s from our time: a delivery that was kept, or a clock that is wrong"
    )]
    Stale,
    /// No signature fits.
    #[error(
        "no signature fits: the hook has another signing token, or the body was changed on its way"
    )]
    Signature,
    /// The secret token is not there, or is another one.
    #[error("X-Gitlab-Token is missing or another one: the hook has another secret token")]
    Token,
}

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing to compare with.
    #[error("it is empty")]
    Empty,
    /// No signing token of GitLab's.
    #[error(
        "expected a signing token as GitLab shows it: whsec_ and base64 of at least {KEY_BYTES_MIN} bytes"
    )]
    SigningToken,
}

/// What deliveries are checked with. Prints nothing.
#[derive(Clone, Default)]
pub struct Keys {
    secret: Option<[u8; 32]>,
    signing: Option<hmac::Key>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("secret", &self.secret.is_some())
            .field("signing", &self.signing.is_some())
            .finish()
    }
}

impl Keys {
    /// The keys of these texts, without the line's end that an editor leaves.
    ///
    /// # Errors
    /// One of them is none.
    pub fn new(secret: Option<&str>, signing: Option<&str>) -> Result<Self, KeyError> {
        let secret = match secret.map(|text| text.trim_end_matches(['\r', '\n'])) {
            Some("") => return Err(KeyError::Empty),
            Some(text) => Some(Sha256::digest(text.as_bytes()).into()),
            None => None,
        };
        let signing = signing.map(|text| signing_key(text.trim())).transpose()?;
        Ok(Self { secret, signing })
    }

    /// Whether there is none: then no delivery is GitLab's.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.secret.is_none() && self.signing.is_none()
    }

    /// Whether the head of a delivery may be one of GitLab's: everything that can be asked before its body is read, so that
    /// nobody else makes us read one. Every key that is configured must fit: a secret token does not stand for a missing
    /// signature.
    ///
    /// # Errors
    /// It is not; the words never hold a part of it.
    pub fn check_head(&self, headers: &HeaderMap, now: Timestamp) -> Result<(), Rejected> {
        if self.signing.is_some() {
            Signed::of(headers, now)?;
        }
        if let Some(secret) = &self.secret {
            // Hashes are of one length: the comparison says nothing of the token's own.
            let given = one(headers, "x-gitlab-token").unwrap_or_default();
            let given: [u8; 32] = Sha256::digest(given).into();
            if !bool::from(given.ct_eq(secret)) {
                return Err(Rejected::Token);
            }
        }
        if self.is_empty() {
            return Err(Rejected::Token);
        }
        Ok(())
    }

    /// Whether a delivery is GitLab's; the id by which one that comes again is known, if it has one.
    ///
    /// # Errors
    /// It is not; the words never hold a part of it.
    pub fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Option<String>, Rejected> {
        self.check_head(headers, now)?;
        if let Some(key) = &self.signing {
            return Signed::of(headers, now)?.verify(key, body).map(Some);
        }
        let id = one(headers, "idempotency-key").filter(|id| is_id(id));
        Ok(id.map(|id| String::from_utf8_lossy(id).into_owned()))
    }
}

fn signing_key(text: &str) -> Result<hmac::Key, KeyError> {
    if text.is_empty() {
        return Err(KeyError::Empty);
    }
    let encoded = text.strip_prefix("whsec_").ok_or(KeyError::SigningToken)?;
    let bytes = STANDARD
        .decode(encoded)
        .map_err(|_| KeyError::SigningToken)?;
    if bytes.len() < KEY_BYTES_MIN {
        return Err(KeyError::SigningToken);
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// The value of a header that is there once.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then(|| first.as_bytes())
}

fn is_id(id: &[u8]) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// What a delivery that is signed says before its body.
struct Signed<'a> {
    id: &'a [u8],
    time: &'a [u8],
    signatures: &'a [u8],
}

impl<'a> Signed<'a> {
    fn of(headers: &'a HeaderMap, now: Timestamp) -> Result<Self, Rejected> {
        let header = |name: &'static str| one(headers, name).ok_or(Rejected::Header(name));
        let id = header("webhook-id")?;
        if !is_id(id) {
            return Err(Rejected::Malformed("webhook-id"));
        }
        let time = header("webhook-timestamp")?;
        let seconds = seconds(time).ok_or(Rejected::Malformed("webhook-timestamp"))?;
        let signatures = header("webhook-signature")?;
        if signatures.len() > HEADER_BYTES_MAX {
            return Err(Rejected::Malformed("webhook-signature"));
        }
        if (now.as_second() - seconds).abs() > TOLERANCE_SECONDS {
            return Err(Rejected::Stale);
        }
        Ok(Self {
            id,
            time,
            signatures,
        })
    }

    /// Its id, if a signature fits.
    fn verify(&self, key: &hmac::Key, body: &[u8]) -> Result<String, Rejected> {
        // Part by part, and once for all signatures: a long body is neither copied nor read again for each of them.
        let mut content = hmac::Context::with_key(key);
        for part in [self.id, b".", self.time, b".", body] {
            content.update(part);
        }
        let expected = content.sign();
        // Every signature is checked, whichever fits: the time it takes says nothing.
        let fitting = self
            .signatures
            .split(|byte| *byte == b' ')
            .take(SIGNATURES_MAX)
            .filter_map(|signature| signature.strip_prefix(b"v1,"))
            .filter_map(|encoded| STANDARD.decode(encoded).ok())
            .filter(|tag| bool::from(tag.as_slice().ct_eq(expected.as_ref())))
            .count();
        if fitting == 0 {
            return Err(Rejected::Signature);
        }
        Ok(String::from_utf8_lossy(self.id).into_owned())
    }
}

/// Seconds since 1970, as GitLab writes them: digits alone.
fn seconds(text: &[u8]) -> Option<i64> {
    /// Until the year 33658.
    const DIGITS_MAX: usize = 12;
    let fits = (1..=DIGITS_MAX).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text)
        .ok()
        .filter(|_| fits)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests;

//! Where an engine is: a socket on this machine, TCP with TLS, or a machine that ssh leads to.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The engine of this machine, as its packages set it up.
pub const DEFAULT_ENGINE: &str = "unix:///var/run/docker.sock";

/// The port of an engine that speaks TLS, as Docker's own documentation has it.
const TLS_PORT: u16 = 2376;

/// The port of one that does not.
const PLAIN_PORT: u16 = 2375;

/// Where an engine listens, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineAddress {
    /// A socket on this machine.
    Unix(PathBuf),
    /// A port. Without certificates only on this machine: who reaches it is root there.
    Tcp {
        /// Name or address.
        host: String,
        /// Its port.
        port: u16,
        /// The folder of `ca.pem`, `cert.pem` and `key.pem`; `None` speaks no TLS.
        certificates: Option<PathBuf>,
    },
    /// What `ssh` leads to; `docker system dial-stdio` runs there.
    Ssh {
        /// `USER@HOST`, or a name of ssh's own configuration.
        destination: String,
        /// Where its sshd listens, if not where ssh expects it.
        port: Option<u16>,
    },
}

/// Why a text is no address of an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Of no kind that there is.
    #[error(
        "{0:?} is no address of an engine: expected unix:///PATH, tcp://HOST:PORT or ssh://USER@HOST"
    )]
    Unknown(String),
    /// Nobody is kept from it.
    #[error(
        "{0} is not on this machine and no certificates are given: whoever reaches that port rules the engine; set up TLS and name the folder of ca.pem, cert.pem and key.pem (DOCKER_CERT_PATH), or use ssh://"
    )]
    Open(String),
}

impl EngineAddress {
    /// Reads what `DOCKER_HOST` may hold.
    ///
    /// # Errors
    /// It is none of these, or an open port of another machine.
    pub fn parse(text: &str, certificates: Option<&Path>) -> Result<Self, AddressError> {
        let unknown = || AddressError::Unknown(text.to_owned());
        let (kind, rest) = text.split_once("://").ok_or_else(unknown)?;
        match kind {
            "unix" if rest.starts_with('/') => Ok(Self::Unix(rest.into())),
            "tcp" => {
                let default = if certificates.is_some() {
                    TLS_PORT
                } else {
                    PLAIN_PORT
                };
                let (host, port) = host_and_port(rest.trim_end_matches('/')).ok_or_else(unknown)?;
                let is_here =
                    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
                if certificates.is_none() && !is_here {
                    return Err(AddressError::Open(text.to_owned()));
                }
                Ok(Self::Tcp {
                    host,
                    port: port.unwrap_or(default),
                    certificates: certificates.map(Path::to_owned),
                })
            }
            "ssh" => {
                let (destination, port) =
                    host_and_port(rest.trim_end_matches('/')).ok_or_else(unknown)?;
                // It becomes an argument of ssh, and must not become an option.
                if destination.starts_with('-') || destination.contains(char::is_whitespace) {
                    return Err(unknown());
                }
                Ok(Self::Ssh { destination, port })
            }
            _ => Err(unknown()),
        }
    }
}

/// `HOST`, `HOST:PORT` or `[IPV6]:PORT`, without the brackets.
fn host_and_port(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port.parse().ok()?),
            None if rest.is_empty() => None,
            None => return None,
        };
        (host, port)
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        }
    };
    let is_host = !host.is_empty() && !host.contains('/');
    is_host.then(|| (host.to_owned(), port))
}

impl fmt::Display for EngineAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracketed = |host: &str| {
            if host.contains(':') {
                format!("[{host}]")
            } else {
                host.to_owned()
            }
        };
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port, .. } => write!(f, "tcp://{}:{port}", bracketed(host)),
            Self::Ssh { destination, port } => match port {
                Some(port) => write!(f, "ssh://{}:{port}", bracketed(destination)),
                None => write!(f, "ssh://{}", bracketed(destination)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_docker_host_may_hold() {
        let certificates = Path::new("/certificates");
        for (text, with, read) in [
            (DEFAULT_ENGINE, None, DEFAULT_ENGINE),
            ("tcp://127.0.0.1:2375", None, "tcp://127.0.0.1:2375"),
            ("tcp://localhost", None, "tcp://localhost:2375"),
            ("tcp://[::1]:99/", None, "tcp://[::1]:99"),
            ("tcp://manager", Some(certificates), "tcp://manager:2376"),
            ("ssh://deploy@manager", None, "ssh://deploy@manager"),
            ("ssh://manager:2222", None, "ssh://manager:2222"),
        ] {
            let address = EngineAddress::parse(text, with);
            assert_eq!(address.map(|address| address.to_string()), Ok(read.into()));
        }
    }

    #[test]
    fn refuses_what_is_no_engine_and_open_ports_elsewhere() {
        for text in [
            "",
            "/var/run/docker.sock",
            "unix://docker.sock",
            "http://127.0.0.1:2375",
            "tcp://:2375",
            "tcp://manager:port",
            "ssh://-oProxyCommand=x",
            "ssh://a b",
        ] {
            assert_eq!(
                EngineAddress::parse(text, None),
                Err(AddressError::Unknown(text.to_owned()))
            );
        }
        let open = EngineAddress::parse("tcp://10.1.2.3:2375", None);
        assert!(matches!(open, Err(AddressError::Open(_))), "{open:?}");
    }
}

//! Who may send uploads, and how many.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::HeaderMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::request::TokenHash;

/// Largest file of clients: 10,000 lines.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Longest name of a client.
const NAME_BYTES_MAX: usize = 64;

/// What one client may do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClientLimits {
    /// Uploads at once.
    pub at_once_max: usize,
    /// Uploads a second, in the long run.
    pub rate: f64,
    /// Uploads without a pause before the rate counts.
    pub burst: f64,
}

/// Why there are no clients.
#[derive(Debug, thiserror::Error)]
pub enum ClientsError {
    /// The file cannot be read.
    #[error("cannot read the file of clients {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not as it should be.
    #[error("{}:{line}: {reason}; expected NAME: SHA256 of the token, as `printf %s TOKEN | sha256sum` prints it, and perhaps \"off\"", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong. The line itself may hold a token by mistake and is not repeated.
        reason: &'static str,
    },
    /// There is no client in the file.
    #[error("{}: there is no client", path.display())]
    None {
        /// The file.
        path: PathBuf,
    },
}

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) name: String,
    token_hash: TokenHash,
    off: bool,
    at_once: Arc<Semaphore>,
    tokens: Mutex<Bucket>,
}

/// Uploads that may start now, and since when that is so.
#[derive(Debug)]
struct Bucket {
    uploads: f64,
    at: Instant,
}

/// Why a client may not send this.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// No token, or one that nobody has.
    Unknown,
    /// The client's line says off.
    Off,
    /// Too many at once or too often; when to come back.
    TooMany { retry_after: Duration },
}

/// All clients.
#[derive(Debug)]
pub(super) struct Clients {
    clients: Vec<Arc<Client>>,
    limits: ClientLimits,
}

impl Clients {
    /// Reads the file: a client in each line, `NAME: SHA256` in hexadecimal; `#` begins a comment.
    pub(super) fn read(path: &Path, limits: ClientLimits) -> Result<Self, ClientsError> {
        let failed = |source| ClientsError::Read {
            path: path.to_owned(),
            source,
        };
        if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
            return Err(failed(io::Error::other("it is larger than 1 MiB")));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let mut clients: Vec<Arc<Client>> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let wrong = |reason| ClientsError::Line {
                path: path.to_owned(),
                line: index + 1,
                reason,
            };
            let client = Client::read(line, limits).map_err(wrong)?;
            if clients.iter().any(|other| other.name == client.name) {
                return Err(wrong("this name is there already"));
            }
            clients.push(Arc::new(client));
        }
        if clients.is_empty() {
            let path = path.to_owned();
            return Err(ClientsError::None { path });
        }
        Ok(Self { clients, limits })
    }

    /// Whose token this is. Takes as long whoever it is, and however much of a token is right.
    pub(super) fn who(&self, headers: &HeaderMap) -> Result<Arc<Client>, Denied> {
        let hash = TokenHash::of_bearer(headers).ok_or(Denied::Unknown)?;
        let mut found = None;
        for client in &self.clients {
            if client.token_hash.is(&hash) {
                found = Some(client);
            }
        }
        let client = found.ok_or(Denied::Unknown)?;
        if client.off {
            return Err(Denied::Off);
        }
        Ok(client.clone())
    }

    /// Lets one upload of the client in, for as long as the permit lives.
    pub(super) fn admit(&self, client: &Client) -> Result<OwnedSemaphorePermit, Denied> {
        let Ok(permit) = client.at_once.clone().try_acquire_owned() else {
            let retry_after = Duration::from_secs(1);
            return Err(Denied::TooMany { retry_after });
        };
        let mut bucket = client.tokens.lock().expect("nothing here panics");
        let now = Instant::now();
        let refilled = (now - bucket.at).as_secs_f64() * self.limits.rate;
        bucket.uploads = (bucket.uploads + refilled).min(self.limits.burst);
        bucket.at = now;
        if bucket.uploads < 1.0 {
            let wait = (1.0 - bucket.uploads) / self.limits.rate;
            let retry_after = Duration::from_secs_f64(wait);
            return Err(Denied::TooMany { retry_after });
        }
        bucket.uploads -= 1.0;
        Ok(permit)
    }
}

impl Client {
    fn read(line: &str, limits: ClientLimits) -> Result<Self, &'static str> {
        let (name, rest) = line.split_once(':').ok_or("there is no colon")?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_name) {
            return Err("the name is not 1 to 64 letters, digits, '-', '_' or '.'");
        }
        let mut words = rest.split_whitespace();
        let hash = words.next().and_then(TokenHash::from_hex);
        let hash = hash.ok_or("there is no SHA-256")?;
        let off = match words.next() {
            None => false,
            Some("off") => true,
            Some(_) => return Err("there is another word than \"off\" after the SHA-256"),
        };
        Ok(Self {
            name: name.to_owned(),
            token_hash: hash,
            off,
            at_once: Arc::new(Semaphore::new(limits.at_once_max)),
            tokens: Mutex::new(Bucket {
                uploads: limits.burst,
                at: Instant::now(),
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header::AUTHORIZATION;

    use super::*;

    const LIMITS: ClientLimits = ClientLimits {
        at_once_max: 1,
        rate: 1.0,
        burst: 2.0,
    };

    /// `printf %s secret | sha256sum`
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn read(text: &str) -> Result<Clients, ClientsError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Clients::read(file.path(), LIMITS)
    }

    fn who(clients: &Clients, authorization: &str) -> Result<String, Denied> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        clients.who(&headers).map(|client| client.name.clone())
    }

    #[test]
    fn a_token_is_known_by_its_hash() {
        let off = SECRET.replace('2', "3");
        let clients = read(&format!(
            "# ours\nacme: {SECRET} # since May\n\nold: {off} off\n"
        ));
        let clients = clients.unwrap();
        assert_eq!(who(&clients, "Bearer secret"), Ok("acme".to_owned()));
        assert_eq!(who(&clients, "bearer secret"), Ok("acme".to_owned()));
        for wrong in ["Bearer secre", "Bearer ", "Basic secret", "secret", SECRET] {
            assert_eq!(who(&clients, wrong), Err(Denied::Unknown), "{wrong}");
        }
        let hash_as_token = format!("Bearer {SECRET}");
        assert_eq!(who(&clients, &hash_as_token), Err(Denied::Unknown));
        assert_eq!(clients.who(&HeaderMap::new()).unwrap_err(), Denied::Unknown);
    }

    #[test]
    fn a_wrong_line_is_named_and_not_repeated() {
        let twice = format!("a: {SECRET}\na: {SECRET}");
        for wrong in [
            "a: my-token",
            "a b: 1",
            "a",
            "a: é",
            &twice,
            &format!("a: {SECRET} on"),
        ] {
            let text = read(wrong).unwrap_err().to_string();
            assert!(text.contains(": ") && !text.contains("my-token"), "{text}");
        }
        assert!(matches!(read("# none\n"), Err(ClientsError::None { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_once_and_no_more_than_the_rate() {
        let clients = read(&format!("acme: {SECRET}")).unwrap();
        let acme = clients.clients[0].clone();
        let first = clients.admit(&acme).unwrap();
        let second = clients.admit(&acme);
        assert!(matches!(second, Err(Denied::TooMany { .. })), "at once");
        drop(first);
        drop(clients.admit(&acme).unwrap());
        let Err(Denied::TooMany { retry_after }) = clients.admit(&acme) else {
            panic!("the burst is used up");
        };
        tokio::time::sleep(retry_after).await;
        drop(clients.admit(&acme).unwrap());
    }
}

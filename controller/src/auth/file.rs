//! The file of `friday serve --tokens`: `NAME: ROLE HASH` on each line, read again when it changes and on SIGHUP.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rollout::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{Caller, Entry, Role, TokenHash, Tokens};
use crate::reconciler::chain;

/// Largest file: some 10,000 lines.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Longest name of a token, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 64;

/// Between two looks whether the file has changed: how long a token that was taken out of it is still good.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The file cannot be read.
    #[error("cannot read the tokens of {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not as it should be. It is not repeated: it may hold a token by mistake.
    #[error(
        "{path}:{line}: {reason}; expected NAME: ROLE HASH, as `friday token NAME --role ROLE` prints it",
        path = path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// Nobody could do anything.
    #[error(
        "{path} holds no token; `friday token NAME --role admin` makes one, and prints the line for it",
        path = .0.display()
    )]
    Empty(PathBuf),
}

/// Reads the file. Blocks on the disk.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, TokensError> {
    parse(path, &text_of(path)?)
}

fn text_of(path: &Path) -> Result<String, TokensError> {
    read_limited(path, FILE_BYTES_MAX).map_err(|source| TokensError::Read {
        path: path.to_owned(),
        source,
    })
}

/// The text of a file, if it has no more than `bytes_max` bytes. Blocks on the disk.
///
/// # Errors
/// It cannot be read, is no UTF-8, or has more.
pub(crate) fn read_limited(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    let mut file = std::fs::File::open(path)?.take(bytes_max.saturating_add(1));
    file.read_to_string(&mut text)?;
    if file.limit() == 0 {
        let words = format!("it has more than the {bytes_max} bytes allowed");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, words));
    }
    Ok(text)
}

/// The lines of the file's text.
fn parse(path: &Path, text: &str) -> Result<Vec<Entry>, TokensError> {
    let mut entries = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = entry(line).map_err(|reason| TokensError::Line {
            path: path.to_owned(),
            line: index + 1,
            reason,
        })?;
        entries.push(entry);
    }
    if entries.is_empty() {
        return Err(TokensError::Empty(path.to_owned()));
    }
    Ok(entries)
}

fn entry(line: &str) -> Result<Entry, &'static str> {
    let (name, rest) = line
        .split_once(':')
        .ok_or("there is no colon after a name")?;
    let name = name.trim();
    if !is_name(name) {
        return Err("the name is not one of 1 to 64 letters, digits, dots, hyphens or underscores");
    }
    let (role, hash) = rest
        .trim()
        .split_once(char::is_whitespace)
        .ok_or("there are not a role and a hash after the name")?;
    let role = Role::named(role)
        .ok_or("the role is none of proxy, agent, viewer, operator, approver and admin")?;
    let hash = from_hex(hash.trim()).ok_or("the hash is not one of 64 hexadecimal digits")?;
    Ok(Entry {
        caller: Caller::of_token(name, role),
        hash,
    })
}

/// Whether a token may have this name: it stands in the event log.
pub(crate) fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain)
}

fn from_hex(text: &str) -> Option<TokenHash> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(TokenHash(bytes))
}

impl Tokens {
    /// Reads the file again whenever it changes and on SIGHUP, until `stop`. A file that is wrong changes nothing.
    ///
    /// # Errors
    /// SIGHUP cannot be waited for.
    pub async fn keep_watch(
        self: Arc<Self>,
        path: PathBuf,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let mut hangups = signal(SignalKind::hangup())?;
        let mut due = interval(LOOK_EVERY);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = look(&path).await.ok();
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = hangups.recv() => true,
                _ = due.tick() => false,
            };
            // Small, and its time of change says less: a copied file may bear an old one.
            let now = look(&path).await;
            if now.as_ref().ok() == seen.as_ref() && !asked {
                continue;
            }
            seen = now.as_ref().ok().cloned();
            match now.and_then(|text| parse(&path, &text)) {
                Ok(entries) => {
                    let (before, after) = (self.count(), entries.len());
                    self.replace(entries);
                    tracing::info!(before, after, "the tokens were read again");
                }
                Err(error) => {
                    tracing::error!(error = %chain(&error), "the tokens stay as they were: the file is wrong");
                }
            }
        }
    }
}

/// The text of the file, read on a thread that may block.
async fn look(path: &Path) -> Result<String, TokensError> {
    let file = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || text_of(&file));
    reading.await.unwrap_or_else(|error| {
        Err(TokensError::Read {
            path: path.to_owned(),
            source: io::Error::other(error),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_which_line_is_wrong_and_never_repeats_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let hash = "0a".repeat(32);
        let said = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path).unwrap_err().to_string()
        };
        let good = format!("ci: operator {hash}\n");
        for (line, words) in [
            ("friday_secret".to_owned(), "there is no colon after a name"),
            (format!("a b: viewer {hash}"), "the name is not one"),
            (format!("ci: {hash}"), "not a role and a hash"),
            (format!("ci: root {hash}"), "the role is none of"),
            (
                "ci: admin friday_secret".to_owned(),
                "64 hexadecimal digits",
            ),
        ] {
            let said = said(&format!("# one\n{good}{line}\n"));
            assert!(
                said.contains(words) && said.contains("tokens:3: "),
                "{said}"
            );
            assert!(!said.contains("secret") && !said.contains(&hash), "{said}");
        }
        assert!(said("# nobody\n").contains("holds no token"));
        let long = said(&good.repeat(20_000));
        assert!(long.contains("cannot read the tokens"), "{long}");
        std::fs::write(&path, format!("{good}\nci: operator {hash}")).unwrap();
        assert_eq!(
            read(&path).unwrap().len(),
            2,
            "an old and a new one of a name"
        );
    }
}

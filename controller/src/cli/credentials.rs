//! What `friday login` keeps: a session for each controller, in one file that nobody else may read.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rollout::{Duration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::auth::read_limited;
use crate::client::{Client, Token, TokenAnswer};
use crate::reconciler::chain;

/// Largest file: a session has some 200 bytes, and a person some controllers.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A session that was kept.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Kept {
    token: String,
    /// Who signed in.
    pub(super) name: String,
    since: Timestamp,
    ends: Timestamp,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept")
            .field("name", &self.name)
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

impl Kept {
    pub(super) fn new(answer: &TokenAnswer, now: Timestamp) -> Self {
        let good_for = Duration::from_secs(answer.expires_seconds);
        Self {
            token: answer.token.clone(),
            name: answer.name.clone(),
            since: now,
            ends: now.saturating_add(good_for).unwrap_or(Timestamp::MAX),
        }
    }

    /// What to sign in with.
    pub(super) fn token(&self) -> Option<Token> {
        self.token.parse().ok()
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.ends <= now
    }

    /// Whether the last quarter of its time has begun.
    fn is_old(&self, now: Timestamp) -> bool {
        let (whole, left) = (
            self.ends.duration_since(self.since),
            self.ends.duration_since(now),
        );
        left < whole / 4
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Credentials(PathBuf);

impl Credentials {
    /// Where this person's are (XDG Base Directory): `friday/credentials.json` in the folder of configurations; `None` where
    /// there is no such folder.
    pub(super) fn of_person() -> Option<Self> {
        let folder = |name| std::env::var_os(name).map(PathBuf::from);
        let config = folder("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
        let config = config.or_else(|| {
            let home = folder("HOME").filter(|path| path.is_absolute());
            home.map(|home| home.join(".config"))
        });
        Some(Self(config?.join("friday").join("credentials.json")))
    }

    fn read(&self) -> anyhow::Result<BTreeMap<String, Kept>> {
        let text = match read_limited(&self.0, FILE_BYTES_MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", self.0.display()));
            }
        };
        // The parser's words would repeat what is in it.
        serde_json::from_str(&text).map_err(|_| {
            anyhow::anyhow!(
                "{} is not a file of `friday login`: remove it, and sign in again",
                self.0.display()
            )
        })
    }

    /// The session for a controller, if one is kept.
    pub(super) fn of(&self, url: &str) -> anyhow::Result<Option<Kept>> {
        Ok(self.read()?.remove(url))
    }

    /// Keeps a session, or forgets it.
    pub(super) fn keep(&self, url: &str, kept: Option<Kept>) -> anyhow::Result<()> {
        let mut all = self.read()?;
        match kept {
            Some(kept) => drop(all.insert(url.to_owned(), kept)),
            None => drop(all.remove(url)),
        }
        let text = serde_json::to_string_pretty(&all).context("the sessions cannot be written")?;
        self.write(&text)
            .with_context(|| format!("cannot write {}", self.0.display()))
    }

    /// Writes the file so that nobody else can read it at any moment, and whoever reads it finds all of it.
    fn write(&self, text: &str) -> std::io::Result<()> {
        let folder = self.0.parent().unwrap_or(Path::new("/"));
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(folder)?;
        let partial = self
            .0
            .with_extension(format!("{}.partial", std::process::id()));
        // One that a killed process left may have other rights.
        match std::fs::remove_file(&partial) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&partial, &self.0)
    }

    /// The token for a controller, renewed when it is old. What goes wrong is in the log: the controller says what it wants.
    pub(super) async fn token(
        &self,
        url: &str,
        now: Timestamp,
        client: impl Fn(Token) -> anyhow::Result<Client>,
    ) -> Option<Token> {
        let kept = match self.of(url) {
            Ok(kept) => kept?,
            Err(error) => {
                tracing::warn!("{error:#}");
                return None;
            }
        };
        let token = kept.token()?;
        if kept.is_over(now) {
            tracing::warn!(
                controller = url,
                "the session has ended: `friday login` begins another"
            );
            return None;
        }
        if !kept.is_old(now) {
            return Some(token);
        }
        let renewed = match client(token.clone()) {
            Ok(client) => client.refresh().await,
            Err(_) => return Some(token),
        };
        match renewed {
            Ok(answer) => {
                let kept = Kept::new(&answer, now);
                if let Err(error) = self.keep(url, Some(kept.clone())) {
                    tracing::warn!("{error:#}");
                }
                kept.token()
            }
            Err(error) => {
                tracing::debug!(error = %chain(&error), "the session cannot be renewed; it is good for a while");
                Some(token)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keeps_a_session_for_each_controller_where_nobody_else_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config/friday/credentials.json");
        let credentials = Credentials(path.clone());
        assert!(credentials.of("http://a").unwrap().is_none());
        let now: Timestamp = "2026-11-20T16:00:00Z".parse().unwrap();
        let answer = TokenAnswer {
            token: "friday_session_s3cret".to_owned(),
            expires_seconds: 400,
            name: "dana".to_owned(),
            role: "viewer".to_owned(),
        };
        let kept = Kept::new(&answer, now);
        assert!(!format!("{kept:?}{answer:?}").contains("s3cret"));
        credentials.keep("http://a", Some(kept.clone())).unwrap();
        credentials.keep("http://b", Some(kept)).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        credentials.keep("http://b", None).unwrap();
        assert!(credentials.of("http://b").unwrap().is_none());
        let kept = credentials.of("http://a").unwrap().unwrap();
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(!kept.is_old(at(300)) && kept.is_old(at(301)));
        assert!(!kept.is_over(at(399)) && kept.is_over(at(400)));
        std::fs::write(&path, "{\"s3cret\"").unwrap();
        let said = credentials.of("http://a").unwrap_err().to_string();
        assert!(
            said.contains("sign in again") && !said.contains("s3cret"),
            "{said}"
        );
    }
}

//! The job's own credential for GitLab: it travels in a header, is kept in memory, and dies with its job.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use http::HeaderValue;
use rollout::RolloutId;

/// The header of requests to us that carries it.
pub const JOB_TOKEN_HEADER: &str = "x-friday-job-token";

/// Longest token. GitLab's have 64 characters, or some 1,500 where the instance makes them signed.
const TOKEN_BYTES_MAX: usize = 8 << 10;

/// Rollouts whose token is kept. One runs for each service, and a token is of no use after its job.
const TOKENS_MAX: usize = 256;

/// `CI_JOB_TOKEN`. Nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct JobToken(String);

impl JobToken {
    /// A token, if the text can be one: visible ASCII characters.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let fits = (1..=TOKEN_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(text.to_owned()))
    }

    /// The token of the job that this process runs in.
    #[must_use]
    pub fn of_process() -> Option<Self> {
        Self::new(&std::env::var("CI_JOB_TOKEN").ok()?)
    }

    /// The secret, for a header `JOB-TOKEN` to GitLab and nothing else.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What goes into a header.
    pub(crate) fn header(&self) -> HeaderValue {
        let mut header =
            HeaderValue::try_from(&self.0).expect("a token is of visible ASCII characters");
        header.set_sensitive(true);
        header
    }
}

impl fmt::Debug for JobToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobToken(…)")
    }
}

/// The tokens of the jobs that wait for a rollout. Never saved: after a restart the next renewal of a lease brings the
/// token again.
#[derive(Debug, Default)]
pub struct JobTokens(Mutex<Vec<(RolloutId, JobToken)>>);

impl JobTokens {
    /// Keeps the token of the job that waits for this rollout, in place of an older one.
    pub fn keep(&self, id: &RolloutId, token: JobToken) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|(other, _)| other != id);
        if held.len() >= TOKENS_MAX {
            held.remove(0);
        }
        held.push((id.clone(), token));
    }

    /// The token of the job that waits for this rollout, or waited for it.
    #[must_use]
    pub fn of(&self, id: &RolloutId) -> Option<JobToken> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.iter()
            .find(|(other, _)| other == id)
            .map(|(_, token)| token.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_of_each_and_prints_none() {
        let tokens = JobTokens::default();
        let id = |number: usize| RolloutId::from_text(&format!("web-{number}"));
        let token = |text: &str| JobToken::new(text).unwrap();
        tokens.keep(&id(1), token("s3cret-1"));
        tokens.keep(&id(1), token("s3cret-2"));
        assert_eq!(tokens.of(&id(1)).unwrap().reveal(), "s3cret-2");
        assert!(!format!("{tokens:?}").contains("s3cret"));
        for number in 2..TOKENS_MAX + 2 {
            tokens.keep(&id(number), token("other"));
        }
        assert_eq!(tokens.of(&id(1)), None, "the oldest makes room");
        assert!(tokens.of(&id(2)).is_some());
    }

    #[test]
    fn refuses_what_no_header_can_carry() {
        for text in [
            "",
            "  ",
            "a b",
            "a\nb",
            "ä",
            &"x".repeat(TOKEN_BYTES_MAX + 1),
        ] {
            assert_eq!(JobToken::new(text), None, "{text:?}");
        }
        assert_eq!(JobToken::new(" abc\n").unwrap().reveal(), "abc");
    }
}

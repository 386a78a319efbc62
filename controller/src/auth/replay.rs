//! Which job showed a token of which name (`jti`). One job calls many times with one token; another job never with it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rollout::Timestamp;

use super::id_token::Claims;
use super::refusal::Refusal;

/// Most names that are remembered. A busy GitLab runs a thousand deploy jobs in an hour, which is a token's life.
const NAMES_MAX: usize = 10_000;

/// The names that were seen, until their tokens expire.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<HashMap<String, Entry>>);

#[derive(Debug)]
struct Entry {
    job_id: u64,
    expires: i64,
}

impl Seen {
    /// Notes the token.
    ///
    /// # Errors
    /// Another job showed one of its name.
    pub(super) fn note(&self, claims: &Claims, now: Timestamp) -> Result<(), Refusal> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = seen.get(&claims.token_id) {
            if first.job_id == claims.job_id {
                return Ok(());
            }
            return Err(Refusal::Replay {
                first: first.job_id,
                second: claims.job_id,
            });
        }
        if seen.len() >= NAMES_MAX {
            // An expired token is refused by its time, which may be a minute past its end.
            let over = now.as_second() - 120;
            seen.retain(|_, entry| entry.expires > over);
        }
        if seen.len() >= NAMES_MAX {
            let soonest = seen.iter().min_by_key(|(_, entry)| entry.expires);
            let soonest = soonest.map(|(name, _)| name.clone());
            soonest.map(|name| seen.remove(&name));
        }
        let entry = Entry {
            job_id: claims.job_id,
            expires: claims.expires,
        };
        seen.insert(claims.token_id.clone(), entry);
        Ok(())
    }
}

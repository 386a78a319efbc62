//! Whether others are told what rollouts do.

use rollout::Duration;

use super::{Finding, Level};
use crate::api::types::health::HealthView;
use crate::words::rounded;

/// A message that waits for longer tells of somebody who is away, not of one who is slow.
const LATE_SECONDS: f64 = 60.0;

/// Messages given up that are named; the others are counted.
const NAMED_MAX: usize = 3;

/// What waits for long, and what was given up.
pub(super) fn outbox(health: &HealthView) -> Vec<Finding> {
    let late = health
        .outbox
        .iter()
        .filter(|one| one.oldest_seconds > LATE_SECONDS);
    let mut found: Vec<Finding> = late
        .map(|one| {
            let lasts =
                rounded(Duration::try_from_secs_f64(one.oldest_seconds).unwrap_or(Duration::MAX));
            let why = one.trouble.as_deref().unwrap_or("not tried yet");
            Finding::of(
                Level::Warn,
                format!("messages to {}", one.destination),
                format!("{} wait, the oldest for {lasts}: {why}", one.messages),
                "mend what is said there; they are told as soon as that is possible, for a week",
            )
        })
        .collect();
    found.extend(health.untold.iter().take(NAMED_MAX).map(|one| {
        Finding::of(
            Level::Warn,
            format!("messages to {}", one.destination),
            format!("{} of {} was never told: {}", one.topic, one.rollout, one.trouble),
            "see `notify` in its friday.yml and what its token may do; the next rollout tries again",
        )
    }));
    let more = health.untold.len().saturating_sub(NAMED_MAX);
    if more > 0 {
        found.push(Finding::of(
            Level::Warn,
            "messages",
            format!("{more} more were never told"),
            "GET /api/v1/health names them",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_what_waits_for_long_and_what_was_given_up() {
        let untold = |number: u32| {
            json!({
                "rollout": format!("web-{number}"), "destination": "gitlab", "topic": "note",
                "at": "2026-11-20T08:57:00Z", "trouble": "403 Forbidden",
            })
        };
        let health: HealthView = serde_json::from_value(json!({
            "version": "0", "now": "2026-11-20T09:00:00Z", "generation": "1.1", "needs_token": true, "services": [],
            "outbox": [
                { "destination": "gitlab", "messages": 4, "oldest_seconds": 7_200.0, "trouble": "out of reach" },
                { "destination": "slack", "messages": 1, "oldest_seconds": 2.0 },
            ],
            "untold": [untold(1), untold(2), untold(3), untold(4)],
        }))
        .unwrap();
        let found = outbox(&health);
        let said: Vec<&str> = found.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(said[0], "4 wait, the oldest for 2h: out of reach");
        assert_eq!(said[1], "note of web-1 was never told: 403 Forbidden");
        assert_eq!((said.len(), said[4]), (5, "1 more were never told"));
        assert!(found.iter().all(|finding| finding.level == Level::Warn));
    }
}

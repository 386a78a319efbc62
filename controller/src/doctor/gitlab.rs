//! Whether GitLab can be asked for what releases depend on.

use super::{Finding, Level, seconds};
use crate::api::types::health::{FreezePeriodsView, HealthView, KeysView};
use crate::words::rounded;

/// Freeze periods are read once a minute; older ones tell of a GitLab that does not answer.
const LATE_SECONDS: f64 = 300.0;

/// What is wrong with it, or that all is well; `late` is what the outbox tells of.
pub(super) fn gitlab(health: &HealthView, late: &[Finding]) -> Vec<Finding> {
    let Some(gitlab) = &health.gitlab else {
        return Vec::new();
    };
    let (periods, keys) = (gitlab.freeze_periods.as_ref(), gitlab.keys.as_ref());
    let mut found = Vec::new();
    found.extend(periods.and_then(freeze_periods));
    found.extend(keys.and_then(|keys| sign_in(keys, &gitlab.url)));
    let is_told = late
        .iter()
        .all(|finding| finding.about != "messages to gitlab");
    if found.is_empty() && is_told {
        let mut well = Vec::new();
        if let Some(age) = periods.and_then(|periods| periods.age_seconds) {
            let age = rounded(seconds(age));
            well.push(format!("its freeze periods were read {age} ago"));
        }
        if keys.is_some() {
            well.push("its keys are there".to_owned());
        }
        well.push("no message to it is late".to_owned());
        let what = format!("{}: {}", gitlab.url, well.join(", "));
        found.push(Finding::ok("gitlab", what));
    }
    found
}

fn freeze_periods(periods: &FreezePeriodsView) -> Option<Finding> {
    if let Some(trouble) = &periods.trouble {
        return Some(Finding::of(
            Level::Fail,
            "freeze periods",
            format!("{trouble}; no rollout begins"),
            "see --freeze-project, and whether the token of --gitlab-token-file may read it; friday deploy --emergency REASON goes past",
        ));
    }
    let age = periods.age_seconds.filter(|age| *age > LATE_SECONDS)?;
    Some(Finding::of(
        Level::Warn,
        "freeze periods",
        format!(
            "GitLab's were last read {} ago; they hold for a day, then no rollout begins",
            rounded(seconds(age))
        ),
        "mend GitLab, or the way there; the controller's log says what it answers, and it is asked again by itself",
    ))
}

fn sign_in(keys: &KeysView, url: &str) -> Option<Finding> {
    let (level, follows) = if keys.is_there {
        (Level::Warn, "the last ones count for a day")
    } else {
        (
            Level::Fail,
            "no CI job is let in by its ID token, and nobody signs in",
        )
    };
    let trouble = match (&keys.trouble, keys.is_there) {
        (Some(trouble), _) => trouble.as_str(),
        (None, true) => return None,
        (None, false) => "there are none",
    };
    Some(Finding::of(
        level,
        "sign-in",
        format!("the keys of {url} cannot be had: {trouble}; {follows}"),
        "see `issuer` and `ca` in the file of --identities, or mend GitLab; machines' tokens work on",
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::doctor::outbox::outbox;

    fn found(gitlab: &Value, outbox_of: &Value) -> Vec<(Level, String, String)> {
        let health: HealthView = serde_json::from_value(json!({
            "version": "0", "now": "2026-11-20T09:00:00Z", "generation": "1.1", "needs_token": true, "services": [],
            "gitlab": gitlab, "outbox": outbox_of,
        }))
        .unwrap();
        let found = super::gitlab(&health, &outbox(&health)).into_iter();
        found
            .map(|finding| (finding.level, finding.about, finding.what))
            .collect()
    }

    #[test]
    fn what_blocks_a_start_fails_and_what_will_is_warned_of() {
        let url = "https://gitlab.example.com";
        let well = json!({ "is_there": true });
        for (periods, keys, expected) in [
            (
                json!({ "trouble": "GitLab answered 401" }),
                json!(null),
                vec![(
                    Level::Fail,
                    "freeze periods",
                    "GitLab answered 401; no rollout begins",
                )],
            ),
            (
                json!({ "age_seconds": 7_200.0 }),
                well.clone(),
                vec![(Level::Warn, "freeze periods", "last read 2h ago")],
            ),
            (
                json!(null),
                json!({ "is_there": false, "trouble": "out of reach" }),
                vec![(Level::Fail, "sign-in", "out of reach; no CI job is let in")],
            ),
            (
                json!({ "age_seconds": 360.0 }),
                json!({ "is_there": true, "trouble": "out of reach" }),
                vec![
                    (Level::Warn, "freeze periods", "last read 6m ago"),
                    (Level::Warn, "sign-in", "the last ones count for a day"),
                ],
            ),
            (
                json!({ "age_seconds": 12.0 }),
                well.clone(),
                vec![(
                    Level::Ok,
                    "gitlab",
                    "https://gitlab.example.com: its freeze periods were read 12s ago, its keys are there, no message to it is late",
                )],
            ),
            (
                json!(null),
                json!(null),
                vec![(
                    Level::Ok,
                    "gitlab",
                    "https://gitlab.example.com: no message to it is late",
                )],
            ),
        ] {
            let view = json!({ "url": url, "freeze_periods": periods, "keys": keys });
            let seen = found(&view, &json!([]));
            assert_eq!(seen.len(), expected.len(), "{seen:?}");
            for ((level, about, what), (expected, whose, part)) in seen.iter().zip(expected) {
                assert_eq!((*level, about.as_str()), (expected, whose), "{what}");
                assert!(what.contains(part), "{what}");
            }
        }
    }

    #[test]
    fn nothing_is_said_of_a_gitlab_that_is_not_there_and_no_praise_while_it_is_not_told() {
        let late = |destination: &str| json!([{ "destination": destination, "messages": 1, "oldest_seconds": 90.0 }]);
        assert!(found(&Value::Null, &json!([])).is_empty());
        let view = json!({ "url": "https://gitlab.example.com" });
        assert!(found(&view, &late("gitlab")).is_empty());
        assert_eq!(found(&view, &late("slack")).len(), 1);
    }
}

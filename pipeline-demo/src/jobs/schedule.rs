//! When a job is due. Pure: the time is an argument.

use std::str::FromStr;
use std::time::Duration;

use croner::Cron;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::seeded::stable_hash;

/// Runs that are made up for at most; of more, the latest.
pub(crate) const MISSED_MAX: usize = 100;

/// How far back missed runs are looked for.
const BACK_MAX_MS: i64 = 7 * 24 * 3_600 * 1_000;

/// How far after its time a job with a `cron` may start: within the minute that `cron` counts in.
const CRON_SPREAD_MS: u64 = 60_000;

/// When a job is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Every { ms: i64 },
    Cron(Box<Cron>),
}

impl Schedule {
    /// Again and again after this time, at least a millisecond.
    #[must_use]
    pub fn every(span: Duration) -> Self {
        let ms = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Self(Kind::Every { ms: ms.max(1) })
    }

    /// At the times of five fields (minute, hour, day, month, day of week), in UTC.
    ///
    /// # Errors
    /// What is wrong with the pattern, in words; also that no day fits it.
    pub fn cron(pattern: &str) -> Result<Self, String> {
        if pattern.split_whitespace().count() != 5 {
            return Err("these are not five fields".to_owned());
        }
        let cron = Cron::from_str(pattern).map_err(|error| error.to_string())?;
        // A pattern such as the 30th of February is well formed and would never be due.
        let from = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
        if cron.find_next_occurrence(&from, true).is_err() {
            return Err("there is no such day".to_owned());
        }
        Ok(Self(Kind::Cron(Box::new(cron))))
    }

    /// The times at which job `name` is due after `after_ms` and not after `now_ms`, in order: the latest
    /// [`MISSED_MAX`], and none older than a week.
    pub(crate) fn due(&self, name: &str, after_ms: i64, now_ms: i64) -> Vec<i64> {
        let mut due = Vec::new();
        let mut from = after_ms.max(now_ms - BACK_MAX_MS);
        if let Kind::Every { ms } = &self.0 {
            // What would be thrown away need not be counted out.
            from = from.max(now_ms.saturating_sub(ms.saturating_mul(MISSED_MAX as i64 + 1)));
        }
        while let Some(next) = self.next(name, from).filter(|next| *next <= now_ms) {
            due.push(next);
            from = next;
        }
        due.split_off(due.len().saturating_sub(MISSED_MAX))
    }

    /// The first time after `after_ms` at which job `name` is due. Jobs of equal schedules and different names are due at
    /// different times, so that they do not all start at once; a job is always due at the same ones.
    pub(crate) fn next(&self, name: &str, after_ms: i64) -> Option<i64> {
        let hash = stable_hash(name.as_bytes());
        match &self.0 {
            Kind::Every { ms } => {
                let shift = (hash % ms.unsigned_abs()).cast_signed();
                let since = after_ms.checked_sub(shift)?.div_euclid(*ms);
                since.checked_add(1)?.checked_mul(*ms)?.checked_add(shift)
            }
            Kind::Cron(cron) => {
                let shift = (hash % CRON_SPREAD_MS).cast_signed();
                let after = Timestamp::from_millisecond(after_ms.checked_sub(shift)?).ok()?;
                let next = cron.find_next_occurrence(&after.to_zoned(TimeZone::UTC), false);
                next.ok()?.timestamp().as_millisecond().checked_add(shift)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const MINUTE_MS: i64 = 60_000;

    #[test]
    fn jobs_of_one_schedule_are_spread_over_it() {
        let hourly = Schedule::every(Duration::from_secs(3_600));
        let nightly = Schedule::cron("30 3 * * *").unwrap();
        for (schedule, different) in [(hourly, 18), (nightly, 12)] {
            let times: BTreeSet<i64> = (0..20)
                .filter_map(|n| schedule.next(&format!("job {n}"), 1_700_000_000_000))
                .map(|ms| ms / 1_000)
                .collect();
            assert!(times.len() >= different, "{times:?}");
        }
    }

    #[test]
    fn a_cron_is_due_at_its_time_of_day_in_utc_within_a_minute() {
        let nightly = Schedule::cron("30 3 * * *").unwrap();
        let after = "2026-11-20T12:00:00Z"
            .parse::<Timestamp>()
            .unwrap()
            .as_millisecond();
        let due = nightly.due("a", after, after + 3 * 24 * 60 * MINUTE_MS);
        assert_eq!(due.len(), 3);
        let first = "2026-11-21T03:30:00Z"
            .parse::<Timestamp>()
            .unwrap()
            .as_millisecond();
        assert!((first..first + MINUTE_MS).contains(&due[0]), "{due:?}");
        assert_eq!(due[1] - due[0], 24 * 60 * MINUTE_MS);
    }

    #[test]
    fn refuses_what_is_no_cron() {
        for pattern in [
            "",
            "@daily",
            "* * * *",
            "* * * * * *",
            "61 * * * *",
            "a b c d e",
            "0 0 30 2 *",
        ] {
            assert!(Schedule::cron(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn of_many_missed_runs_the_latest_are_named() {
        let often = Schedule::every(Duration::from_secs(1));
        let now = 1_700_000_000_000;
        let due = often.due("a", 0, now);
        assert_eq!(due.len(), MISSED_MAX);
        assert!(now - due[MISSED_MAX - 1] < 1_000);
        assert!(due.windows(2).all(|pair| pair[1] - pair[0] == 1_000));
    }

    proptest! {
        #[test]
        fn the_next_time_is_after_and_within_one_span(name in ".{0,20}", after in 0_i64..4_000_000_000_000, s in 1_u64..1_000_000) {
            let schedule = Schedule::every(Duration::from_secs(s));
            let next = schedule.next(&name, after).unwrap();
            prop_assert!(next > after && next - after <= s.cast_signed() * 1_000);
            prop_assert_eq!(schedule.due(&name, after, next), vec![next]);
            prop_assert_eq!(schedule.due(&name, after, next - 1), Vec::<i64>::new());
        }
    }
}

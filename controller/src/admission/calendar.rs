//! Whether a freeze is on at this moment: cron, by the zone's wall clock. Pure.

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use jiff::SignedDuration;
use jiff::tz::TimeZone;
use rollout::Timestamp;
use rollout::policy::Freeze;

/// Longest text of a cron expression. A long one has forty characters; GitLab takes as much as a column.
const CRON_BYTES_MAX: usize = 255;

/// Why no time can be told by a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// It is no cron expression.
    #[error(
        "{cron:?} is no cron expression of five fields (minute, hour, day, month, weekday): {reason}"
    )]
    Cron {
        /// What was given.
        cron: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It never comes.
    #[error("{cron:?} never comes")]
    Never {
        /// What was given.
        cron: String,
    },
    /// When it comes cannot be told.
    #[error("when it comes cannot be told: {reason}")]
    Search {
        /// Why not.
        reason: String,
    },
    /// There is no such zone.
    #[error("{zone:?} is no time zone: expected an IANA name such as Europe/Berlin or UTC")]
    Zone {
        /// What was given.
        zone: String,
    },
}

/// A time that comes again and again, ready to be asked.
#[derive(Debug, Clone)]
pub struct Window {
    start: Cron,
    end: End,
    zone: TimeZone,
    /// Where it holds; everywhere if empty.
    environments: Vec<String>,
}

/// When a window is over.
#[derive(Debug, Clone)]
enum End {
    /// So long after its begin.
    After(SignedDuration),
    /// At the next of these times.
    At(Box<Cron>),
}

impl Window {
    /// One of `friday.yml`.
    ///
    /// # Errors
    /// Its cron expression or its zone is none.
    pub fn of(freeze: &Freeze) -> Result<Self, CalendarError> {
        Ok(Self {
            start: cron(&freeze.cron)?,
            end: End::After(SignedDuration::try_from(freeze.period).unwrap_or(SignedDuration::MAX)),
            zone: zone(&freeze.zone)?,
            environments: freeze.environments.clone(),
        })
    }

    /// One of GitLab's freeze periods: two cron expressions, and a zone by its IANA name or by one of those that Rails has.
    ///
    /// # Errors
    /// An expression or the zone is none.
    pub fn between(start: &str, end: &str, zone: &str) -> Result<Self, CalendarError> {
        Ok(Self {
            start: cron(start)?,
            end: End::At(Box::new(cron(end)?)),
            zone: self::zone(rails_zone(zone))?,
            environments: Vec::new(),
        })
    }

    /// Until when it is on, if it is on at `now`; the begin belongs to it, the end does not.
    ///
    /// # Errors
    /// That cannot be told; it is no word that nothing is frozen.
    pub fn until(
        &self,
        environment: &str,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, CalendarError> {
        let holds_here = self.environments.is_empty()
            || self.environments.iter().any(|name| name == environment);
        if !holds_here {
            return Ok(None);
        }
        let failed = |error: CronError| CalendarError::Search {
            reason: error.to_string(),
        };
        let now = now.to_zoned(self.zone.clone());
        let start = self.start.find_previous_occurrence(&now, true);
        let start = start.map_err(failed)?;
        let end = match &self.end {
            // One that is longer than time is never over.
            End::After(period) => start
                .timestamp()
                .checked_add(*period)
                .unwrap_or(Timestamp::MAX),
            // A period that begins where another ends goes on until the next end.
            End::At(end) => {
                let end = end.find_next_occurrence(&start, false);
                end.map_err(failed)?.timestamp()
            }
        };
        Ok((now.timestamp() < end).then_some(end))
    }
}

/// The cron expression of a text: five fields.
///
/// # Errors
/// It is none, or never comes.
pub fn cron(text: &str) -> Result<Cron, CalendarError> {
    let failed = |reason: String| CalendarError::Cron {
        cron: text.chars().take(CRON_BYTES_MAX).collect(),
        reason,
    };
    if text.len() > CRON_BYTES_MAX {
        return Err(failed(format!(
            "it has more than {CRON_BYTES_MAX} characters"
        )));
    }
    let parser = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .build();
    let cron = parser
        .parse(text)
        .map_err(|error| failed(error.to_string()))?;
    let from = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    cron.find_next_occurrence(&from, true)
        .map_err(|_| CalendarError::Never {
            cron: text.to_owned(),
        })?;
    Ok(cron)
}

/// The time zone of a name.
///
/// # Errors
/// There is none.
pub fn zone(name: &str) -> Result<TimeZone, CalendarError> {
    let unknown = || CalendarError::Zone {
        zone: name.to_owned(),
    };
    if name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    TimeZone::get(name).map_err(|_| unknown())
}

/// The IANA name of a zone where GitLab's interface wrote that of Rails. Those that are a city alone need the whole table of
/// Rails; what is not known here is refused, and then counts as a freeze that cannot be read.
fn rails_zone(name: &str) -> &str {
    match name {
        "" | "UTC" | "Etc/UTC" => "UTC",
        "Berlin" | "Bern" => "Europe/Berlin",
        "London" | "Edinburgh" => "Europe/London",
        "Paris" => "Europe/Paris",
        "Madrid" => "Europe/Madrid",
        "Rome" => "Europe/Rome",
        "Amsterdam" => "Europe/Amsterdam",
        "Vienna" => "Europe/Vienna",
        "Warsaw" => "Europe/Warsaw",
        "Kyiv" => "Europe/Kyiv",
        "Moscow" => "Europe/Moscow",
        "Eastern Time (US & Canada)" => "America/New_York",
        "Central Time (US & Canada)" => "America/Chicago",
        "Mountain Time (US & Canada)" => "America/Denver",
        "Pacific Time (US & Canada)" => "America/Los_Angeles",
        "Tokyo" | "Osaka" => "Asia/Tokyo",
        "Beijing" => "Asia/Shanghai",
        "Mumbai" | "New Delhi" | "Chennai" | "Kolkata" => "Asia/Kolkata",
        "Singapore" => "Asia/Singapore",
        "Sydney" => "Australia/Sydney",
        other => other,
    }
}

/// A text as a timestamp; tests read better so.
#[cfg(test)]
pub(super) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollout::Duration;

    fn freeze(cron: &str, hours: u64, zone: &str) -> Freeze {
        Freeze {
            cron: cron.to_owned(),
            period: Duration::from_secs(hours * 3_600),
            zone: zone.to_owned(),
            environments: Vec::new(),
        }
    }

    #[test]
    fn a_weekend_is_frozen_by_the_clock_on_the_wall() {
        // From Friday 17:00 to Monday 08:00 in Berlin: 15:00 UTC in summer, 16:00 in winter.
        let window = Window::of(&freeze("0 17 * * 5", 63, "Europe/Berlin")).unwrap();
        let table = [
            ("2026-07-10T14:59:59Z", None),
            ("2026-07-10T15:00:00Z", Some("2026-07-13T06:00:00Z")),
            ("2026-07-12T12:00:00Z", Some("2026-07-13T06:00:00Z")),
            ("2026-07-13T05:59:59Z", Some("2026-07-13T06:00:00Z")),
            ("2026-07-13T06:00:00Z", None),
            ("2026-01-09T15:30:00Z", None),
            ("2026-01-09T16:00:00Z", Some("2026-01-12T07:00:00Z")),
            // The night in which the clocks go forward is an hour shorter on the wall; 63 hours are 63 hours.
            ("2026-03-29T12:00:00Z", Some("2026-03-30T07:00:00Z")),
        ];
        for (now, until) in table {
            assert_eq!(
                window.until("production", at(now)),
                Ok(until.map(at)),
                "{now}"
            );
        }
    }

    #[test]
    fn a_freeze_may_hold_in_some_environments_alone() {
        let mut freeze = freeze("0 0 * * *", 24, "UTC");
        freeze.environments = vec!["production".to_owned()];
        let window = Window::of(&freeze).unwrap();
        let now = at("2026-01-01T12:00:00Z");
        assert!(window.until("production", now).unwrap().is_some());
        assert!(window.until("staging", now).unwrap().is_none());
    }

    #[test]
    fn a_freeze_that_is_longer_than_time_is_on() {
        for hours in [24 * 365 * 20_000, u64::MAX / 3_600] {
            let window = Window::of(&freeze("0 0 * * *", hours, "UTC")).unwrap();
            let until = window.until("production", at("2026-01-01T12:00:00Z"));
            assert_eq!(until, Ok(Some(Timestamp::MAX)), "{hours}");
        }
    }

    #[test]
    fn gitlab_periods_run_from_one_expression_to_the_next_of_the_other() {
        let window = Window::between("0 23 * * 5", "0 7 * * 1", "UTC").unwrap();
        let table = [
            ("2026-07-10T22:59:00Z", None),
            ("2026-07-10T23:00:00Z", Some("2026-07-13T07:00:00Z")),
            ("2026-07-12T00:00:00Z", Some("2026-07-13T07:00:00Z")),
            ("2026-07-13T07:00:00Z", None),
            ("2026-07-15T07:00:00Z", None),
        ];
        for (now, until) in table {
            assert_eq!(window.until("any", at(now)), Ok(until.map(at)), "{now}");
        }
        assert!(Window::between("0 0 * * *", "0 1 * * *", "Berlin").is_ok());
    }

    #[test]
    fn refuses_what_tells_no_time() {
        let table = [
            ("", "UTC"),
            ("0 17 * *", "UTC"),
            ("0 0 17 * * 5", "UTC"),
            ("0 0 17 * * 5 2026", "UTC"),
            ("61 0 * * *", "UTC"),
            ("0 0 30 2 *", "UTC"),
            ("0 17 * * 5", "Europe/Bonn"),
            ("0 17 * * 5", "../../etc/passwd"),
            ("0 17 * * 5", ""),
        ];
        for (cron, zone) in table {
            assert!(Window::of(&freeze(cron, 1, zone)).is_err(), "{cron} {zone}");
        }
        assert!(cron(&"0".repeat(CRON_BYTES_MAX + 1)).is_err());
    }
}

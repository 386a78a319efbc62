//! Stable's errors in its last hour, five minutes by five minutes: all there is to hold a canary against once it has every
//! request.

use serde::{Deserialize, Serialize};

use crate::Duration;
use crate::serial::millis;

/// The length of a window. Long enough for a share of errors at a few requests a second, short enough to see how much it
/// comes and goes in an hour.
const WINDOW: Duration = Duration::from_secs(300);

/// Windows of an hour.
const WINDOWS: usize = 12;

/// Requests from which a window's share counts by itself: at 1 % errors it is right within a third, two times in three.
const WINDOW_REQUESTS_MIN: u64 = 1_000;

/// Requests from which anything is known at all.
const REQUESTS_MIN: u64 = 100;

/// Requests and errors of stable, the last hour of its time with requests, oldest first; the last window is still open.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Hour(Vec<Window>);

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Window {
    #[serde(rename = "length_ms", with = "millis")]
    length: Duration,
    requests: u64,
    bad: u64,
}

impl Hour {
    /// Takes one block.
    pub(crate) fn block(&mut self, duration: Duration, requests: u64, bad: u64) {
        if requests == 0 {
            return;
        }
        if self.0.last().is_none_or(|window| window.length >= WINDOW) {
            if self.0.len() >= WINDOWS {
                self.0.remove(0);
            }
            self.0.push(Window::default());
        }
        if let Some(open) = self.0.last_mut() {
            open.length += duration;
            open.requests += requests;
            open.bad += bad;
        }
    }

    /// The highest share of errors of any window, and at least that of the whole hour; none while too little is known.
    pub(crate) fn worst_rate(&self) -> Option<f64> {
        let (requests, bad) = self.0.iter().fold((0, 0), |(requests, bad), window| {
            (requests + window.requests, bad + window.bad)
        });
        if requests < REQUESTS_MIN {
            return None;
        }
        let windows = self
            .0
            .iter()
            .filter(|window| window.requests >= WINDOW_REQUESTS_MIN)
            .map(|window| window.bad as f64 / window.requests as f64);
        Some(windows.fold(bad as f64 / requests as f64, f64::max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_worst_five_minutes_of_the_last_hour_and_no_more() {
        let mut hour = Hour::default();
        let minute = |hour: &mut Hour, requests, bad| {
            hour.block(Duration::from_secs(60), requests, bad);
        };
        minute(&mut hour, 99, 99);
        assert_eq!(hour.worst_rate(), None, "too little");
        for _ in 0..4 {
            minute(&mut hour, 300, 0);
        }
        for _ in 0..5 {
            minute(&mut hour, 300, 6);
        }
        // 99 of 1,299 in the first five minutes, 30 of 1,500 in the second.
        assert_eq!(hour.worst_rate(), Some(99.0 / 1_299.0));
        for _ in 0..55 {
            minute(&mut hour, 300, 3);
        }
        assert_eq!(
            hour.worst_rate(),
            Some(0.02),
            "the first is more than an hour ago"
        );
        for _ in 0..5 {
            minute(&mut hour, 300, 3);
        }
        assert_eq!(hour.worst_rate(), Some(0.01));
        let size = serde_json::to_string(&hour).unwrap().len();
        assert!(size < 1_000, "{size}");
    }

    #[test]
    fn takes_the_whole_hour_where_five_minutes_have_too_few_requests() {
        let mut hour = Hour::default();
        hour.block(WINDOW, 100, 10);
        hour.block(WINDOW, 900, 0);
        assert_eq!(hour.worst_rate(), Some(0.01));
    }
}

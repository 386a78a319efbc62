//! Times and shares, as people write them.

use rollout::Duration;

/// Longest time that any key takes. It bounds sums; a rollout of a month is a branch.
const DURATION_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Longest time that something is kept.
const LONG_DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The units of a duration, longest first, in nanoseconds.
const UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
];

/// Reads `10s`, `1h30m`, `500ms`, `1.5s`; units from long to short, each once. A bare number has no unit and is none.
/// Whole milliseconds, as they are saved.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    fine_duration(text).filter(|duration| duration.subsec_nanos().is_multiple_of(1_000_000))
}

/// The same, also `500us`.
pub(crate) fn fine_duration(text: &str) -> Option<Duration> {
    any_duration(text).filter(|duration| *duration <= DURATION_MAX)
}

/// Reads the same up to a year: how long something is kept.
#[must_use]
pub fn long_duration(text: &str) -> Option<Duration> {
    any_duration(text).filter(|duration| *duration <= LONG_DURATION_MAX)
}

fn any_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut longest = u64::MAX;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| c.is_ascii_alphabetic())?);
        let (unit, after) = after.split_at(
            after
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(after.len()),
        );
        let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
        if *nanos >= longest {
            return None;
        }
        longest = *nanos;
        let part = Duration::try_from_secs_f64(
            decimal(number)? * Duration::from_nanos(*nanos).as_secs_f64(),
        )
        .ok()?;
        total = total.checked_add(part)?;
        rest = after;
    }
    Some(total)
}

/// Reads `0.5%` and `14 %` as 0.5 and 14. Without its sign a number could be meant either way, and is none.
#[must_use]
pub fn percent(text: &str) -> Option<f64> {
    decimal(text.trim().strip_suffix('%')?.trim_end())
}

/// Digits, and perhaps a point between digits.
fn decimal(text: &str) -> Option<f64> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    (digits(whole) && digits(decimals)).then(|| text.parse().ok())?
}

/// A duration as `friday.yml` has it: `1h30m`, `10s`, `500ms`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let mut nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let mut shown = String::new();
    for (unit, size) in UNITS {
        let count = nanos / size;
        nanos %= size;
        if count > 0 {
            shown.push_str(&format!("{count}{unit}"));
        }
    }
    if shown.is_empty() {
        "0s".to_owned()
    } else {
        shown
    }
}

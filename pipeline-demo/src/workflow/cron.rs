//! The five fields of cron, as crontab(5) has them: checked here, kept as they were written.

/// The fields' names, smallest and largest value, and the words for values from the smallest on.
const FIELDS: [(&str, u8, u8, &[&str]); 5] = [
    ("minute", 0, 59, &[]),
    ("hour", 0, 23, &[]),
    ("day of month", 1, 31, &[]),
    (
        "month",
        1,
        12,
        &[
            "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
        ],
    ),
    // 7 is Sunday too.
    (
        "day of week",
        0,
        7,
        &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    ),
];

/// Whether the text is minute, hour, day of month, month and day of week: each `*`, a value, a range `a-b`, either with a
/// step `/n`, or several of them with commas.
#[must_use]
pub fn is_cron(text: &str) -> bool {
    wrong_field(text).is_none()
}

/// The field that is wrong, or what is wrong with the whole.
pub(super) fn wrong_field(text: &str) -> Option<&'static str> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Some("number of fields");
    }
    let mut pairs = fields.iter().zip(FIELDS);
    let wrong = pairs.find(|(field, (_, least, most, words))| {
        !field
            .split(',')
            .all(|part| is_part(part, *least, *most, words))
    });
    wrong.map(|(_, (name, ..))| name)
}

fn is_part(part: &str, least: u8, most: u8, words: &[&str]) -> bool {
    let number = |text: &str| -> Option<u8> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok())?
    };
    let value = |text: &str| {
        let word = words
            .iter()
            .position(|word| word.eq_ignore_ascii_case(text));
        let value = match word {
            Some(at) => u8::try_from(at).ok().map(|at| at + least),
            None => number(text),
        };
        value.filter(|value| (least..=most).contains(value))
    };
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, Some(step)),
        None => (part, None),
    };
    let step_fits = step.is_none_or(|step| number(step).is_some_and(|n| (1..=most).contains(&n)));
    let range_fits = match range.split_once('-') {
        Some((from, to)) => value(from)
            .zip(value(to))
            .is_some_and(|(from, to)| from <= to),
        // A step of one value alone means nothing.
        None => range == "*" || (value(range).is_some() && step.is_none()),
    };
    step_fits && range_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_crontab_knows() {
        for right in [
            "* * * * *",
            "*/5 0-6,22 1,15 jan-MAR 7",
            "0 3 31 12 mon-fri/2",
        ] {
            assert_eq!(wrong_field(right), None, "{right}");
        }
        for (wrong, field) in [
            ("", "number of fields"),
            ("@daily", "number of fields"),
            ("0 0 0 * * *", "number of fields"),
            ("60 * * * *", "minute"),
            ("*/0 * * * *", "minute"),
            ("5/2 * * * *", "minute"),
            ("+5 * * * *", "minute"),
            ("* 24 * * *", "hour"),
            ("* 6-5 * * *", "hour"),
            ("* * 0 * *", "day of month"),
            ("* * * foo *", "month"),
            ("* * * * 1,,2", "day of week"),
        ] {
            assert_eq!(wrong_field(wrong), Some(field), "{wrong}");
        }
    }
}

//! For each bucket of a histogram the last request in it that is in a recorded trace: the way from a point on a board to what
//! happened there.
//!
//! Only requests that are recorded come here, a hundredth or so; so a lock for each label set is enough.

use std::sync::Mutex;

use friday_traces::TraceParent;

use crate::lock;

/// A request that is in a recorded trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Exemplar {
    /// Where it is to be found.
    pub(crate) at: TraceParent,
    /// What the histogram counted of it.
    pub(crate) value: f64,
    /// When, in seconds since 1970.
    pub(crate) seconds: f64,
}

/// The exemplars of one label set of a histogram: at most one a bucket.
#[derive(Debug)]
pub(crate) struct Exemplars {
    /// Upper bounds, rising; the bucket of all that is above them comes last.
    bounds: Box<[f64]>,
    /// By bucket; empty until there is one.
    last: Mutex<Vec<Option<Exemplar>>>,
}

impl Exemplars {
    /// None yet, for a histogram of these bounds.
    pub(crate) fn new(bounds: &[f64]) -> Self {
        Self {
            bounds: bounds.into(),
            last: Mutex::default(),
        }
    }

    /// Takes note of a request that the histogram counted as `value`.
    pub(crate) fn note(&self, at: TraceParent, value: f64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        let mut last = lock(&self.last);
        last.resize(self.bounds.len() + 1, None);
        last[bucket] = Some(Exemplar {
            at,
            value,
            seconds: now(),
        });
    }

    /// All of them, by bucket; empty or one for each.
    pub(crate) fn all(&self) -> Vec<Option<Exemplar>> {
        lock(&self.last).clone()
    }
}

/// The time of day, in seconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "nothing is decided by it: it only stands beside the exemplar"
)]
fn now() -> f64 {
    jiff::Timestamp::now().as_duration().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_request_of_each_bucket() {
        let exemplars = Exemplars::new(&[0.1, 1.0]);
        assert_eq!(exemplars.all(), []);
        let at = |digit: char| {
            let (trace, span) = (digit.to_string().repeat(32), digit.to_string().repeat(16));
            TraceParent::parse(format!("00-{trace}-{span}-01").as_bytes()).unwrap()
        };
        for (digit, value) in [('1', 0.1), ('2', 0.05), ('3', 1.5), ('4', f64::INFINITY)] {
            exemplars.note(at(digit), value);
        }
        let all = exemplars.all();
        let kept = all.iter().map(|one| one.map(|one| (one.at, one.value)));
        assert_eq!(
            kept.collect::<Vec<_>>(),
            [Some((at('2'), 0.05)), None, Some((at('4'), f64::INFINITY))]
        );
    }
}

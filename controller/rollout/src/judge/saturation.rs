//! Memory, CPU, queues and descriptors of the nodes (JUDGE 2.7). They are few and move slowly, so no sample is worth much:
//! hard limits, one sign every ten seconds, and a straight line.

use serde::{Deserialize, Serialize};

use super::mixture::Restart;
use super::verdict::{HoldReason, Signal};
use crate::Duration;
use crate::plan::{Guard, Tuning};

/// The time between two samples.
pub const SAMPLE_PERIOD: Duration = Duration::from_secs(10);

/// Use of a limit from which a node is at it.
const AT_LIMIT: f64 = 0.95;

/// Samples in a row at the limit of CPU, queue or descriptors that condemn. Memory needs one: the next thing that happens
/// there is a kill.
const AT_LIMIT_SAMPLES: u8 = 3;

/// The canary's and stable's requests for each node may differ by this factor before CPU for each request means nothing:
/// idle work is shared by too few.
const COMPARABLE_RATE: f64 = 2.0;

/// Chances that the canary is the worse one, if it uses more: from a little to nearly always.
pub(super) const WORSE: [f64; 4] = [0.6, 0.75, 0.9, 0.97];

/// The straight line is drawn through the last five minutes.
const TREND_SAMPLES: usize = 30;

/// Samples it takes for a line. With three minutes, noise of 5 % of the limit moves the forecast by about a tenth of it.
const TREND_SAMPLES_MIN: usize = 18;

/// A slope is believed from this many standard errors; samples that follow each other resemble each other, which makes
/// the standard error look two to four times too small.
const TREND_ERRORS_MIN: f64 = 4.0;

/// How far ahead the line is followed.
const TREND_HORIZON_SECONDS: f64 = 900.0;

/// Nodes whose streaks at a limit are remembered.
const NODES_MAX: usize = 64;

/// What of a node is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gauge {
    /// Resident memory.
    Memory,
    /// CPU; compared between the arms in seconds for each request.
    Cpu,
    /// A queue.
    Queue,
    /// File descriptors.
    Descriptors,
}

/// One node, or one task, at one moment. What is missing, not a number, infinite or negative is no data.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeGauges {
    /// Its name.
    pub node: String,
    /// Memory in use.
    pub memory_bytes: Option<f64>,
    /// The memory it may use.
    pub memory_limit_bytes: Option<f64>,
    /// CPU in use, as a share of what it may use.
    pub cpu_ratio: Option<f64>,
    /// How full its queue is.
    pub queue_ratio: Option<f64>,
    /// Descriptors in use, as a share of what it may open.
    pub descriptors_ratio: Option<f64>,
    /// CPU time used since the sample before, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Requests served since the sample before.
    pub requests: Option<f64>,
}

impl NodeGauges {
    /// The use of a limit, if it is known.
    fn ratio(&self, gauge: Gauge) -> Option<f64> {
        match gauge {
            Gauge::Memory => {
                let limit = data(self.memory_limit_bytes).filter(|limit| *limit > 0.0)?;
                data(self.memory_bytes).map(|used| used / limit)
            }
            Gauge::Cpu => data(self.cpu_ratio),
            Gauge::Queue => data(self.queue_ratio),
            Gauge::Descriptors => data(self.descriptors_ratio),
        }
    }

    fn is_at_limit(&self, gauge: Gauge) -> bool {
        self.ratio(gauge).is_some_and(|ratio| ratio >= AT_LIMIT)
    }

    fn cpu_seconds_per_request(&self) -> Option<f64> {
        let requests = data(self.requests).filter(|requests| *requests > 0.0)?;
        data(self.cpu_seconds).map(|seconds| seconds / requests)
    }
}

/// All nodes of both arms at one moment; one such sample each [`SAMPLE_PERIOD`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SaturationSample {
    /// The canary's nodes.
    pub canary: Vec<NodeGauges>,
    /// Stable's nodes.
    pub stable: Vec<NodeGauges>,
}

/// What was seen of the nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Saturation {
    memory: Restart,
    cpu: Restart,
    streaks: Vec<Streak>,
    /// The highest use of memory on each arm, oldest first.
    trend: Vec<Highest>,
}

/// How many samples in a row a canary node has been at a limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Streak {
    node: String,
    gauge: Gauge,
    samples: u8,
}

/// The highest use of the memory limit on each arm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Highest {
    canary: Option<f64>,
    stable: Option<f64>,
}

impl Default for Saturation {
    fn default() -> Self {
        Self {
            memory: Restart::new(WORSE.len()),
            cpu: Restart::new(WORSE.len()),
            streaks: Vec::new(),
            trend: Vec::new(),
        }
    }
}

impl Saturation {
    /// Takes one sample and says which limit condemns the canary, if one does. While the rollout warms up only memory does:
    /// a cold start may use all the CPU it gets.
    pub(crate) fn sample(
        &mut self,
        sample: &SaturationSample,
        warming: bool,
        guard: &Guard,
    ) -> Option<Signal> {
        self.follow_trend(sample);
        if warming {
            self.streaks.clear();
        } else {
            self.compare(sample, guard);
            self.count_streaks(sample);
        }
        self.limit(sample)
    }

    /// The logarithm of the evidence that the canary uses more: the mean over memory and CPU.
    pub(crate) fn log_e(&self) -> f64 {
        super::mixture::log_sum_exp([self.memory.log_e(), self.cpu.log_e()].into_iter())
            - 2.0_f64.ln()
    }

    /// Which of the two says it louder.
    pub(crate) fn loudest(&self) -> Gauge {
        if self.cpu.log_e() > self.memory.log_e() {
            Gauge::Cpu
        } else {
            Gauge::Memory
        }
    }

    /// Whether the canary's memory is about to reach its limit while stable's is not.
    pub(crate) fn trend(&self) -> Option<HoldReason> {
        let seconds_to_limit = seconds_to_limit(self.trend.iter().map(|highest| highest.canary))?;
        match seconds_to_limit_of_stable(&self.trend) {
            Some(_) => None,
            None => Some(HoldReason::MemoryTrend { seconds_to_limit }),
        }
    }

    /// One sign for memory, one for CPU seconds for each request.
    fn compare(&mut self, sample: &SaturationSample, guard: &Guard) {
        let medians = |of: fn(&NodeGauges) -> Option<f64>| {
            let canary = median(sample.canary.iter().filter_map(of))?;
            let stable = median(sample.stable.iter().filter_map(of))?;
            Some((canary, stable))
        };
        if let Some((canary, stable)) = medians(|node| data(node.memory_bytes)) {
            sign(
                &mut self.memory,
                canary > guard.saturation_memory * stable,
                SAMPLE_PERIOD,
                &guard.tuning,
            );
        }
        let comparable = medians(|node| data(node.requests)).is_some_and(|(canary, stable)| {
            canary > 0.0 && canary <= COMPARABLE_RATE * stable && stable <= COMPARABLE_RATE * canary
        });
        if let Some((canary, stable)) =
            medians(NodeGauges::cpu_seconds_per_request).filter(|_| comparable)
        {
            sign(
                &mut self.cpu,
                canary > guard.saturation_cpu * stable,
                SAMPLE_PERIOD,
                &guard.tuning,
            );
        }
    }

    fn count_streaks(&mut self, sample: &SaturationSample) {
        let before = std::mem::take(&mut self.streaks);
        for node in &sample.canary {
            for gauge in [Gauge::Cpu, Gauge::Queue, Gauge::Descriptors] {
                if node.is_at_limit(gauge) && self.streaks.len() < NODES_MAX {
                    let samples = before
                        .iter()
                        .find(|streak| streak.gauge == gauge && streak.node == node.node)
                        .map_or(0, |streak| streak.samples);
                    self.streaks.push(Streak {
                        node: node.node.clone(),
                        gauge,
                        samples: samples.saturating_add(1),
                    });
                }
            }
        }
    }

    /// Whether a node of the canary is at its limit of memory, and none of stable is.
    pub(crate) fn memory_limit(&self, sample: &SaturationSample) -> Option<Signal> {
        self.limit_of(&[Gauge::Memory], sample)
    }

    /// Which limit condemns the canary now, if one does.
    pub(crate) fn limit(&self, sample: &SaturationSample) -> Option<Signal> {
        let all = [Gauge::Memory, Gauge::Cpu, Gauge::Queue, Gauge::Descriptors];
        self.limit_of(&all, sample)
    }

    fn limit_of(&self, gauges: &[Gauge], sample: &SaturationSample) -> Option<Signal> {
        let condemned = |node: &NodeGauges, gauge: Gauge| match gauge {
            Gauge::Memory => node.is_at_limit(gauge),
            Gauge::Cpu | Gauge::Queue | Gauge::Descriptors => self.streaks.iter().any(|streak| {
                streak.gauge == gauge
                    && streak.node == node.node
                    && streak.samples >= AT_LIMIT_SAMPLES
            }),
        };
        for &gauge in gauges {
            if sample.stable.iter().any(|node| node.is_at_limit(gauge)) {
                continue;
            }
            if let Some(node) = sample.canary.iter().find(|node| condemned(node, gauge)) {
                let ratio = node.ratio(gauge).unwrap_or(AT_LIMIT);
                return Some(Signal::Limit {
                    gauge,
                    node: node.node.clone(),
                    ratio,
                });
            }
        }
        None
    }

    fn follow_trend(&mut self, sample: &SaturationSample) {
        let highest = |nodes: &[NodeGauges]| {
            nodes
                .iter()
                .filter_map(|node| node.ratio(Gauge::Memory))
                .reduce(f64::max)
        };
        if self.trend.len() >= TREND_SAMPLES {
            self.trend.remove(0);
        }
        self.trend.push(Highest {
            canary: highest(&sample.canary),
            stable: highest(&sample.stable),
        });
    }
}

/// The logarithm of the factor of one sign, if the canary is the worse one with the chance `worse_share`.
pub(crate) fn sign_log_factor(is_worse: bool, worse_share: f64) -> f64 {
    (2.0 * if is_worse {
        worse_share
    } else {
        1.0 - worse_share
    })
    .ln()
}

/// Takes one sign, `period` after the one before.
pub(super) fn sign(process: &mut Restart, is_worse: bool, period: Duration, tuning: &Tuning) {
    process.update(
        WORSE.iter().map(|share| sign_log_factor(is_worse, *share)),
        period,
        tuning,
    );
}

/// A value that is one.
fn data(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite() && *value >= 0.0)
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

fn seconds_to_limit_of_stable(trend: &[Highest]) -> Option<f64> {
    seconds_to_limit(trend.iter().map(|highest| highest.stable))
}

/// When the straight line through these samples reaches the limit, if it does so soon enough to matter and rises clearly.
fn seconds_to_limit(samples: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let points: Vec<(f64, f64)> = samples
        .enumerate()
        .filter_map(|(at, ratio)| {
            ratio.map(|ratio| (at as f64 * SAMPLE_PERIOD.as_secs_f64(), ratio))
        })
        .collect();
    if points.len() < TREND_SAMPLES_MIN {
        return None;
    }
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (mean_time, mean_ratio) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points
        .iter()
        .map(|(time, _)| (time - mean_time).powi(2))
        .sum();
    let slope = points
        .iter()
        .map(|(time, ratio)| (time - mean_time) * (ratio - mean_ratio))
        .sum::<f64>()
        / spread;
    let line = |time: f64| mean_ratio + slope * (time - mean_time);
    let residual: f64 = points
        .iter()
        .map(|(time, ratio)| (ratio - line(*time)).powi(2))
        .sum();
    let slope_error = (residual / (count - 2.0) / spread).sqrt();
    let now = points.last().map_or(0.0, |(time, _)| *time);
    let seconds = ((1.0 - line(now)) / slope).max(0.0);
    (slope > TREND_ERRORS_MIN * slope_error && slope > 0.0 && seconds <= TREND_HORIZON_SECONDS)
        .then_some(seconds)
}

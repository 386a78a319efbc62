//! How a rollout went, over time: what charts are drawn from.

use rollout::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most verdicts of one answer. A chart is some hundred pixels wide.
pub const POINTS_MAX: usize = 400;

/// Most lines of the story in one answer. A rollout has some ten; one that its owner pauses and resumes all day some hundred.
pub const LINES_MAX: usize = 300;

/// A rollout over time, from its event log.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct SeriesView {
    /// The rollout.
    pub rollout: String,
    /// Its verdicts, oldest first, at most [`POINTS_MAX`]: where there were more, of neighbours the one with the most
    /// evidence of harm stands for all, so that no peak is lost.
    pub points: Vec<PointView>,
    /// How many verdicts there were.
    pub verdicts: u64,
    /// The changes of the weight, oldest first, at most [`LINES_MAX`], the newest.
    pub weights: Vec<WeightChange>,
    /// What happened besides verdicts, oldest first, at most [`LINES_MAX`], the newest.
    pub story: Vec<LineView>,
    /// The number of the last entry that was read: whoever wants what came later asks for what is after it.
    pub next: i64,
    /// Whether the log was read to its end; if not, there is more after `next`.
    pub is_whole: bool,
}

/// A verdict, as charts need it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PointView {
    /// Its number in the event log.
    pub seq: i64,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// The step that was judged, from 0; after the last come the bake and the warm phase.
    pub step: usize,
    /// The weight under which the requests were routed, in percent.
    pub weight_percent: f64,
    /// `pass`, `fail`, `hold` or `inconclusive`.
    pub decision: String,
    /// The verdict in a sentence.
    pub message: String,
    /// Evidence of harm, a natural logarithm from 0 on: 0 is none, 4.6 is 100 to 1.
    pub evidence: f64,
    /// The evidence from which the release is rolled back.
    pub rollback_at: f64,
    /// The canary in the block that was judged.
    pub canary: BlockView,
    /// Stable in the same block.
    pub stable: BlockView,
}

/// What one arm did in a block.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct BlockView {
    /// Requests in a second.
    pub requests_per_second: f64,
    /// Bad outcomes as a share of requests; `null` without requests.
    pub error_ratio: Option<f64>,
    /// 90th percentile of the latency of successes, in seconds; `null` without any.
    pub latency_p90_seconds: Option<f64>,
}

/// A change of the canary's share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WeightChange {
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// The share from then on, in percent.
    pub percent: f64,
}

/// A line of the story.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LineView {
    /// Its number in the event log.
    pub seq: i64,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// What kind of entry it is.
    pub kind: String,
    /// Who caused it.
    pub author: String,
    /// What happened, in words.
    pub message: String,
}

//! The report: what became of the requests that a proxy routed.
//!
//! Requests are counted in the [`Epoch`] in which they were routed. An epoch lasts half a second, shorter when a new
//! table cuts it, so all its requests were chosen by one weight. It is *final* when its last request has ended, or has
//! been counted as timed out because it is too old. A report holds every epoch that is not both final and acknowledged:
//! a lost report loses nothing, a repeated one adds nothing, and a late answer belongs to the moment of its request.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::table::{BasisPoints, Endpoint, Generation};

/// How many latency buckets there are.
pub const LATENCY_BUCKETS: u16 = 640;

/// The bucket of a latency of `us` microseconds: `floor(32 log2(us / 100))`, from 0 (100 us and less) to 639 (104 s and
/// more), each 2.19 % wide. The lower edge of bucket `i` is `100 us * 2^(i/32)`.
#[must_use]
pub fn latency_bucket(us: u64) -> u16 {
    if us <= 100 {
        return 0;
    }
    // Below 2^53 us (285 years) the conversion is exact; above, the top bucket holds it anyway.
    #[expect(
        clippy::cast_precision_loss,
        reason = "exact below 2^53 us, clamped above"
    )]
    let index = (32.0 * (us as f64 / 100.0).log2() + 1e-9).floor();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0..=639 in the line itself"
    )]
    let index = index.clamp(0.0, f64::from(LATENCY_BUCKETS - 1)) as u16;
    index
}

/// One life of a proxy process: counts start at zero with it. A random number, 16 hexadecimal digits.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "5f1c2a9e00d3b7a1")]
pub struct BootId(pub u64);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl TryFrom<String> for BootId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16)
            .map(Self)
            .map_err(|_| format!("boot id {text:?} is not a hexadecimal number of 64 bits"))
    }
}

impl From<BootId> for String {
    fn from(boot: BootId) -> Self {
        boot.to_string()
    }
}

/// The side of a route a request was sent to.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// The release served by default.
    Stable,
    /// The release on trial.
    Canary,
}

impl Arm {
    /// The name in metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
        }
    }
}

/// Who chose the release of a request.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Chosen {
    /// The weight did, by chance or by sticky hash: such requests are evidence.
    Weight,
    /// The request named its release (`x-friday-release`): counted, but no evidence.
    Request,
}

/// What became of a request at the release it was routed to, whatever the user got in the end.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Answered below 500, to the end of the body; the caller's own mistakes (4xx) are among them.
    Ok,
    /// Answered 500 or above.
    ServerError,
    /// Not answered in time, or still in flight when it was too old to wait for.
    Timeout,
    /// No connection, or no endpoint to connect to.
    Connect,
    /// The connection broke before the end of the answer.
    Reset,
}

impl Outcome {
    /// Every outcome, in the order of [`Cell::outcomes`].
    pub const ALL: [Self; 5] = [
        Self::Ok,
        Self::ServerError,
        Self::Timeout,
        Self::Connect,
        Self::Reset,
    ];

    /// Whether the judge holds it against the release.
    #[must_use]
    pub fn is_bad(self) -> bool {
        self != Self::Ok
    }

    /// The name in metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ServerError => "server_error",
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Reset => "reset",
        }
    }
}

/// The requests of one epoch that share route, arm, endpoint, client group and chooser.
///
/// A request is counted once, for the arm it was routed to and for the endpoint that was tried first, also when it was
/// tried again elsewhere. If any attempt at that arm failed, the request's outcome is that failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// The route.
    pub route: String,
    /// The side it was sent to.
    pub arm: Arm,
    /// The release on that side.
    pub release: String,
    /// The endpoint first tried; empty when there was none to try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// The client's group, 0 to 7: a hash of its address, or of its sticky key.
    pub group: u8,
    /// Who chose the release.
    pub chosen: Chosen,
    /// Requests routed.
    pub requests: u32,
    /// Of these, without an outcome yet.
    pub unfinished: u32,
    /// Of these, how many had each outcome, in the order of [`Outcome::ALL`].
    pub outcomes: [u32; 5],
    /// Final answers to users that were 500 or above or broke off: at most the bad outcomes where the shield is on.
    pub failed_to_user: u32,
    /// Time to the end of the answer of each [`Outcome::Ok`]: pairs of bucket ([`latency_bucket`]) and count, rising.
    pub latency: Vec<(u16, u32)>,
    /// Answers of [`Outcome::Ok`] by the kind they said they were of, where the route asks for it ([`Route::answer_kind`]). At
    /// most [`KINDS_MAX`], those beyond them together as [`KIND_OTHER`], and those that named none as [`KIND_NONE`]. Which
    /// kinds are told apart is the same for all cells of a route under one table, so that arms can be compared. Not
    /// counted are those whose client left before the head of the answer came, and streams that aged out.
    ///
    /// [`Route::answer_kind`]: crate::Route::answer_kind
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kinds: BTreeMap<String, u32>,
}

/// Kinds of answers that are told apart on one route. Whoever has more has an identifier in the header.
pub const KINDS_MAX: usize = 16;

/// Longest name of a kind, in bytes. What is longer names none.
pub const KIND_BYTES_MAX: usize = 64;

/// What all kinds beyond [`KINDS_MAX`] are counted as.
pub const KIND_OTHER: &str = "(other)";

/// What answers are counted as that name no kind, or one that is no word of up to [`KIND_BYTES_MAX`].
pub const KIND_NONE: &str = "(none)";

impl Cell {
    /// Requests whose outcome the judge holds against the release.
    #[must_use]
    pub fn bad(&self) -> u32 {
        Outcome::ALL
            .iter()
            .zip(self.outcomes)
            .filter(|(outcome, _)| outcome.is_bad())
            .map(|(_, count)| count)
            .sum()
    }
}

/// Half a second of routing, or less when a new table cut it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// Counts the epochs of one boot from 1, without gaps unless [`Report::epochs_dropped`] grew.
    pub number: u64,
    /// The table in force for its whole length.
    pub generation: Generation,
    /// The canary's share by route, as that table has it: one entry for every route, so that the controller need not
    /// remember every table it ever made.
    pub weights: BTreeMap<String, BasisPoints>,
    /// How long it lasted, or has lasted so far.
    pub duration_ms: u32,
    /// Whether nothing of it can change any more: it is over, and all its requests have outcomes.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// What was routed in it. Empty when nothing was: silence is reported too.
    pub cells: Vec<Cell>,
}

/// Requests at an endpoint that have no answer yet, also those whose epoch was closed without waiting for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InFlight {
    /// The route.
    pub route: String,
    /// The release.
    pub release: String,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// How many.
    pub requests: u32,
}

/// What a proxy tells the controller, every 500 ms, in one piece or more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The proxy's name, unique among the proxies of one controller.
    pub proxy: String,
    /// This life of the proxy.
    pub boot: BootId,
    /// The table it applies now.
    pub generation: Generation,
    /// Epochs that are not both final and acknowledged, by number. Where more wait than one report may have it is the
    /// oldest of them and the present one, and the next report follows at once.
    pub epochs: Vec<Epoch>,
    /// Epochs that were let go before anybody acknowledged them, because too many waited. Evidence was lost: the
    /// judge must not take the gap for silence of one arm.
    pub epochs_dropped: u64,
    /// Requests without an answer, by endpoint.
    pub in_flight: Vec<InFlight>,
}

/// The controller's answer to a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReportAck {
    /// The boot the number is about; a proxy of another boot ignores the answer.
    pub boot: BootId,
    /// Final epochs up to this number, and none after it, are safe with the controller. 0: none yet.
    pub acknowledged: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_buckets_of_the_judge_vectors() {
        let cases = [
            (50, 0),
            (100, 0),
            (102, 0),
            (103, 1),
            (200, 32),
            (80_000, 308),
            (323_050, 373),
            (1_000_000, 425),
            (1_000_000_000, 639),
            (u64::MAX, 639),
        ];
        for (us, bucket) in cases {
            assert_eq!(latency_bucket(us), bucket, "{us} us");
        }
    }

    #[test]
    fn counts_every_outcome_but_ok_as_bad() {
        let cell = Cell {
            route: "web".into(),
            arm: Arm::Canary,
            release: "v2".into(),
            endpoint: None,
            group: 0,
            chosen: Chosen::Weight,
            requests: 31,
            unfinished: 0,
            outcomes: [16, 8, 4, 2, 1],
            failed_to_user: 0,
            latency: vec![],
            kinds: BTreeMap::new(),
        };
        assert_eq!(cell.bad(), 15);
        let text = serde_json::to_string(&cell).unwrap();
        assert_eq!(serde_json::from_str::<Cell>(&text).unwrap(), cell);
    }
}

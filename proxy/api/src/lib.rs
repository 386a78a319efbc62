//! All that the control plane and the data plane share.
//!
//! Two documents cross between them. A [`RouteTable`] goes from the controller to every proxy and says where requests
//! go; a [`Report`] goes back and says what became of them. Both are JSON. A table is swapped whole and numbered by a
//! [`Generation`] that only grows; a report repeats what was not acknowledged, so that losing one loses nothing.
//!
//! Start with [`table`], then [`report`].

pub mod report;
pub mod table;

/// The code of the problem document (RFC 9457) that a controller answers in the clear where it speaks TLS.
pub const TLS_REQUIRED: &str = "tls_required";

pub use report::{
    Arm, BootId, Cell, Chosen, Epoch, InFlight, KIND_BYTES_MAX, KIND_NONE, KIND_OTHER, KINDS_MAX,
    LATENCY_BUCKETS, Outcome, Report, ReportAck, latency_bucket,
};
pub use table::{
    BasisPoints, Endpoint, Generation, Limits, Match, Protocol, Route, RouteTable, Shield, Sticky,
    TableError, Timeouts, Transport, Upstream, UpstreamTls,
};

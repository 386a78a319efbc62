//! The times without a stream: what was tweeted then may be missing.

use std::time::Duration;

use prometheus::{Counter, IntCounter};
use rollout::Timestamp;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::telemetry::Telemetry;

/// The gap that is open, if one is, and the counts of all.
#[derive(Debug)]
pub(super) struct Gap {
    /// When the stream was last heard of, or when we started.
    heard: (Instant, Timestamp),
    /// Up to where the open gap is counted.
    counted: Option<Instant>,
    ever_connected: bool,
    gaps: IntCounter,
    seconds: Counter,
}

impl Gap {
    pub(super) fn new(telemetry: &Telemetry, now: Timestamp) -> Self {
        Self {
            heard: (Instant::now(), now),
            counted: None,
            ever_connected: false,
            gaps: telemetry.counter(
                "pipeline_source_gaps_total",
                "Times without the stream, in which records may have been missed.",
            ),
            seconds: telemetry.seconds(
                "pipeline_source_gap_seconds_total",
                "How long they lasted, the open one included.",
            ),
        }
    }

    /// The stream was heard of.
    pub(super) fn seen(&mut self, now: Timestamp) {
        self.heard = (Instant::now(), now);
    }

    /// The stream may have dropped records since then, although it was heard of later.
    pub(super) fn missed_since(&mut self, then: (Instant, Timestamp)) {
        if then.0 < self.heard.0 {
            self.heard = then;
        }
    }

    /// There is no stream. The gap began when it was last heard of, which may be a while ago.
    pub(super) fn open(&mut self) {
        if self.counted.is_some() {
            self.grow();
            return;
        }
        let (at, from) = self.heard;
        self.gaps.inc();
        self.counted = Some(at);
        warn!(%from, "x: a gap began: what is tweeted from now on may be missed");
        self.grow();
    }

    /// Counts an open gap up to now, so that a long one is seen before it ends.
    pub(super) fn grow(&mut self) {
        if let Some(counted) = &mut self.counted {
            let now = Instant::now();
            self.seconds.inc_by((now - *counted).as_secs_f64());
            *counted = now;
        }
    }

    /// The stream is there.
    pub(super) fn close(&mut self, now: Timestamp) {
        self.grow();
        let (at, from) = self.heard;
        if self.counted.take().is_some() {
            let seconds = at.elapsed().as_secs_f64();
            info!(%from, to = %now, seconds, "x: the gap is over");
        }
        self.ever_connected = true;
        self.seen(now);
    }

    /// How long the open gap is. `None` before the first connection: nobody knows how long nobody listened.
    pub(super) fn so_far(&self) -> Option<Duration> {
        self.ever_connected.then(|| self.heard.0.elapsed())
    }
}

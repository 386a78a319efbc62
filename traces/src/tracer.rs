//! Whether a request is recorded, and its span.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use http::header::HeaderMap;
use opentelemetry::trace::{
    Span as _, SpanContext, SpanKind, Status, TraceContextExt, TraceFlags, TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracer};

use crate::args::Share;
use crate::parent::{TRACE_STATE, TraceParent};

/// Makes spans. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracer {
    tracer: SdkTracer,
    /// Of new traces.
    share: Share,
}

/// What a span is, seen from its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It answers a request.
    Server,
    /// It sends a request, and waits for the answer.
    Client,
}

impl From<Kind> for SpanKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Server => Self::Server,
            Kind::Client => Self::Client,
        }
    }
}

impl Tracer {
    /// Spans go to that provider; its sampler does as it is told.
    pub(crate) fn new(tracer: SdkTracer, share: Share) -> Self {
        Self { tracer, share }
    }

    /// Begins the span of a request with these fields, if its trace is recorded; and makes them the fields for whoever is
    /// asked next on its behalf.
    ///
    /// - A trace that is recorded goes on: the span's parent is the one that sent the request, and the next one's is the span.
    /// - One that is not recorded is passed on as it came. That costs the reading of the field, and no more.
    /// - Without a trace, or with one that cannot be read, a new one begins. Chance decides whether it is recorded; the next
    ///   ones are told either way, so that they need not decide again.
    pub fn begin(
        &self,
        headers: &mut HeaderMap,
        kind: Kind,
        name: impl Into<Cow<'static, str>>,
    ) -> Option<Span> {
        let context = match TraceParent::of(headers) {
            Some(parent) if !parent.is_sampled() => return None,
            Some(parent) => {
                let remote = SpanContext::new(
                    parent.trace(),
                    parent.span(),
                    TraceFlags::SAMPLED,
                    true,
                    state_of(headers),
                );
                Context::new().with_remote_span_context(remote)
            }
            None => {
                // It belonged to a trace that nobody can read.
                headers.remove(TRACE_STATE);
                if !self.share.takes_one() {
                    let ids = RandomIdGenerator::default();
                    let parent = TraceParent::new(ids.new_trace_id(), ids.new_span_id(), false);
                    parent.insert_into(headers);
                    return None;
                }
                Context::new()
            }
        };
        let builder = self.tracer.span_builder(name).with_kind(kind.into());
        let span = self.tracer.build_with_context(builder, &context);
        let at = span.span_context();
        if !at.is_valid() {
            // The program ends, and nothing is recorded any more.
            return None;
        }
        let at = TraceParent::new(at.trace_id(), at.span_id(), true);
        at.insert_into(headers);
        Some(Span { span, at })
    }
}

/// Longest list of what tracing systems added for themselves that a span holds. Whoever passes it on is to pass on so much at
/// least (W3C Trace Context, "tracestate Limits").
const STATE_BYTES_MAX: usize = 512;

/// What tracing systems added for themselves. A list that cannot be read, or is longer than [`STATE_BYTES_MAX`], is left out of
/// the span; it is passed on as it is.
fn state_of(headers: &HeaderMap) -> TraceState {
    headers
        .get(TRACE_STATE)
        .filter(|field| field.len() <= STATE_BYTES_MAX)
        .and_then(|field| field.to_str().ok())
        .and_then(|list| TraceState::from_str(list).ok())
        .unwrap_or_default()
}

/// What is recorded of one request. It ends when it is dropped.
pub struct Span {
    span: opentelemetry_sdk::trace::Span,
    at: TraceParent,
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Span").field(&self.at).finish()
    }
}

impl Span {
    /// Where it stands: what it sends says that it comes from there.
    #[must_use]
    pub fn at(&self) -> TraceParent {
        self.at
    }

    /// Gives it another name, once more is known. Names are few: no ids, no paths.
    pub fn rename(&mut self, name: impl Into<Cow<'static, str>>) {
        self.span.update_name(name.into());
    }

    /// Says more about it. Once for each key; values are to be short.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.span.set_attribute(KeyValue::new(key, value));
    }

    /// It failed, for that reason: a word of few, not a sentence.
    pub fn fail(&mut self, reason: impl Into<Cow<'static, str>>) {
        let reason = reason.into();
        self.set("error.type", reason.to_string());
        self.span.set_status(Status::error(reason));
    }
}

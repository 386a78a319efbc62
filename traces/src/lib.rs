//! Traces: which one a request belongs to, and what became of it, told to a collector.
//!
//! Where a request comes from stands in its fields `traceparent` and `tracestate` (W3C Trace Context,
//! <https://www.w3.org/TR/trace-context/>): [`TraceParent`] reads and writes the first. A [`Tracer`] decides whether a request
//! is recorded, makes its [`Span`], and puts it into the fields for whoever is asked next. [`Traces`] sends finished spans to a
//! collector by OTLP over HTTP; [`Args`] are its options.
//!
//! Nobody waits for a collector: spans wait in a queue of limited length for a thread of their own, and what does not fit, or
//! cannot be sent, is lost and counted. TLS, passwords and other protocols are left to a collector beside the program.

mod args;
mod collector;
mod export;
mod parent;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tracer;

pub use args::{Args, Config, ConfigError, Share};
pub use export::{Service, StartError, Traces};
pub use parent::TraceParent;
pub use tracer::{Kind, Span, Tracer};

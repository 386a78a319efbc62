//! The way of finished spans: a queue of limited length, a thread of its own, a collector.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData,
    SpanExporter, SpanProcessor,
};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::args::{Config, Share};
use crate::collector::{BATCH_MAX, Collector, Trouble};
use crate::tracer::Tracer;

/// Spans that wait for the collector, with those that are on their way. A span of ours takes about 1 KiB, so 8 MiB; at
/// 1 000 spans a second a collector may be away for eight seconds before any is lost.
const WAITING_MAX: usize = 8_192;

/// Spans of a batch: about 256 KiB. A batch that is full goes at once.
const BATCH_SPANS: usize = 512;

/// How long a span waits for others of its batch.
const BATCH_EVERY: Duration = Duration::from_secs(1);

/// Longest wait for the last spans when the program ends. Two batches can be sent in it also to a slow collector.
const END_MAX: Duration = Duration::from_secs(5);

/// Most attributes of a span. Ours have less than 20.
const ATTRIBUTES_MAX: u32 = 32;

/// Whose spans these are: the attributes of the resource, by the semantic conventions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What the program is for others, such as `friday-proxy`: `service.name`.
    pub name: String,
    /// Which version or release of it runs: `service.version`.
    pub version: String,
    /// Which of several that run: `service.instance.id`. Empty for a name that chance gives.
    pub instance: String,
}

/// Why no traces are recorded.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The exporter cannot be made of what the environment says.
    #[error("traces cannot be sent; see --otlp-endpoint and the variables OTEL_EXPORTER_OTLP_…")]
    Exporter(#[source] ExporterBuildError),
}

/// What sends spans to a collector, as long as the program runs.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    share: Share,
    waiting: Arc<Waiting>,
}

impl Traces {
    /// Starts the thread that sends. The collector need not be there.
    ///
    /// # Errors
    /// The environment asks for what is not there, such as compression.
    pub fn start(config: &Config, service: &Service) -> Result<Self, StartError> {
        let collector = Collector::default();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(collector.clone())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&config.url)
            .with_timeout(BATCH_MAX)
            .build()
            .map_err(StartError::Exporter)?;
        let waiting = Arc::<Waiting>::default();
        let exporter = Exporter {
            exporter,
            collector,
            waiting: Arc::clone(&waiting),
        };
        let batches = BatchConfigBuilder::default()
            // Never reached: whoever hands spans over counts them.
            .with_max_queue_size(WAITING_MAX)
            .with_max_export_batch_size(BATCH_SPANS)
            .with_scheduled_delay(BATCH_EVERY)
            .build();
        let processor = Processor {
            batches: BatchSpanProcessor::new(exporter, batches),
            waiting: Arc::clone(&waiting),
        };
        let instance = match service.instance.as_str() {
            "" => format!("{:016x}", rand::random::<u64>()),
            instance => instance.to_owned(),
        };
        let resource = Resource::builder()
            .with_attributes([
                KeyValue::new("service.name", service.name.clone()),
                KeyValue::new("service.version", service.version.clone()),
                KeyValue::new("service.instance.id", instance),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_resource(resource)
            // New ones are only asked for where they are to be recorded; see `Tracer::begin`.
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_max_attributes_per_span(ATTRIBUTES_MAX)
            .build();
        info!(collector = config.url, "traces: they go to the collector");
        Ok(Self {
            provider,
            share: config.share,
            waiting,
        })
    }

    /// What makes spans.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        Tracer::new(self.provider.tracer("friday"), self.share)
    }

    /// Sends what is left, within five seconds, and says how many spans were lost.
    pub async fn end(self) {
        let provider = self.provider;
        let ended = spawn_blocking(move || provider.shutdown_with_timeout(END_MAX)).await;
        let is_sent = matches!(ended, Ok(Ok(())));
        let lost = self.waiting.lost.load(Ordering::Acquire);
        let left = self.waiting.spans.load(Ordering::Acquire);
        if lost > 0 || left > 0 || !is_sent {
            warn!(lost, left, "traces: ended, and not every span was sent");
        }
    }
}

/// How many spans wait, and how many were lost.
#[derive(Debug, Default)]
struct Waiting {
    /// Handed over, and neither sent nor lost yet.
    spans: AtomicUsize,
    /// Since the start.
    lost: AtomicUsize,
    /// Whether that was said, and it has not got better since.
    is_said: AtomicBool,
}

impl Waiting {
    /// Takes a place for one more, if there is one.
    fn enter(&self) -> bool {
        if self.spans.fetch_add(1, Ordering::AcqRel) < WAITING_MAX {
            return true;
        }
        self.spans.fetch_sub(1, Ordering::AcqRel);
        self.lost.fetch_add(1, Ordering::AcqRel);
        self.say("the collector does not take them as quickly as they come");
        false
    }

    /// So many have gone; or so many of them are lost, for that reason.
    fn leave(&self, spans: usize, lost: Option<(usize, &str)>) {
        let left = self.spans.fetch_sub(spans, Ordering::AcqRel) - spans;
        match lost {
            Some((lost, error)) => {
                self.lost.fetch_add(lost, Ordering::AcqRel);
                self.say(error);
            }
            // Not while it hardly keeps up: two lines for each batch would help nobody.
            None if left < WAITING_MAX / 2 && self.is_said.swap(false, Ordering::AcqRel) => {
                let lost = self.lost.load(Ordering::Acquire);
                info!(lost, "traces: the collector takes spans again");
            }
            None => {}
        }
    }

    /// Once, until it is better.
    fn say(&self, error: &str) {
        if !self.is_said.swap(true, Ordering::AcqRel) {
            let lost = self.lost.load(Ordering::Acquire);
            warn!(
                lost,
                error,
                "traces: spans are lost, and nothing else; this is said once until they are taken again"
            );
        }
    }
}

/// Hands spans over, and drops them rather than wait.
#[derive(Debug)]
struct Processor {
    batches: BatchSpanProcessor,
    waiting: Arc<Waiting>,
}

impl SpanProcessor for Processor {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.enter() {
            self.batches.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, limit: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(limit)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Sends batches, and says what became of them.
#[derive(Debug)]
struct Exporter {
    exporter: opentelemetry_otlp::SpanExporter,
    collector: Collector,
    waiting: Arc<Waiting>,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let sent = self.exporter.export(batch).await;
        let trouble = self.collector.take_trouble();
        match (&sent, trouble) {
            (Ok(()), None) => self.waiting.leave(spans, None),
            (Ok(()), Some(Trouble { words, refused })) => {
                let lost = refused.unwrap_or(0).min(spans);
                self.waiting.leave(spans, Some((lost, &words)));
            }
            (Err(error), trouble) => {
                let words = trouble.map_or_else(|| error.to_string(), |trouble| trouble.words);
                self.waiting.leave(spans, Some((spans, &words)));
            }
        }
        sent
    }

    fn shutdown_with_timeout(&self, limit: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(limit)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderMap;
    use tokio::time::Instant;

    use super::*;
    use crate::testing::{Mood, Receiver};
    use crate::{Kind, TraceParent};

    fn service() -> Service {
        Service {
            name: "a-service".to_owned(),
            version: "1".to_owned(),
            instance: "one".to_owned(),
        }
    }

    fn traces(receiver: &Receiver, share: Share) -> Traces {
        let config = Config::new(&receiver.url(), share).unwrap();
        Traces::start(&config, &service()).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_span_goes_on_with_the_trace_that_the_request_belongs_to() {
        let receiver = Receiver::start(Mood::Well).await;
        let traces = traces(&receiver, Share::ALL);
        let tracer = traces.tracer();
        let mut headers = HeaderMap::new();
        let outer = tracer.begin(&mut headers, Kind::Client, "outer").unwrap();
        assert_eq!(TraceParent::of(&headers), Some(outer.at()));
        let mut inner = tracer.begin(&mut headers, Kind::Server, "inner").unwrap();
        assert_eq!(TraceParent::of(&headers), Some(inner.at()));
        inner.set("key", "value");
        inner.fail("timeout");
        let (outer_at, inner_at) = (outer.at(), inner.at());
        drop((inner, outer));
        traces.end().await;

        let spans = receiver.spans();
        let [inner, outer] = ["inner", "outer"].map(|name| {
            let found = spans.iter().find(|span| span.name == name);
            found.unwrap_or_else(|| panic!("no {name} among {spans:#?}"))
        });
        assert_eq!(spans.len(), 2);
        assert_eq!(outer.parent, "");
        assert_eq!(outer.trace, outer_at.trace().to_string());
        assert_eq!((&inner.trace, &inner.parent), (&outer.trace, &outer.span));
        assert_eq!(inner.span, inner_at.span().to_string());
        assert_eq!(inner.attribute("key"), "value");
        assert_eq!(inner.attribute("error.type"), "timeout");
        assert!(inner.is_error && !outer.is_error);
        assert_eq!(inner.kind, Kind::Server);
        assert_eq!(outer.kind, Kind::Client);
        assert_eq!(inner.resource("service.name"), "a-service");
        assert_eq!(inner.resource("service.version"), "1");
        assert_eq!(inner.resource("service.instance.id"), "one");
    }

    #[tokio::test]
    async fn what_is_not_recorded_is_passed_on_as_it_came() {
        let receiver = Receiver::start(Mood::Well).await;
        let traces = traces(&receiver, "0.01".parse().unwrap());
        let tracer = traces.tracer();
        let field = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", field.parse().unwrap());
        headers.insert("tracestate", "a=b".parse().unwrap());
        assert!(tracer.begin(&mut headers, Kind::Server, "x").is_none());
        assert_eq!(headers["traceparent"], field);
        assert_eq!(headers["tracestate"], "a=b");

        // Nobody can read it: a new one. One in ten thousand of those is recorded.
        let mut recorded = 0;
        for _ in 0..1_000 {
            headers.insert("traceparent", "00-nonsense".parse().unwrap());
            headers.insert("tracestate", "a=b".parse().unwrap());
            let span = tracer.begin(&mut headers, Kind::Server, "x");
            recorded += usize::from(span.is_some());
            let next = TraceParent::of(&headers).unwrap();
            assert_eq!(next.is_sampled(), span.is_some());
            assert!(!headers.contains_key("tracestate"));
        }
        assert!(recorded < 20, "{recorded} of 1000");
        traces.end().await;
        assert_eq!(receiver.spans().len(), recorded);
    }

    #[tokio::test]
    async fn a_span_holds_no_long_list_of_other_tracing_systems() {
        let receiver = Receiver::start(Mood::Well).await;
        let traces = traces(&receiver, Share::ALL);
        let tracer = traces.tracer();
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for (bytes, is_held) in [(3, true), (512, true), (513, false), (6_000, false)] {
            // Members that can be read, as long as they may be by far.
            let list = (0..bytes)
                .map(|at| match at % 250 {
                    0 => char::from(b'a' + u8::try_from(at / 250).unwrap()),
                    1 => '=',
                    249 => ',',
                    _ => 'x',
                })
                .collect::<String>();
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", parent.parse().unwrap());
            headers.insert("tracestate", list.parse().unwrap());
            let mut span = tracer.begin(&mut headers, Kind::Server, "x").unwrap();
            span.set("held", is_held);
            span.set("list", list.clone());
            assert_eq!(headers["tracestate"], list, "passed on as it came");
        }
        traces.end().await;
        let spans = receiver.spans();
        assert_eq!(spans.len(), 4);
        for span in spans {
            let is_held = span.attribute("held") == "true";
            let list = span.attribute("list");
            assert_eq!(span.state, if is_held { list } else { "" });
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn spans_that_a_collector_refuses_are_lost_also_if_it_takes_the_others() {
        let receiver = Receiver::start(Mood::Picky).await;
        let traces = traces(&receiver, Share::ALL);
        let tracer = traces.tracer();
        for name in ["refused", "taken", "refused", "taken", "taken"] {
            drop(tracer.begin(&mut HeaderMap::new(), Kind::Server, name));
        }
        let waiting = Arc::clone(&traces.waiting);
        traces.end().await;
        assert_eq!(receiver.spans().len(), 3);
        assert_eq!(waiting.lost.load(Ordering::Acquire), 2);
        assert_eq!(waiting.spans.load(Ordering::Acquire), 0);
        assert!(waiting.is_said.load(Ordering::Acquire));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_collector_that_is_no_good_costs_spans_and_no_time() {
        for mood in [Mood::Away, Mood::Refusing, Mood::Silent] {
            let receiver = Receiver::start(mood).await;
            let traces = traces(&receiver, Share::ALL);
            let tracer = traces.tracer();
            let began = Instant::now();
            for _ in 0..3 * WAITING_MAX {
                drop(tracer.begin(&mut HeaderMap::new(), Kind::Server, "x"));
            }
            let took = began.elapsed();
            assert!(took < Duration::from_secs(5), "{mood:?}: {took:?}");
            let waiting = traces.waiting.spans.load(Ordering::Acquire);
            assert!(waiting <= WAITING_MAX, "{mood:?}: {waiting}");
            let began = Instant::now();
            traces.end().await;
            let took = began.elapsed();
            assert!(took < 2 * END_MAX, "{mood:?}: ended after {took:?}");
            assert_eq!(receiver.spans().len(), 0);
        }
    }
}

//! How a collector is spoken to: one connection for each batch, in the clear, within a limit of time.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError, ResponseBodyTooLarge};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest time for a batch, from the connection to the end of the answer. A collector is near; one that takes longer gets
/// fewer spans.
pub(crate) const BATCH_MAX: Duration = Duration::from_secs(5);

/// Longest answer. It says how many spans were refused, and why.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// As much of a collector's reasons is said.
const WHY_BYTES_MAX: usize = 1_024;

/// The way to a collector, for the SDK's exporter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Collector {
    /// What went wrong the last time: the exporter says only that something did, or that all is well.
    trouble: Arc<Mutex<Option<Trouble>>>,
}

/// What went wrong with a batch.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// In words.
    pub(crate) words: String,
    /// So many of its spans the collector refused, while it took the others; `None` if it took none.
    pub(crate) refused: Option<usize>,
}

impl Collector {
    /// What went wrong the last time, if anything did since it was asked.
    pub(crate) fn take_trouble(&self) -> Option<Trouble> {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.take()
    }

    fn note(&self, words: String, refused: Option<usize>) {
        let trouble = Trouble { words, refused };
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
    }
}

#[async_trait]
impl HttpClient for Collector {
    /// Sends a batch. It is called on the exporter's own thread, which has no runtime and waits for nothing else; so it blocks.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = block_on(async {
            match timeout(BATCH_MAX, send(request)).await {
                Ok(sent) => sent,
                Err(_) => Err(format!("no answer within {BATCH_MAX:?}").into()),
            }
        });
        match &sent {
            Ok(answer) if answer.status().is_success() => {
                if let Some((refused, words)) = refused(answer.body()) {
                    self.note(words, Some(refused));
                }
            }
            Ok(answer) => self.note(format!("it answered {}", answer.status()), None),
            Err(error) => self.note(chain(error.as_ref()), None),
        }
        sent
    }
}

/// Runs to the end of it on a runtime of its own: a few microseconds for each batch, and nothing of the program that is traced
/// has to go on for it, not even while that ends.
fn block_on<T>(work: impl Future<Output = Result<T, HttpError>>) -> Result<T, HttpError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let done = runtime.block_on(work);
    // A name that is still being looked up is nobody's concern any more.
    runtime.shutdown_background();
    done
}

async fn send(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut head, body) = request.into_parts();
    let authority = head
        .uri
        .authority()
        .ok_or("the collector's address has no host")?;
    let address = format!(
        "{}:{}",
        authority.host(),
        authority.port_u16().unwrap_or(80)
    );
    let host = HeaderValue::from_str(authority.as_str())?;
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = path.parse::<Uri>()?;
    head.headers.insert(HOST, host);
    head.headers
        .insert(CONNECTION, HeaderValue::from_static("close"));

    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let request = Request::from_parts(head, Full::new(body));
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| -> HttpError {
            if error.is::<LengthLimitError>() {
                Box::new(ResponseBodyTooLarge::new())
            } else {
                error
            }
        })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection has ended; what it brought is still to be read.
        ended = connection => {
            ended?;
            exchange.await
        }
    }
}

/// How many spans of a batch a collector refused with that answer, and why: "partial success" of OTLP
/// (<https://opentelemetry.io/docs/specs/otlp/#partial-success-1>). They are not to be sent again. An answer that cannot be read
/// refuses none.
fn refused(answer: &[u8]) -> Option<(usize, String)> {
    let answer = ExportTraceServiceResponse::decode(answer).ok()?;
    let partial = answer.partial_success?;
    let refused = usize::try_from(partial.rejected_spans).unwrap_or(0);
    let why = match partial.error_message.as_str() {
        "" => "and does not say why",
        why => &why[..why.floor_char_boundary(WHY_BYTES_MAX)],
    };
    (refused > 0).then(|| (refused, format!("it refuses some of a batch: {why}")))
}

/// An error with what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

//! What the fuzzing targets of `fuzz/` look into: compiled with the feature `fuzzing` alone, and in no program.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use proxy_api::RouteTable;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{sleep, timeout};

use crate::body::{self, Answer, ClientFault, Collect, Outgoing};
use crate::forward::set_framing;
use crate::headers::Present;
use crate::refusal::Refusal;
use crate::{headers, lock, retry, routes};

/// On a paused clock this passes when nobody has anything left to do.
const IDLE: Duration = Duration::from_secs(1);

/// Room in a pipe, so that back-pressure is met, too.
const PIPE_BYTES: usize = 4 << 10;

/// The table of a file, or what is wrong with it.
///
/// # Errors
/// A text for people.
pub fn read_table(text: &[u8]) -> Result<RouteTable, String> {
    routes::parse(Path::new("routes.json"), text).map_err(|error| error.to_string())
}

/// What went to an upstream by one connection.
#[derive(Debug, Clone)]
pub struct Passed {
    /// All of it.
    pub bytes: Vec<u8>,
    /// How long the request's body was, as the proxy read it.
    pub body_bytes: u64,
    /// Whether the body failed on its way: then it must not look whole.
    pub is_broken: bool,
}

/// What upstreams get of what a client sends on one connection before it hangs up, on a paused clock. An upstream answers
/// as soon as `is_whole` takes what it has for a request.
pub async fn pass(client: &[u8], is_whole: fn(&[u8]) -> bool) -> Vec<Passed> {
    let all = Arc::<Mutex<Vec<Passed>>>::default();
    let noted = Arc::clone(&all);
    let service = service_fn(move |request| {
        let noted = Arc::clone(&noted);
        async move { Ok::<_, Infallible>(answer(request, is_whole, noted).await) }
    });
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().max_buf_size(64 << 10);
    http.http2().max_header_list_size(64 << 10);
    let (near, far) = duplex(PIPE_BYTES);
    let (mut from, mut to) = tokio::io::split(near);
    tokio::spawn(async move {
        let mut answers = Vec::new();
        while let Ok(1..) = from.read_buf(&mut answers).await {
            answers.clear();
        }
    });
    let client = client.to_vec();
    tokio::spawn(async move {
        // The proxy may close before it has read all.
        drop(to.write_all(&client).await);
        sleep(IDLE).await;
        drop(to.shutdown().await);
    });
    // Whether it ends by itself or with an error is the client's affair.
    drop(timeout(IDLE * 2, http.serve_connection(TokioIo::new(far), service)).await);
    sleep(IDLE).await;
    std::mem::take(&mut lock(&all))
}

/// The proxy's way of a request, with a connection of its own.
async fn answer(
    request: Request<Incoming>,
    is_whole: fn(&[u8]) -> bool,
    noted: Arc<Mutex<Vec<Passed>>>,
) -> Response<Answer> {
    let (mut head, incoming) = request.into_parts();
    let present = Present::of(&head.headers);
    if let Err(refusal) = headers::check(&head, present) {
        return refusal.response();
    }
    if head.method == Method::CONNECT {
        return Refusal::Connecting.response();
    }
    let collect = match retry::is_repeatable(&head.method, &head.headers) {
        true => Collect::Whole,
        false => Collect::Nothing,
    };
    let body = match body::take(incoming, collect, 1 << 10, 1 << 20).await {
        Ok(body) => body,
        Err(fault) => return Refusal::from(fault).response(),
    };
    headers::take_wish(&mut head.headers, present);
    let [client, proto] = ["127.0.0.1", "http"].map(HeaderValue::from_static);
    headers::for_upstream(&mut head, present, &client, &proto);
    set_framing(&mut head.headers, present, &body);

    let count = Arc::<Count>::default();
    let (near, far) = duplex(PIPE_BYTES);
    tokio::spawn(record(far, is_whole, Arc::clone(&count), noted));
    let Ok((mut sender, driver)) = http1::handshake(TokioIo::new(near)).await else {
        return Refusal::Connect.response();
    };
    let request = Request::from_parts(head, Counted { body, count });
    let sent = async move { sender.send_request(request).await.map(drop) };
    // Together, so that all of it ends when the client goes away.
    match tokio::join!(sent, driver) {
        (Ok(()), _) => Response::new(Answer::own("ok")),
        (Err(_), _) => Refusal::Reset.response(),
    }
}

async fn record(
    mut stream: DuplexStream,
    is_whole: fn(&[u8]) -> bool,
    count: Arc<Count>,
    noted: Arc<Mutex<Vec<Passed>>>,
) {
    let mut bytes = Vec::new();
    let mut answered = false;
    while let Ok(1..) = stream.read_buf(&mut bytes).await {
        if !answered && is_whole(&bytes) {
            answered = true;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            // The proxy may be gone.
            drop(stream.write_all(answer).await);
        }
    }
    lock(&noted).push(Passed {
        bytes,
        body_bytes: count.bytes.load(Ordering::SeqCst),
        is_broken: count.is_broken.load(Ordering::SeqCst),
    });
}

#[derive(Debug, Default)]
struct Count {
    bytes: AtomicU64,
    is_broken: AtomicBool,
}

/// A body that counts what passes.
struct Counted {
    body: Outgoing,
    count: Arc<Count>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = ClientFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientFault>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.count.bytes.fetch_add(length, Ordering::SeqCst);
            }
            Some(Err(_)) => self.count.is_broken.store(true, Ordering::SeqCst),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

//! One client, from its first byte to its last: HTTP/1.1 or HTTP/2, plain or by TLS, and after an upgrade whatever the
//! two sides agreed on.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tracing::debug;

use crate::body::Answer;
use crate::drain::{CUTTING, Counted, DRAINING, SERVING, Shared};
use crate::forward::{Client, Forward, Tunnel};
use crate::lock;
use crate::refusal::Refusal;
use crate::socket::Socket;
use crate::stream::{Activity, PREFACE_BYTES, Stream, Watched};

/// What the requests of one connection share.
#[derive(Debug)]
pub(crate) struct Session {
    forward: Arc<Forward>,
    shared: Arc<Shared>,
    client: Client,
    activity: Arc<Activity>,
    /// Requests so far; wraps.
    asked: AtomicU32,
    /// Those whose answer has not ended.
    answering: AtomicU32,
    /// Of HTTP/1.1, which has one at a time.
    last: Last,
    /// The answers on their way, to see which of them the client does not take.
    answers: Mutex<Vec<Weak<Turn>>>,
    /// What an upgrade leaves behind, to be joined with the client's side when HTTP is over.
    tunnel: Mutex<Option<Tunnel>>,
    /// Its place among all connections.
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Session {
    /// A client that has said nothing yet.
    pub(crate) fn new(
        forward: Arc<Forward>,
        shared: Arc<Shared>,
        address: SocketAddr,
        place: Option<OwnedSemaphorePermit>,
    ) -> Self {
        shared.connections.fetch_add(1, Ordering::AcqRel);
        let is_tls = shared.certificate.is_some();
        Self {
            forward,
            shared,
            client: Client::new(address.ip(), is_tls),
            activity: Arc::default(),
            asked: AtomicU32::new(0),
            answering: AtomicU32::new(0),
            last: Last::default(),
            answers: Mutex::default(),
            tunnel: Mutex::default(),
            _place: place,
        }
    }

    /// Serves the client until one of the two goes.
    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream) {
        // Small answers must not wait for an acknowledgement. Without it things are slower, not wrong.
        drop(stream.set_nodelay(true));
        let stream = Socket::new(stream);
        stream.break_when_client_is_gone();
        let stream = match &self.shared.certificate {
            None => Stream::Plain(stream),
            Some(certificate) => {
                let head_max = self.shared.clients.head_max;
                match Box::pin(timeout(head_max, certificate.accept(stream))).await {
                    Ok(Ok(stream)) => Stream::Tls(Box::new(stream.into())),
                    Ok(Err(error)) => {
                        debug!(%error, "a client did not agree on TLS");
                        self.forward.telemetry.refused(Refusal::Tls);
                        return;
                    }
                    Err(_) => {
                        self.forward.telemetry.refused(Refusal::HeadTimeout);
                        return;
                    }
                }
            }
        };
        let is_h2 = stream.is_h2();
        let stream = Watched::new(stream, Arc::clone(&self.activity));
        // Boxed, here and below: an idle client of HTTP/1.1 should not carry the room that HTTP/2 and requests need, and a
        // future that awaits another by value has its room twice.
        if is_h2 {
            Box::pin(self.serve_h2(stream)).await;
        } else {
            Box::pin(self.serve_h1(stream)).await;
        }
    }

    async fn serve_h1(self: Arc<Self>, mut stream: Watched) {
        loop {
            let session = Arc::clone(&self);
            let service = service_fn(move |request| {
                let session = Arc::clone(&session);
                let request = Box::new(request);
                async move { Ok::<_, Infallible>(session.answer(request).await) }
            });
            let mut connection = http1::Builder::new()
                .max_buf_size(self.shared.clients.head_bytes_max as usize)
                // The buffer alone lets pass what comes in one read beyond it.
                .max_header_size(self.shared.clients.head_bytes_max as usize)
                .max_headers(self.shared.clients.headers_max as usize)
                .serve_connection(TokioIo::new(stream), service);
            let ending = self.drive(&mut connection).await;
            let parts = connection.into_parts();
            drop(parts.service);
            stream = parts.io.into_inner();
            if ending.is_bad() && self.seems_whole() {
                stream.break_when_closed();
            }
            match ending {
                Ending::Quiet => {
                    // Only here is it seen what is left behind a body. From now on all that comes is a head.
                    self.last.has_body.store(false, Ordering::Relaxed);
                    let has_unread = !parts.read_buf.is_empty();
                    self.activity
                        .has_unread
                        .store(has_unread, Ordering::Relaxed);
                    stream = stream.rewound(parts.read_buf);
                    if self.wait(&stream).await {
                        continue;
                    }
                }
                Ending::Over(Ok(())) => {
                    let tunnel = lock(&self.tunnel).take();
                    if let Some(tunnel) = tunnel {
                        Box::pin(self.join(stream.rewound(parts.read_buf), tunnel)).await;
                    }
                }
                Ending::Over(Err(error)) if error.is_parse_version_h2() => {
                    Box::pin(self.serve_h2(stream.rewound(parts.read_buf))).await;
                }
                Ending::Over(Err(error)) => self.note(&error),
                Ending::Cut => {}
                Ending::Refused(refusal) => Box::pin(self.refuse(stream, refusal)).await,
            }
            return;
        }
    }

    /// Whether the client would take half an answer for a whole one, were the connection closed in order: HTTP/1.0 often has
    /// no other end of an answer.
    fn seems_whole(&self) -> bool {
        let is_half = self.last.broke_off.load(Ordering::Relaxed)
            || self.activity.is_blocked.load(Ordering::Relaxed);
        is_half && self.last.is_http10.load(Ordering::Relaxed)
    }

    /// Waits for the next request of a quiet client, without the buffers that HTTP takes, 16 KiB for each client; `false`
    /// if there will be none.
    async fn wait(&self, stream: &Watched) -> bool {
        let last_call = async {
            self.shared.stop.cancelled().await;
            sleep(self.shared.last_call).await;
        };
        tokio::select! {
            biased;
            readable = stream.readable() => readable.is_ok(),
            () = sleep(self.shared.clients.idle_max) => false,
            () = self.shared.cut.cancelled() => false,
            () = last_call => false,
        }
    }

    async fn serve_h2(self: Arc<Self>, stream: Watched) {
        let service = service_fn(|request| {
            let session = Arc::clone(&self);
            let request = Box::new(request);
            async move { Ok::<_, Infallible>(session.answer(request).await) }
        });
        let mut connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(self.shared.clients.head_bytes_max)
            .max_concurrent_streams(STREAMS_MAX)
            .max_pending_accept_reset_streams(RESETS_MAX)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream.of_h2()), service);
        match self.drive(&mut connection).await {
            Ending::Over(Ok(())) | Ending::Cut | Ending::Quiet => {}
            Ending::Over(Err(error)) => self.note(&error),
            Ending::Refused(refusal) => self.forward.telemetry.refused(refusal),
        }
    }

    /// Takes note of a connection that ended badly. A head that could not be read was answered by the HTTP library.
    fn note(&self, error: &hyper::Error) {
        debug!(%error, "a client's connection ended");
        if error.is_parse_too_large() {
            self.forward.telemetry.refused(Refusal::HeadTooLarge);
        } else if error.is_parse() {
            self.forward.telemetry.refused(Refusal::BadRequest);
        }
    }

    /// Says why before the connection is closed; a client that does not listen is not waited for.
    async fn refuse(&self, mut stream: Watched, refusal: Refusal) {
        self.forward.telemetry.refused(refusal);
        if refusal == Refusal::HeadTimeout {
            let text = refusal.last_words("");
            if let Ok(Err(error)) = timeout(GOODBYE_MAX, stream.write_all(text.as_bytes())).await {
                debug!(%error, "a client did not hear why it was refused");
            }
        }
    }

    /// Runs a connection to its end, and looks now and then whether it may go on.
    async fn drive<C: Connection>(&self, connection: &mut C) -> Ending {
        let mut stop = pin!(self.shared.stop.cancelled());
        let mut cut = pin!(self.shared.cut.cancelled());
        let mut is_waiting = false;
        let mut last_call = None;
        let mut patience = Patience::new(self, C::SAYS_GOODBYE);
        poll_fn(|context| {
            if !is_waiting {
                // Once is enough to be woken. Asked each time, they would take locks that all threads share. Both are
                // asked: who comes when the drain has begun must hear of its limit, too.
                let stops = stop.as_mut().poll(context);
                let cuts = cut.as_mut().poll(context);
                is_waiting = stops.is_pending() || cuts.is_pending();
            }
            if let Poll::Ready(ended) = Pin::new(&mut *connection).poll(context) {
                return Poll::Ready(Ending::Over(ended));
            }
            let phase = self.shared.phase.load(Ordering::Acquire);
            if phase == CUTTING {
                return Poll::Ready(Ending::Cut);
            }
            let verdict = patience.look(self, context);
            let is_over = verdict == Verdict::Idle
                || (phase == DRAINING
                    && (C::SAYS_GOODBYE || self.is_late(&mut last_call, context)));
            if patience.told.is_none() && is_over {
                patience.told = Some(Instant::now());
                Pin::new(&mut *connection).graceful_shutdown();
                return Pin::new(&mut *connection).poll(context).map(Ending::Over);
            }
            match verdict {
                Verdict::Quiet if !C::SAYS_GOODBYE && phase == SERVING => {
                    Poll::Ready(Ending::Quiet)
                }
                Verdict::Fine | Verdict::Quiet | Verdict::Idle => Poll::Pending,
                Verdict::Deaf => Poll::Ready(Ending::Cut),
                Verdict::Refused(refusal) => Poll::Ready(Ending::Refused(refusal)),
            }
        })
        .await
    }

    /// Whether the time for a last request is over. Asked for the first time, it begins.
    fn is_late(&self, last_call: &mut Option<Pin<Box<Sleep>>>, context: &mut Context<'_>) -> bool {
        let end = || Box::pin(sleep(self.shared.last_call));
        last_call
            .get_or_insert_with(end)
            .as_mut()
            .poll(context)
            .is_ready()
    }

    /// Takes the request boxed, as a future has room for its arguments once for each function that they pass through.
    async fn answer(self: Arc<Self>, request: Box<Request<Incoming>>) -> Response<Counting> {
        let version = request.version();
        self.activity.has_unread.store(false, Ordering::Relaxed);
        self.last.begins(&request);
        self.asked.fetch_add(1, Ordering::Relaxed);
        let in_flight = InFlight::new(&self);
        let mut answer = self
            .forward
            .answer(&self.client, request, &self.tunnel)
            .await;
        // The client hears of the drain with an answer: so it knows that this request was the last one here.
        if self.shared.phase.load(Ordering::Acquire) == DRAINING
            && version <= Version::HTTP_11
            && answer.status() != StatusCode::SWITCHING_PROTOCOLS
        {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(CONNECTION, close);
        }
        // What is over with its first piece, as most answers are, need not be watched.
        // On HTTP/1.1 the connection itself shows it.
        let turn = (version == Version::HTTP_2 && !answer.body().is_end_stream()).then(|| {
            let turn = Arc::<Turn>::default();
            let mut answers = lock(&self.answers);
            if answers.len() > 2 * STREAMS_MAX as usize {
                answers.retain(|turn| turn.strong_count() > 0);
            }
            answers.push(Arc::downgrade(&turn));
            turn
        });
        answer.map(|answer| Counting {
            answer,
            turn,
            is_whole: false,
            in_flight,
        })
    }

    /// Whether there is an answer of which the client has taken nothing for so many looks.
    fn has_unread_answer(&self, looks: u32) -> bool {
        let mut answers = lock(&self.answers);
        answers.retain(|turn| turn.strong_count() > 0);
        let stalled = |turn: &Weak<Turn>| turn.upgrade().is_some_and(|turn| turn.look() >= looks);
        // All of them are looked at each time.
        answers.iter().filter(|turn| stalled(turn)).count() > 0
    }

    /// Passes bytes between the two sides of an upgraded connection until one of them ends, until nothing passed for too long, or
    /// until the limit of the drain or of its endpoint is over.
    async fn join(&self, mut client: Watched, mut tunnel: Tunnel) {
        let counted = Counted::new(&self.shared.requests);
        let activities = [client.activity(), tunnel.upstream.activity()].map(Arc::clone);
        let silent = silent(activities, self.shared.clients.stream_idle_max);
        let both = copy_bidirectional(&mut client, &mut tunnel.upstream);
        tokio::select! {
            both = both => match both {
                Ok((sent, received)) => debug!(sent, received, "an upgraded connection ended"),
                Err(error) => {
                    debug!(%error, "an upgraded connection broke");
                    tunnel.broke();
                }
            },
            () = self.shared.cut.cancelled() => debug!("an upgraded connection was cut"),
            () = &mut tunnel.gone => debug!("an upgraded connection was cut: its endpoint left"),
            () = silent => {
                debug!("an upgraded connection was cut: nothing passed");
                self.forward.telemetry.refused(Refusal::AnswerStopped);
            }
        }
        drop((tunnel, counted));
    }
}

/// In so many looks the limit of an upgraded connection's silence is noticed.
const SILENCE_LOOKS: u32 = 8;

/// Waits until neither side took anything for so long.
async fn silent(sides: [Arc<Activity>; 2], max: Duration) {
    let writes = || {
        let writes = |side: &Arc<Activity>| side.writes.load(Ordering::Relaxed);
        sides.each_ref().map(writes)
    };
    let mut seen = writes();
    let mut looks = 0;
    while looks < SILENCE_LOOKS {
        sleep(max / SILENCE_LOOKS).await;
        let now = writes();
        looks = if now == seen { looks + 1 } else { 0 };
        seen = now;
    }
}

/// Most requests at a time on one HTTP/2 connection: the usual limit of servers (RFC 9113 wants at least 100).
const STREAMS_MAX: u32 = 250;

/// Most requests that a client may have taken back before they were looked at; more ends its connection
/// (CVE-2023-44487, \"rapid reset\").
const RESETS_MAX: usize = 20;

/// Longest piece of an answer kept for one HTTP/2 request whose client does not read.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// Longest time to say why a connection is closed.
pub(crate) const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// How often a client is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How a connection came to its end.
enum Ending {
    /// Between two requests, for a while at least: the bare connection is enough.
    Quiet,
    /// By itself.
    Over(hyper::Result<()>),
    /// The drain's limit is over, or the client does not take its leave.
    Cut,
    /// The client took too long.
    Refused(Refusal),
}

impl Ending {
    /// Whether an answer may be left that is not all with the client.
    fn is_bad(&self) -> bool {
        match self {
            Self::Over(Err(_)) | Self::Cut | Self::Refused(_) => true,
            Self::Over(Ok(())) | Self::Quiet => false,
        }
    }
}

/// What is to be known of a request of HTTP/1.1 until the next one begins.
#[derive(Debug, Default)]
struct Last {
    /// Whether bytes that were read behind its head may belong to its body.
    has_body: AtomicBool,
    /// Whether its answer ended before its body: only HTTP itself knows where the next request begins.
    is_uploading: AtomicBool,
    /// Whether its answer was given up before its end.
    broke_off: AtomicBool,
    is_http10: AtomicBool,
}

impl Last {
    fn begins(&self, request: &Request<Incoming>) {
        let has_body = !request.body().is_end_stream();
        self.has_body.store(has_body, Ordering::Relaxed);
        self.is_uploading.store(false, Ordering::Relaxed);
        self.broke_off.store(false, Ordering::Relaxed);
        let is_http10 = request.version() == Version::HTTP_10;
        self.is_http10.store(is_http10, Ordering::Relaxed);
    }
}

/// What the two versions of HTTP have in common here.
trait Connection: Future<Output = hyper::Result<()>> + Unpin {
    /// Whether the protocol can say between two requests that there may be no more, and settles what was on its way
    /// then. HTTP/2 does (GOAWAY). HTTP/1.1 says so only in an answer: a client whose next request meets the end of
    /// the connection cannot know whether it was heard.
    const SAYS_GOODBYE: bool;

    /// Present requests are the last.
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<S, F> Connection for http1::Connection<TokioIo<Watched>, S>
where
    S: hyper::service::Service<
            Request<Incoming>,
            Response = Response<Counting>,
            Error = Infallible,
            Future = F,
        >,
    F: Future<Output = Result<Response<Counting>, Infallible>>,
{
    const SAYS_GOODBYE: bool = false;

    fn graceful_shutdown(self: Pin<&mut Self>) {
        http1::Connection::graceful_shutdown(self);
    }
}

impl<S, F> Connection for http2::Connection<TokioIo<Watched>, S, TokioExecutor>
where
    S: hyper::service::Service<
            Request<Incoming>,
            Response = Response<Counting>,
            Error = Infallible,
            Future = F,
        > + Unpin,
    F: Future<Output = Result<Response<Counting>, Infallible>> + Send + 'static,
{
    const SAYS_GOODBYE: bool = true;

    fn graceful_shutdown(self: Pin<&mut Self>) {
        http2::Connection::graceful_shutdown(self);
    }
}

/// Looks at a client now and then: it may be idle for long, but may neither trickle a head nor leave an answer unread, nor
/// stay when it was told to go. One timer for all four, so that a request sets none.
struct Patience {
    timer: Pin<Box<Sleep>>,
    is_set: bool,
    period: Duration,
    /// What comes between two requests need be none: HTTP/2 has frames of its own, such as pings.
    has_frames: bool,
    asked: u32,
    writes: u32,
    /// Whether there was an answer on its way at the last look.
    was_answering: bool,
    /// When the present stretch without a request began.
    idle_since: Instant,
    /// When a request or a write was last seen.
    moved_at: Instant,
    /// When the client was told that its requests so far are the last.
    told: Option<Instant>,
    /// Half a head, or half a preface of HTTP/2, by its number, and when it was first seen.
    trickle: Option<(u32, Instant)>,
    /// When an answer was first seen that is not taken.
    blocked_since: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// It is between two requests, as far as can be told: what was read may have been a body.
    Quiet,
    /// It has had nothing to say for too long.
    Idle,
    /// It was told to go, has nothing more to ask or to take, and does not go. HTTP/2 waits for a sign that GOAWAY was heard,
    /// and before the client's preface it does not even say it.
    Deaf,
    Refused(Refusal),
}

impl Patience {
    fn new(session: &Session, has_frames: bool) -> Self {
        let clients = &session.shared.clients;
        let period = LOOK_INTERVAL.min(clients.head_max).min(clients.idle_max);
        let now = Instant::now();
        Self {
            timer: Box::pin(sleep_until(now + period)),
            is_set: false,
            period,
            has_frames,
            asked: session.asked.load(Ordering::Relaxed),
            writes: session.activity.writes.load(Ordering::Relaxed),
            was_answering: false,
            idle_since: now,
            moved_at: now,
            told: None,
            trickle: None,
            blocked_since: None,
        }
    }

    fn look(&mut self, session: &Session, context: &mut Context<'_>) -> Verdict {
        // Once set it wakes this task by itself.
        if self.is_set && !self.timer.is_elapsed() {
            return Verdict::Fine;
        }
        self.is_set = true;
        let mut verdict = Verdict::Fine;
        // Asked again after it was set, or it would not wake.
        while self.timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            verdict = self.judge(session, now);
            self.timer.as_mut().reset(now + self.period);
        }
        verdict
    }

    fn judge(&mut self, session: &Session, now: Instant) -> Verdict {
        let clients = &session.shared.clients;
        let asked = session.asked.load(Ordering::Relaxed);
        let writes = session.activity.writes.load(Ordering::Relaxed);
        let is_answering = session.answering.load(Ordering::Relaxed) > 0;
        let is_moving = is_answering || asked != self.asked;
        let has_unread = session.activity.has_unread.load(Ordering::Relaxed);
        let heard = session.activity.heard.load(Ordering::Relaxed);
        let is_blocked = session.activity.is_blocked.load(Ordering::Relaxed);
        let since = |is_so: bool, since: Option<Instant>| is_so.then(|| since.unwrap_or(now));
        let trickle = if !self.has_frames {
            (has_unread && !is_moving).then_some(0)
        } else if heard < PREFACE_BYTES {
            Some(0)
        } else {
            // Other requests may well go on meanwhile, and be whole.
            let heads = session.activity.heads.load(Ordering::Relaxed);
            (heads % 2 == 1).then_some(heads)
        };
        self.trickle = trickle.map(|now_seen| match self.trickle {
            Some((seen, since)) if seen == now_seen => (seen, since),
            Some(_) | None => (now_seen, now),
        });
        self.blocked_since = since(is_blocked && writes == self.writes, self.blocked_since);
        if is_moving {
            self.idle_since = now;
        }
        if is_moving || writes != self.writes {
            self.moved_at = now;
        }
        // What is left of a body that nobody wants is read, or refused, in the turn after its answer's end.
        let is_between = !is_moving && !self.was_answering && asked > 0;
        self.asked = asked;
        self.writes = writes;
        self.was_answering = is_answering;
        let has_body = session.last.has_body.load(Ordering::Relaxed);
        let is_uploading = session.last.is_uploading.load(Ordering::Relaxed);
        let for_too_long = |since: Option<Instant>| {
            since.is_some_and(|since| now.saturating_duration_since(since) >= clients.head_max)
        };
        let looks = clients.head_max.div_duration_f64(self.period).ceil() as u32;
        if for_too_long(self.blocked_since) || session.has_unread_answer(looks) {
            Verdict::Refused(Refusal::AnswerUnread)
        } else if for_too_long(self.trickle.map(|(_, since)| since)) {
            Verdict::Refused(Refusal::HeadTimeout)
        } else if for_too_long(self.told.map(|told| told.max(self.moved_at))) {
            Verdict::Deaf
        } else if now.saturating_duration_since(self.idle_since) >= clients.idle_max {
            Verdict::Idle
        } else if is_between && !is_blocked && !is_uploading && (has_body || !has_unread) {
            Verdict::Quiet
        } else {
            Verdict::Fine
        }
    }
}

/// Counts a request until its answer has ended.
#[derive(Debug)]
struct InFlight(Arc<Session>);

impl InFlight {
    fn new(session: &Arc<Session>) -> Self {
        session.answering.fetch_add(1, Ordering::Relaxed);
        session.shared.requests.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(session))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Ordering::Relaxed);
        self.0.shared.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whose turn it is in an answer: the upstream's, while a piece is waited for, or the client's.
#[derive(Debug, Default)]
struct Turn {
    /// How often a piece was asked for.
    asked: AtomicU32,
    is_upstreams: AtomicBool,
    /// `asked` when this was last looked at.
    seen: AtomicU32,
    /// Looks in a row at which it was the client's turn, as the time before.
    stalled: AtomicU32,
}

impl Turn {
    /// For how many looks the client has taken nothing.
    fn look(&self) -> u32 {
        let asked = self.asked.load(Ordering::Relaxed);
        let moved = self.seen.swap(asked, Ordering::Relaxed) != asked;
        if moved || self.is_upstreams.load(Ordering::Relaxed) {
            self.stalled.store(0, Ordering::Relaxed);
            return 0;
        }
        self.stalled.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// An answer that counts as a request in flight until it has ended.
#[derive(Debug)]
struct Counting {
    answer: Answer,
    turn: Option<Arc<Turn>>,
    /// Whether its end has passed, where it does not say so itself.
    is_whole: bool,
    in_flight: InFlight,
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Answer::Relay(relay) = &self.answer {
            let upload = relay.download.upload.as_ref();
            let goes_on = upload.is_some_and(|upload| !upload.has_ended());
            let is_whole = self.is_whole || relay.download.is_end_stream();
            let last = &self.in_flight.0.last;
            last.is_uploading.store(goes_on, Ordering::Relaxed);
            last.broke_off.store(!is_whole, Ordering::Relaxed);
        }
    }
}

impl Body for Counting {
    type Data = Bytes;
    type Error = <Answer as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.answer).poll_frame(context);
        self.is_whole |= match &frame {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if let Some(turn) = &self.turn {
            turn.asked.fetch_add(1, Ordering::Relaxed);
            turn.is_upstreams
                .store(frame.is_pending(), Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}

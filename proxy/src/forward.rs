//! One request from client to upstream and back: choose, send, perhaps once more, count at the end of the answer.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use friday_traces::Tracer;
use http::header::{
    CONTENT_LENGTH, HeaderMap, HeaderValue, SET_COOKIE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use proxy_api::{Arm, Chosen, Generation, Outcome, Sticky};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::access_log::{AccessLog, End, Entry, Whereabouts};
use crate::body::{
    self, Answer, AnswerFault, ClientFault, Collect, Download, Outgoing, Silence, SilenceMax,
    UploadWatch,
};
use crate::headers::{self, Present};
use crate::lock;
use crate::passage::Passage;
use crate::pick::{self, Wish};
use crate::refusal::Refusal;
use crate::retry::{self, Attempts, IDEMPOTENCY_KEY, Next};
use crate::routes::{ActiveRoute, Admitted, Routes};
use crate::signals::{self, Shard, Ticket};
use crate::stream::Watched;
use crate::telemetry::{Mirrored, Telemetry, ToUser};
use crate::upstream::{Connection, Failure, Lease};

/// Takes the requests of one worker to upstreams.
#[derive(Debug)]
pub(crate) struct Forward {
    /// The worker's number, from 0.
    pub(crate) worker: usize,
    /// Most fields of a request's head.
    pub(crate) headers_max: u32,
    /// How long answers may be silent in their middle.
    pub(crate) silence_max: SilenceMax,
    pub(crate) routes: Arc<Routes>,
    /// Where the worker counts.
    pub(crate) shard: Arc<Shard>,
    pub(crate) telemetry: Arc<Telemetry>,
    /// Room for copies of requests.
    pub(crate) mirrored: Arc<Semaphore>,
    /// Where requests are written down, if they are.
    pub(crate) log: Option<Arc<AccessLog>>,
    /// What records traces, if they are.
    pub(crate) tracer: Option<Tracer>,
}

/// Most copies in flight at the same time on one worker.
pub(crate) const MIRRORED_MAX: usize = 128;

/// Who sends requests on a connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// As it stands in `X-Forwarded-For`.
    address: HeaderValue,
    /// As it stands in `X-Forwarded-Proto`.
    proto: HeaderValue,
    group: u8,
}

impl Client {
    /// The client at that address.
    pub(crate) fn new(address: IpAddr, is_tls: bool) -> Self {
        let group = match address {
            IpAddr::V4(v4) => pick::group(&v4.octets()),
            IpAddr::V6(v6) => pick::group(&v6.octets()),
        };
        let address = HeaderValue::try_from(address.to_string())
            .expect("an address is made of digits, letters, dots and colons");
        let proto = HeaderValue::from_static(if is_tls { "https" } else { "http" });
        Self {
            address,
            proto,
            group,
        }
    }
}

/// A request that was routed, until the end of its answer. Dropped, it is counted out everywhere.
#[derive(Debug)]
struct Flight {
    ticket: Ticket,
    admitted: Admitted,
    /// Where it is now; `None` if there is no endpoint.
    lease: Option<Lease>,
}

/// The upstream's side of an upgraded connection.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// Its bytes.
    pub(crate) upstream: Watched,
    /// When the time of its endpoint is over, because it left the table.
    pub(crate) gone: Pin<Box<WaitForCancellationFutureOwned>>,
    lease: Option<Lease>,
    _admitted: Admitted,
}

impl Tunnel {
    /// It broke, on one of its sides.
    pub(crate) fn broke(&self) {
        if let Some(lease) = &self.lease {
            lease.peer().broke_off();
        }
    }
}

impl Flight {
    /// By the table by which it was routed.
    fn route(&self) -> &Arc<ActiveRoute> {
        self.admitted.route()
    }
}

impl Forward {
    /// Answers a request, in the worst case by itself. After an upgrade `tunnel` is what the client is joined with.
    pub(crate) async fn answer(
        &self,
        client: &Client,
        request: Box<Request<Incoming>>,
        tunnel: &Mutex<Option<Tunnel>>,
    ) -> Response<Answer> {
        let mut named = None;
        let mut entry = None;
        let mut passage = None;
        match self
            .forward(
                client,
                request,
                tunnel,
                &mut named,
                &mut entry,
                &mut passage,
            )
            .await
        {
            Ok(response) => response,
            Err(refusal) => {
                self.telemetry.refused(refusal);
                if let Some(mut passage) = passage {
                    passage.refused(refusal);
                }
                if let (Some(log), Some(mut entry)) = (&self.log, entry) {
                    entry.refused(refusal);
                    log.write(&entry);
                }
                let status = refusal.status();
                match named {
                    Some(route) => route.metrics.answered(ToUser::Answered(status)),
                    None => self.telemetry.answered_without_route(status),
                }
                refusal.response()
            }
        }
    }

    /// `named` becomes the route as soon as it is known, for whoever counts a refusal.
    async fn forward(
        &self,
        client: &Client,
        request: Box<Request<Incoming>>,
        tunnel: &Mutex<Option<Tunnel>>,
        named: &mut Option<Arc<ActiveRoute>>,
        entry: &mut Option<Box<Entry>>,
        passage: &mut Option<Box<Passage>>,
    ) -> Result<Response<Answer>, Refusal> {
        let (mut head, incoming) = request.into_parts();
        // Before the tracer adds one of its own. Those of HTTP/1.1 were counted by the library; from HTTP/2 they would come
        // to upstreams that close the connection for it, and any client could have that held against a release.
        let has_too_many = head.headers.len() > self.headers_max as usize
            && headers::count(&head.headers) > self.headers_max as usize;
        if let Some(tracer) = &self.tracer {
            let scheme = client.proto.to_str().unwrap_or_default();
            *passage = Passage::begin(tracer, &mut head, scheme);
        }
        if let Some(log) = &self.log {
            *entry = log.sample(&head, client.address.to_str().unwrap_or_default());
        }
        if has_too_many {
            return Err(Refusal::HeadTooLarge);
        }
        let present = Present::of(&head.headers);
        headers::check(&head, present)?;
        let (mut generation, mut route) = self.find(&head)?;
        if head.method == Method::CONNECT {
            *named = Some(route);
            return Err(Refusal::Connecting);
        }
        let Some(mut admitted) = route.admit(self.worker) else {
            *named = Some(route);
            return Err(Refusal::InFlight);
        };
        let limits = &route.spec.limits;
        let repeatable = retry::is_repeatable(&head.method, &head.headers);
        let mirror = self.wants_mirror(&route);
        let body = if incoming.is_end_stream() {
            Outgoing::whole(Bytes::new())
        } else {
            let collect = if !(repeatable || mirror) || headers::is_grpc(&head.headers) {
                Collect::Nothing
            } else if repeatable {
                Collect::Whole
            } else {
                Collect::AtOnce
            };
            Box::pin(body::take(
                incoming,
                collect,
                limits.replay_bytes_max,
                limits.body_bytes_max,
            ))
            .await
            .inspect_err(|_| *named = Some(Arc::clone(&route)))?
        };

        let key = Key::of(route.spec.sticky.as_ref(), &head.headers, present);
        let group = key.value.as_deref().map_or(client.group, pick::group);
        let wanted = headers::take_wish(&mut head.headers, present);
        let wish = match (wanted, &key.value) {
            (Some(arm), _) => Wish::Arm(arm),
            (None, Some(key)) => Wish::Key(key),
            (None, None) => Wish::None,
        };
        let cookie = key.cookie.filter(|_| wanted.is_none());

        // The table may have changed while the body came, and may change between choosing and counting.
        let mut now = Instant::now();
        let (arm, chosen, mut flight) = loop {
            let canary = route.spec.canary.as_ref().map(|_| route.spec.canary_bp);
            let (arm, chosen) = pick::arm(canary, wish, route.seed, rand::random());
            let side = route.side(arm);
            let target = side.choose(None);
            let request = signals::Request {
                place: target.map_or(&side.nowhere, |target| &target.place),
                group,
                chosen,
                age_max: route.age_max(),
            };
            let peer = target.map(|target| &target.peer);
            let begun = self.shard.begin(generation, request, peer, now);
            if let Ok((ticket, lease)) = begun {
                route.seen.count(arm, chosen);
                let flight = Flight {
                    ticket,
                    admitted,
                    lease,
                };
                break (arm, chosen, flight);
            }
            (generation, route) = self.find(&head).inspect_err(|_| *named = Some(route))?;
            admitted = admitted.by(&route);
        };
        *named = Some(route);
        if let Some(passage) = passage {
            passage.routed(&head.method, flight.ticket.place());
            flight.ticket.traced(passage.at());
        }

        let upgrade = headers::upgrade(&head, present);
        headers::for_upstream(&mut head, present, &client.address, &client.proto);
        let is_upgrade = upgrade.is_some();
        if let Some(protocol) = upgrade {
            headers::set_upgrade(&mut head.headers, protocol);
        }
        if let Some(entry) = entry {
            entry.name(headers::request_id(&head.headers));
        }
        set_framing(&mut head.headers, present, &body);
        let repeatable = repeatable && matches!(body, Outgoing::Whole { .. });
        let mut attempts = Attempts::new(arm, flight.route().spec.shield, repeatable);
        let mut request = Box::new(Request::from_parts(head, body));
        if mirror && arm == Arm::Stable && chosen == Chosen::Weight && !is_upgrade {
            self.mirror(generation, flight.route(), &request);
        }
        loop {
            let spare = if repeatable { again(&request) } else { None };
            let (failure, refusal) = match &flight.lease {
                None => (Failure::Connect(request), Refusal::NoEndpoint),
                Some(lease) => {
                    if let Some(passage) = passage {
                        passage.sent(lease.peer().address().as_str(), attempts.is_shielded());
                    }
                    let connect = flight.route().connect_wait_max();
                    let response = flight.route().response_wait_max();
                    let upload = request.body().watch();
                    if !repeatable {
                        // What cannot be repeated should not meet a connection that was closed just now: let the
                        // thread hear first what came meanwhile.
                        tokio::task::yield_now().await;
                    }
                    let sent = lease
                        .peer()
                        .send(self.worker, request, now, connect, response);
                    // Another protocol that nobody asked for is no answer, and the connection is lost to HTTP.
                    let answer = sent.await.and_then(|(response, connection)| {
                        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                        if switches && !is_upgrade {
                            return Err(Failure::Reset);
                        }
                        Ok((response, connection))
                    });
                    match answer {
                        Ok((response, connection)) => {
                            let is_error = response.status().is_server_error();
                            if !attempts.is_shielded() {
                                if is_error {
                                    flight.ticket.failed(Outcome::ServerError);
                                } else {
                                    flight.ticket.answered();
                                    let header = flight.route().spec.answer_kind.as_deref();
                                    if let Some(name) = header {
                                        let kinds = &flight.ticket.place().kinds;
                                        let kind = kinds.of(response.headers().get(name));
                                        flight.ticket.of_kind(kind);
                                    }
                                }
                            }
                            let next = if is_error {
                                attempts.after(Outcome::ServerError, false, || false)
                            } else {
                                Next::Answer
                            };
                            match (next, spare) {
                                (Next::Shield | Next::Retry, Some(spare)) => {
                                    self.relocate(&mut flight, next, attempts.arm);
                                    request = spare;
                                    now = Instant::now();
                                    continue;
                                }
                                (Next::Answer | Next::Shield | Next::Retry, _) => {}
                            }
                            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                                let shielded = attempts.is_shielded();
                                let upgraded =
                                    self.upgrade(flight, connection, response, tunnel, shielded);
                                let answer = Box::pin(upgraded).await?;
                                if let Some(mut passage) = passage.take() {
                                    passage.answered(answer.status(), End::Ok);
                                }
                                return Ok(answer);
                            }
                            let logged = self.log.clone().zip(entry.take());
                            let relay = Relay::new(
                                flight,
                                connection,
                                upload,
                                attempts.is_shielded(),
                                response.status(),
                                logged,
                                passage.take(),
                            );
                            return Ok(relayed(response, relay, cookie.as_ref(), self.silence_max));
                        }
                        Err(failure) => {
                            let refusal = Refusal::from(&failure);
                            (failure, refusal)
                        }
                    }
                }
            };
            // The client's own fault: nothing to hold against the release, nothing to try again.
            let Some(outcome) = failure.outcome() else {
                return Err(refusal);
            };
            if !attempts.is_shielded() {
                flight.ticket.failed(outcome);
            }
            let elsewhere = self.is_elsewhere(&flight, attempts.arm);
            let may_retry = || flight.route().may_retry(self.worker);
            let next = attempts.after(outcome, elsewhere, may_retry);
            let unsent = match failure {
                Failure::Connect(unsent) => Some(unsent),
                Failure::Reset | Failure::Refused | Failure::Timeout | Failure::Client(_) => spare,
            };
            match (next, unsent) {
                (Next::Retry | Next::Shield, Some(unsent)) => {
                    self.relocate(&mut flight, next, attempts.arm);
                    request = unsent;
                    now = Instant::now();
                }
                (Next::Answer | Next::Retry | Next::Shield, _) => {
                    if refusal.status().is_server_error() {
                        flight.ticket.failed_to_user();
                    }
                    return Err(refusal);
                }
            }
        }
    }

    /// Ends the part of an upgraded connection that is HTTP. The request is over for the judge; its place at the route
    /// and at the endpoint stays taken while the two sides go on talking.
    async fn upgrade(
        &self,
        mut flight: Flight,
        connection: Connection,
        response: Response<Incoming>,
        tunnel: &Mutex<Option<Tunnel>>,
        shielded: bool,
    ) -> Result<Response<Answer>, Refusal> {
        let protocol = response.headers().get(UPGRADE).cloned();
        let gone = Box::pin(connection.peer().gone());
        let Some(upstream) = connection.upgraded().await else {
            if !shielded {
                flight.ticket.failed(Outcome::Reset);
            }
            flight.ticket.failed_to_user();
            return Err(Refusal::Reset);
        };
        let metrics = &flight.route().metrics;
        metrics.answered(ToUser::Answered(StatusCode::SWITCHING_PROTOCOLS));
        let Flight {
            ticket,
            admitted,
            lease,
        } = flight;
        drop(ticket);
        *lock(tunnel) = Some(Tunnel {
            upstream,
            gone,
            lease,
            _admitted: admitted,
        });
        let (mut head, _) = response.into_parts();
        let present = Present::of(&head.headers);
        headers::remove_hop_by_hop(&mut head.headers, present);
        if let Some(protocol) = protocol {
            headers::set_upgrade(&mut head.headers, protocol);
        }
        Ok(Response::from_parts(head, Answer::Own(None)))
    }

    /// The route for a request, with the number of its table.
    fn find(&self, head: &Parts) -> Result<(Generation, Arc<ActiveRoute>), Refusal> {
        let table = self.routes.current();
        let table = table.as_ref().ok_or(Refusal::NoTable)?;
        let route = Arc::clone(table.find(head).ok_or(Refusal::NoRoute)?);
        Ok((table.generation(), route))
    }

    /// Whether a request of the route is one of those to be copied.
    fn wants_mirror(&self, route: &ActiveRoute) -> bool {
        let share = route.spec.mirror_bp;
        !share.is_none()
            && route.canary.is_some()
            && rand::random_range(0..10_000) < share.get()
            && self.may_mirror(route)
    }

    fn may_mirror(&self, route: &ActiveRoute) -> bool {
        let room = self.mirrored.available_permits() > 0;
        if !room {
            route.metrics.mirrored(Mirrored::LeftOut);
        }
        room
    }

    /// Sends a copy of a request to the canary, and throws the answer away. The user's request does not wait for it.
    fn mirror(
        &self,
        generation: Generation,
        route: &Arc<ActiveRoute>,
        request: &Request<Outgoing>,
    ) {
        let target = route.canary.as_ref().and_then(|canary| canary.choose(None));
        let Some(target) = target else {
            return;
        };
        let place = Arc::clone(&self.mirrored).try_acquire_owned();
        // A body that is still on its way has no copy.
        let (Ok(place), Some(mut copy)) = (place, again(request)) else {
            route.metrics.mirrored(Mirrored::LeftOut);
            return;
        };
        let Ok(lease) = self.shard.enter(generation, &target.peer) else {
            return;
        };
        headers::set_mirrored(copy.headers_mut());
        let (worker, route) = (self.worker, Arc::clone(route));
        tokio::spawn(async move {
            let (connect, response) = (route.connect_wait_max(), route.response_wait_max());
            let sent = lease
                .peer()
                .send(worker, copy, Instant::now(), connect, response);
            let outcome = match sent.await {
                Ok((answer, connection)) => {
                    let is_error = answer.status().is_server_error();
                    let mut rest = Download::new(answer.into_body(), connection, None);
                    let read = async { while let Some(Ok(_)) = rest.frame().await {} };
                    // What is too long in coming is cut.
                    let is_read = timeout(response, read).await.is_ok();
                    if is_error || !is_read {
                        Mirrored::Failed
                    } else {
                        Mirrored::Ok
                    }
                }
                Err(_) => Mirrored::Failed,
            };
            route.metrics.mirrored(outcome);
            drop((lease, place));
        });
    }

    /// Whether the release that failed has another endpoint, by the table in force.
    fn is_elsewhere(&self, flight: &Flight, arm: Arm) -> bool {
        let table = self.routes.current();
        let (Some(table), Some(lease)) = (table.as_ref(), &flight.lease) else {
            return false;
        };
        let Some(route) = table.route(&flight.route().name) else {
            return false;
        };
        let side = route.side(arm);
        side.arm == arm
            && side.release == flight.route().side(arm).release
            && side.has_other(lease.peer().address())
    }

    /// Moves a request to where its next attempt is: an endpoint of that arm, by the table in force; if possible not
    /// the one that failed.
    fn relocate(&self, flight: &mut Flight, next: Next, arm: Arm) {
        match next {
            Next::Answer => return,
            Next::Retry => flight.route().metrics.retried(arm),
            Next::Shield => flight.route().metrics.shielded.inc(),
        }
        let failed = flight.lease.take();
        let failed = failed.as_ref().map(|lease| lease.peer().address());
        loop {
            let table = self.routes.current();
            let Some(table) = table.as_ref() else {
                return;
            };
            let Some(route) = table.route(&flight.route().name) else {
                return;
            };
            let side = route.side(arm);
            let Some(target) = side.choose(failed).or_else(|| side.choose(None)) else {
                return;
            };
            if let Ok(lease) = self.shard.enter(table.generation(), &target.peer) {
                flight.lease = Some(lease);
                return;
            }
        }
    }
}

/// What a client is recognised by, on a sticky route.
struct Key {
    value: Option<Vec<u8>>,
    /// The key the client is to be given.
    cookie: Option<[u8; 32]>,
}

impl Key {
    fn of(sticky: Option<&Sticky>, headers: &HeaderMap, present: Present) -> Self {
        let field = |name: &str| headers.get(name).map(|value| value.as_bytes().to_vec());
        let (value, cookie) = match sticky {
            None => (None, None),
            Some(Sticky::Cookie) => match headers::cookie_key(headers, present) {
                Some(key) => (Some(key.into_bytes()), None),
                None => {
                    let key = headers::new_key();
                    (Some(key.to_vec()), Some(key))
                }
            },
            Some(Sticky::Header { name }) => (field(name), None),
            Some(Sticky::Key) => (field(IDEMPOTENCY_KEY), None),
        };
        Self { value, cookie }
    }
}

/// Says how long the body is, by what the body itself knows: what the client said stays on its own connection.
pub(crate) fn set_framing(headers: &mut HeaderMap, present: Present, body: &Outgoing) {
    let had_length = present.has_length() && headers.remove(CONTENT_LENGTH).is_some();
    match body.size_hint().exact() {
        // No body at all, as the client said or as it goes without saying.
        Some(0) if !had_length => {}
        Some(length) => {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        None => {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
}

fn again(request: &Request<Outgoing>) -> Option<Box<Request<Outgoing>>> {
    let mut spare = Box::new(Request::new(request.body().again()?));
    *spare.method_mut() = request.method().clone();
    *spare.uri_mut() = request.uri().clone();
    *spare.version_mut() = request.version();
    *spare.headers_mut() = request.headers().clone();
    Some(spare)
}

fn relayed(
    response: Response<Incoming>,
    relay: impl FnOnce(Incoming) -> Relay,
    cookie: Option<&[u8; 32]>,
    silence_max: SilenceMax,
) -> Response<Answer> {
    let (mut head, incoming) = response.into_parts();
    let has_length = incoming.size_hint().exact().is_some();
    let silence = Silence::new(silence_max.of(has_length, &head.headers));
    let present = Present::of(&head.headers);
    headers::for_client(&mut head.headers, present);
    if let Some(key) = cookie {
        head.headers.append(SET_COOKIE, headers::set_cookie(key));
    }
    head.version = Version::HTTP_11;
    let mut relay = Box::new(relay(incoming));
    relay.download.limit(silence);
    Response::from_parts(head, Answer::Relay(relay))
}

impl From<ClientFault> for Refusal {
    fn from(fault: ClientFault) -> Self {
        match fault {
            ClientFault::TooLarge => Self::BodyTooLarge,
            ClientFault::Broken => Self::BodyBroken,
            ClientFault::Stalled => Self::BodyTimeout,
        }
    }
}

impl From<&Failure> for Refusal {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::Connect(_) | Failure::Refused => Self::Connect,
            Failure::Reset => Self::Reset,
            Failure::Timeout => Self::Timeout,
            Failure::Client(fault) => Self::from(*fault),
        }
    }
}

/// The body of an upstream's answer on its way, and what is to be counted at its end.
#[derive(Debug)]
pub(crate) struct Relay {
    /// What is still to come.
    pub(crate) download: Download,
    /// Until the end was counted.
    flight: Option<Flight>,
    shielded: bool,
    status: StatusCode,
    /// The request's line, and where it goes.
    logged: Option<(Arc<AccessLog>, Box<Entry>)>,
    /// The request's span, if its trace is recorded.
    passage: Option<Box<Passage>>,
}

impl Relay {
    fn new(
        mut flight: Flight,
        connection: Connection,
        upload: Option<Arc<UploadWatch>>,
        shielded: bool,
        status: StatusCode,
        logged: Option<(Arc<AccessLog>, Box<Entry>)>,
        passage: Option<Box<Passage>>,
    ) -> impl FnOnce(Incoming) -> Self {
        if status.is_server_error() {
            flight.ticket.failed_to_user();
        }
        move |incoming| Self {
            download: Download::new(incoming, connection, upload),
            flight: Some(flight),
            shielded,
            status,
            logged,
            passage,
        }
    }

    fn tell(&mut self, flight: &Flight, end: End) {
        if let Some(mut passage) = self.passage.take() {
            passage.answered(self.status, end);
        }
        let Some((log, mut entry)) = self.logged.take() else {
            return;
        };
        let place = flight.ticket.place();
        let endpoint = flight.lease.as_ref().map(|lease| lease.peer().address());
        let place = Whereabouts {
            service: place.route.to_string(),
            arm: place.arm,
            release: place.release.to_string(),
            endpoint: endpoint.map(ToString::to_string),
            shielded: self.shielded,
        };
        entry.answered(self.status, end, place);
        log.write(&entry);
    }

    /// Takes note of what just passed; `None` is the end.
    pub(crate) fn passed(&mut self, frame: Option<&Result<Frame<Bytes>, AnswerFault>>) {
        match frame {
            Some(Err(_)) if self.is_clients_fault() => self.left(),
            // As in `Download`: the last part is the end.
            Some(Ok(frame)) if frame.is_data() && !self.download.is_end_stream() => {}
            Some(Ok(_)) | None => self.ended(),
            Some(Err(fault)) => self.broke(fault),
        }
    }

    fn ended(&mut self) {
        if let Some(flight) = self.flight.take() {
            self.tell(&flight, End::Ok);
            let to_user = ToUser::Answered(self.status);
            flight.route().metrics.answered(to_user);
        }
    }

    fn broke(&mut self, fault: &AnswerFault) {
        let Some(mut flight) = self.flight.take() else {
            return;
        };
        let (outcome, refusal) = match fault {
            AnswerFault::Broken(_) => {
                if let Some(lease) = &flight.lease {
                    lease.peer().broke_off();
                }
                (Some(Outcome::Reset), None)
            }
            AnswerFault::Stopped => (Some(Outcome::Timeout), Some(Refusal::AnswerStopped)),
            // The client's own part in it is as large as the release's.
            AnswerFault::Idle => (None, Some(Refusal::AnswerStopped)),
            AnswerFault::Gone(_) => (None, None),
        };
        self.tell(&flight, End::BrokenOff);
        if let Some(outcome) = outcome.filter(|_| !self.shielded) {
            flight.ticket.failed(outcome);
        }
        flight.ticket.failed_to_user();
        let metrics = &flight.route().metrics;
        if let Some(refusal) = refusal {
            metrics.refused(refusal);
        }
        metrics.answered(ToUser::BrokenOff);
    }

    /// Whether the client broke its body off: that takes the connection to the upstream along, and with it the answer.
    fn is_clients_fault(&self) -> bool {
        let upload = self.download.upload.as_ref();
        upload.is_some_and(|upload| upload.fault().is_some())
    }

    /// The client went away, or we cut it off: no fault of the upstream.
    fn left(&mut self) {
        if let Some(flight) = self.flight.take() {
            self.tell(&flight, End::ClientGone);
            let to_user = ToUser::Answered(self.status);
            flight.route().metrics.answered(to_user);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if self.download.is_end_stream() {
            self.ended();
        } else {
            self.left();
        }
    }
}

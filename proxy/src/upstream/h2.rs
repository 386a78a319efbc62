//! A request to an endpoint of HTTP/2, sent again where the endpoint says that it did nothing with it.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HOST, TRANSFER_ENCODING};
use http::uri::{Authority, Scheme, Uri};
use http::{HeaderMap, Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;
use tracing::debug;

use super::shared::{Seat, SharedWire, Wanted};
use super::wire::{failure_of, still_coming};
use super::{Connection, Failure, H2_PING_INTERVAL, H2_PING_WAIT_MAX, Peer};
use crate::body::{Loan, Outgoing, UploadWatch};
use crate::socket::FullWindow;

/// So often an endpoint may say that it did not process a request, before the request goes elsewhere. One is usual when a
/// connection ends in order; a second says that the endpoint has no room.
const REFUSALS_MAX: u32 = 2;

impl Peer {
    /// As [`Peer::send`].
    pub(super) async fn send_h2(
        self: &Arc<Self>,
        worker: usize,
        request: Request<Outgoing>,
        connect_wait_max: Duration,
        response_wait_max: Duration,
        upload: Option<Arc<UploadWatch>>,
    ) -> Result<(Response<Incoming>, Connection), Failure> {
        let mut request = for_h2(request, &self.dial.scheme());
        let wires = &self.shared[worker % self.shared.len()];
        let mut refused_by: Option<Arc<SharedWire>> = None;
        let mut refusals = 0;
        loop {
            let open = |wanted| self.connect_h2(connect_wait_max, wanted);
            let seat = wires.seat(refused_by.as_ref(), connect_wait_max, open);
            let Some((seat, is_fresh)) = seat.await else {
                return Err(Failure::Connect(Box::new(request)));
            };
            let seat = Arc::new(seat);
            let spare = Spare::of(&mut request, &seat);
            let mut sender = seat.sender();
            let mut answer = pin!(sender.try_send_request(request));
            let mut parts = upload.as_deref().map(UploadWatch::parts);
            let answer = loop {
                match timeout(response_wait_max, &mut answer).await {
                    Ok(answer) => break answer,
                    Err(_) => {
                        still_coming(upload.as_deref(), &mut parts).inspect_err(|failure| {
                            if matches!(failure, Failure::Timeout) {
                                self.answered(false);
                            }
                        })?
                    }
                }
            };
            let failed = match answer {
                Ok(response) => {
                    self.answered(true);
                    spare.settle();
                    return Ok((response, Connection::on_seat(seat, self, worker)));
                }
                Err(failed) => failed,
            };
            let unprocessed = Unprocessed::of(failed.error());
            let failure = match (failure_of(failed, upload.as_deref()), unprocessed) {
                (Failure::Connect(unsent), _) => {
                    seat.retire_wire();
                    if !is_fresh {
                        request = *unsent;
                        continue;
                    }
                    Failure::Connect(unsent)
                }
                (Failure::Reset, Some(unprocessed)) => {
                    debug!(endpoint = %self.address, ?unprocessed, "an upstream did not take a request");
                    match unprocessed {
                        Unprocessed::Refused => {}
                        Unprocessed::GoneAway => seat.retire_wire(),
                    }
                    refused_by = Some(Arc::clone(seat.wire()));
                    refusals += 1;
                    match spare.again() {
                        Some(again) if refusals <= REFUSALS_MAX => {
                            request = again;
                            continue;
                        }
                        Some(again) => Failure::Connect(Box::new(again)),
                        None => Failure::Refused,
                    }
                }
                (
                    failure @ (Failure::Reset
                    | Failure::Refused
                    | Failure::Timeout
                    | Failure::Client(_)),
                    _,
                ) => failure,
            };
            debug!(endpoint = %self.address, ?failure, "an upstream did not answer");
            return Err(failure);
        }
    }

    /// A connection for many requests.
    async fn connect_h2(&self, wait_max: Duration, wanted: Wanted) -> Option<Arc<SharedWire>> {
        let (socket, stream) = self.connect(wait_max, !wanted.is_further).await?;
        // Any of its requests may be a long upload; and it cannot wait for a dead machine as long as the kernel would.
        socket.set_full_window(FullWindow::BorneForAWhile);
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(H2_PING_INTERVAL)
            .keep_alive_timeout(H2_PING_WAIT_MAX)
            .initial_max_send_streams(wanted.streams)
            .handshake(stream)
            .await
            .ok()?;
        Some(SharedWire::new(sender, driver, socket))
    }
}

/// How an endpoint says that it did nothing with a request, whatever its method: then it may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unprocessed {
    /// By REFUSED_STREAM (RFC 9113, 8.7).
    Refused,
    /// By a GOAWAY that counts the request among those it did not get to (RFC 9113, 6.8). The connection takes no more.
    GoneAway,
}

impl Unprocessed {
    fn of(error: &hyper::Error) -> Option<Self> {
        let error: &h2::Error = error.source()?.downcast_ref()?;
        if !error.is_remote() {
            None
        } else if error.is_go_away() {
            // The HTTP library ends with it only the requests above the last one that GOAWAY names.
            Some(Self::GoneAway)
        } else if error.reason() == Some(h2::Reason::REFUSED_STREAM) {
            Some(Self::Refused)
        } else {
            None
        }
    }
}

/// What a request is made of once more.
struct Spare {
    method: Method,
    target: Uri,
    headers: HeaderMap,
    body: SpareBody,
}

enum SpareBody {
    Whole(Option<Outgoing>),
    Lent(Loan),
}

impl Spare {
    /// Of a request that is about to be sent on that seat.
    fn of(request: &mut Request<Outgoing>, seat: &Arc<Seat>) -> Self {
        let body = match request.body_mut().lend(seat) {
            Some(loan) => SpareBody::Lent(loan),
            None => SpareBody::Whole(request.body().again()),
        };
        Self {
            method: request.method().clone(),
            target: request.uri().clone(),
            headers: request.headers().clone(),
            body,
        }
    }

    /// It was answered: nothing of its body need be kept any more.
    fn settle(self) {
        match self.body {
            SpareBody::Lent(loan) => loan.settle(),
            SpareBody::Whole(_) => {}
        }
    }

    /// The request once more; `None` if too much of its body has gone by.
    fn again(self) -> Option<Request<Outgoing>> {
        let body = match self.body {
            SpareBody::Lent(loan) => loan.take_back()?,
            SpareBody::Whole(body) => body?,
        };
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.target;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers;
        Some(request)
    }
}

/// A request as HTTP/2 wants it: with the authority in its target, and without what frames a body in HTTP/1.1. One that was
/// made so before stays as it is.
fn for_h2(mut request: Request<Outgoing>, scheme: &Scheme) -> Request<Outgoing> {
    let headers = request.headers_mut();
    headers.remove(TRANSFER_ENCODING);
    let host = headers.remove(HOST);
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut target = request.uri().clone().into_parts();
    target.scheme = Some(scheme.clone());
    let known = authority.or_else(|| target.authority.take());
    target.authority = Some(known.unwrap_or_else(|| Authority::from_static("localhost")));
    if let Ok(target) = Uri::from_parts(target) {
        *request.uri_mut() = target;
    }
    *request.version_mut() = Version::HTTP_2;
    request
}

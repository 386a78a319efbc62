//! Requests on their way to the loop, and how many of them a turn answers: what goes back has a line of its own, nobody who
//! commands one service fills a line, and neither line keeps the loop from looking at the world.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rollout::{Command, Duration, RolloutId};
use tokio::sync::mpsc;

use super::lease::LeaseRequest;
use super::{REQUESTS_MAX, Reconciler, Request, TICK};
use crate::store::StoreError;

/// After so long a turn takes no further request: then the world is looked at first. Most take a millisecond; one that
/// asks an engine which hangs takes some seconds.
const ANSWERING_MAX: Duration = TICK;

/// Requests about one service that may wait in a line: people and pipelines send one at a time.
const OF_SERVICE_MAX: usize = 16;

/// The loop has ended, or too many requests wait.
#[derive(Debug, thiserror::Error)]
#[error(
    "the loop has ended, or {REQUESTS_MAX} such requests wait for it, or {OF_SERVICE_MAX} about the same service"
)]
pub struct NotTaken;

/// The places of a line: [`REQUESTS_MAX`], and so many of them for each service. Who waits holds its place by what it was
/// given.
#[derive(Debug)]
pub(super) struct Places<T> {
    of_service_max: usize,
    held: Mutex<BTreeMap<String, Arc<T>>>,
}

impl<T: Default> Places<T> {
    pub(super) fn new(of_service_max: usize) -> Self {
        Self {
            of_service_max,
            held: Mutex::default(),
        }
    }

    /// A place, if there is one: what all who wait for this service have in common.
    pub(super) fn take(&self, service: &str) -> Option<Arc<T>> {
        let waiting = |shared: &Arc<T>| Arc::strong_count(shared) - 1;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, shared| waiting(shared) > 0);
        let everywhere: usize = held.values().map(waiting).sum();
        let here = held.get(service).map_or(0, waiting);
        if here >= self.of_service_max || everywhere >= REQUESTS_MAX {
            return None;
        }
        Some(Arc::clone(held.entry(service.to_owned()).or_default()))
    }
}

/// A request that waits, and its place.
#[derive(Debug)]
struct Queued {
    request: Request,
    place: Option<Arc<()>>,
}

impl Queued {
    /// The request, which has left its place.
    fn leave(self) -> Request {
        drop(self.place);
        self.request
    }
}

/// One end of a line.
#[derive(Debug, Clone)]
struct Line {
    sender: mpsc::Sender<Queued>,
    places: Arc<Places<()>>,
}

impl Line {
    fn new() -> (Self, mpsc::Receiver<Queued>) {
        let (sender, waiting) = mpsc::channel(REQUESTS_MAX);
        let places = Arc::new(Places::new(OF_SERVICE_MAX));
        (Self { sender, places }, waiting)
    }
}

/// Where requests go.
#[derive(Debug, Clone)]
pub struct Requests {
    back: Line,
    others: Line,
}

/// Those that wait for the loop.
#[derive(Debug)]
pub(super) struct Waiting {
    back: mpsc::Receiver<Queued>,
    others: mpsc::Receiver<Queued>,
}

/// A line of its own for what goes back, and one for all others; [`REQUESTS_MAX`] fit into each.
pub(super) fn requests() -> (Requests, Waiting) {
    let (back, back_waiting) = Line::new();
    let (others, others_waiting) = Line::new();
    let waiting = Waiting {
        back: back_waiting,
        others: others_waiting,
    };
    (Requests { back, others }, waiting)
}

/// The service that a request is about; alerts are about any.
fn service(request: &Request) -> &str {
    match request {
        Request::Deploy(resolved, _) => resolved.deploy.spec.service.as_str(),
        Request::Undo { service, .. } | Request::Retry { service, .. } => service.as_str(),
        Request::Lock(order, _) => order.key.service.as_str(),
        Request::Order { id, .. } | Request::Lease { id, .. } => of(id),
        Request::Alerts(..) => "",
    }
}

/// The service of a rollout: its name without the number at the end.
fn of(id: &RolloutId) -> &str {
    let split = id.as_str().rsplit_once('-');
    split.map_or(id.as_str(), |(service, _)| service)
}

/// Whether a request takes requests from a canary, or keeps it from more: nothing that adds to it goes before.
fn goes_back(request: &Request) -> bool {
    match request {
        Request::Order { command, .. } => matches!(command, Command::Abort(_) | Command::Pause),
        Request::Lease { request, .. } => matches!(request, LeaseRequest::GiveBack { .. }),
        Request::Undo { .. } | Request::Alerts(..) => true,
        Request::Deploy(..) | Request::Retry { .. } | Request::Lock(..) => false,
    }
}

impl Requests {
    fn line(&self, request: &Request) -> &Line {
        if goes_back(request) {
            &self.back
        } else {
            &self.others
        }
    }

    /// Hands a request to the loop, if there is a place.
    ///
    /// # Errors
    /// There is none, or the loop has ended.
    pub fn try_send(&self, request: Request) -> Result<(), NotTaken> {
        let line = self.line(&request);
        let place = Some(line.places.take(service(&request)).ok_or(NotTaken)?);
        let queued = Queued { request, place };
        line.sender.try_send(queued).map_err(|_| NotTaken)
    }

    /// Hands a request of our own to the loop as soon as there is a place.
    ///
    /// # Errors
    /// The loop has ended.
    pub async fn send(&self, request: Request) -> Result<(), NotTaken> {
        let line = self.line(&request);
        let place = None;
        let queued = Queued { request, place };
        line.sender.send(queued).await.map_err(|_| NotTaken)
    }
}

impl Waiting {
    /// The next request; `None` when nobody is left who could ask.
    ///
    /// # Cancel safety
    /// None is lost.
    pub(super) async fn recv(&mut self) -> Option<Request> {
        tokio::select! {
            biased;
            Some(queued) = self.back.recv() => Some(queued.leave()),
            Some(queued) = self.others.recv() => Some(queued.leave()),
            else => None,
        }
    }
}

impl Reconciler {
    /// Answers who asked: first what goes back, then others, until [`ANSWERING_MAX`] has passed or [`REQUESTS_MAX`] are
    /// answered. The rest waits for the next turn; one that does not go back is answered in each.
    pub(super) async fn answer_waiting(&mut self) -> Result<(), StoreError> {
        let began = self.clock.elapsed();
        let mut others = 0;
        for _ in 0..REQUESTS_MAX {
            let back = self.requests.back.try_recv();
            others += usize::from(back.is_err());
            let Ok(queued) = back.or_else(|_| self.requests.others.try_recv()) else {
                return Ok(());
            };
            self.answer(queued.leave()).await?;
            if self.clock.elapsed().saturating_sub(began) >= ANSWERING_MAX {
                break;
            }
        }
        if others == 0
            && let Ok(queued) = self.requests.others.try_recv()
        {
            self.answer(queued.leave()).await?;
        }
        Ok(())
    }
}

//! Requests on their way to the loop, and how many of them a turn answers: what goes back has a line of its own, and
//! neither line keeps the loop from looking at the world.

use rollout::{Command, Duration};
use tokio::sync::mpsc;

use super::lease::LeaseRequest;
use super::{REQUESTS_MAX, Reconciler, Request, TICK};
use crate::store::StoreError;

/// After so long a turn takes no further request: then the world is looked at first. Most take a millisecond; one that
/// asks an engine which hangs takes some seconds.
const ANSWERING_MAX: Duration = TICK;

/// The loop has ended, or too many requests wait.
#[derive(Debug, thiserror::Error)]
#[error(
    "the loop has ended, or has {REQUESTS_MAX} requests waiting that go back, or as many others"
)]
pub struct NotTaken;

/// Where requests go.
#[derive(Debug, Clone)]
pub struct Requests {
    back: mpsc::Sender<Request>,
    others: mpsc::Sender<Request>,
}

/// Those that wait for the loop.
#[derive(Debug)]
pub(super) struct Waiting {
    back: mpsc::Receiver<Request>,
    others: mpsc::Receiver<Request>,
}

/// A line of its own for what goes back, and one for all others; [`REQUESTS_MAX`] fit into each.
pub(super) fn requests() -> (Requests, Waiting) {
    let (back, back_waiting) = mpsc::channel(REQUESTS_MAX);
    let (others, others_waiting) = mpsc::channel(REQUESTS_MAX);
    let waiting = Waiting {
        back: back_waiting,
        others: others_waiting,
    };
    (Requests { back, others }, waiting)
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
    fn line(&self, request: &Request) -> &mpsc::Sender<Request> {
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
        line.try_send(request).map_err(|_| NotTaken)
    }

    /// Hands a request to the loop as soon as there is a place.
    ///
    /// # Errors
    /// The loop has ended.
    pub async fn send(&self, request: Request) -> Result<(), NotTaken> {
        let line = self.line(&request);
        line.send(request).await.map_err(|_| NotTaken)
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
            Some(request) = self.back.recv() => Some(request),
            Some(request) = self.others.recv() => Some(request),
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
            let Ok(request) = back.or_else(|_| self.requests.others.try_recv()) else {
                return Ok(());
            };
            self.answer(request).await?;
            if self.clock.elapsed().saturating_sub(began) >= ANSWERING_MAX {
                break;
            }
        }
        if others == 0
            && let Ok(request) = self.requests.others.try_recv()
        {
            self.answer(request).await?;
        }
        Ok(())
    }
}

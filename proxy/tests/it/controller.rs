//! A small controller: the other end of the proxy's link.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use proxy_api::{BootId, Cell, Epoch, Generation, Report, ReportAck, RouteTable};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::world::eventually;

/// Its proxies; in most tests there is the first alone.
const PROXIES: [&str; 3] = ["edge", "edge-2", "edge-3"];

/// What happens to a report on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It arrives and is answered.
    Answered,
    /// It does not arrive.
    Lost,
    /// It arrives, but its answer does not.
    AnswerLost,
}

/// What the controller knows from reports.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The last state of each epoch.
    pub(crate) epochs: BTreeMap<(BootId, u64), Epoch>,
    /// Every report that arrived.
    pub(crate) reports: Vec<Report>,
    /// Reports that were sent, also those that were lost.
    sent: usize,
}

impl Ledger {
    fn take(&mut self, report: Report) -> ReportAck {
        let boot = report.boot;
        for epoch in &report.epochs {
            let known = self.epochs.insert((boot, epoch.number), epoch.clone());
            if let Some(known) = known.filter(|known| known.is_final) {
                assert_eq!(&known, epoch, "a final epoch never changes");
            }
        }
        let finals = (1..).take_while(|number| {
            let epoch = self.epochs.get(&(boot, *number));
            epoch.is_some_and(|epoch| epoch.is_final)
        });
        let acknowledged = finals.last().unwrap_or(0);
        self.reports.push(report);
        ReportAck { boot, acknowledged }
    }

    /// All cells of all epochs.
    pub(crate) fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.epochs.values().flat_map(|epoch| &epoch.cells)
    }

    /// Requests routed and not finished, over all epochs.
    pub(crate) fn requests(&self) -> (u32, u32) {
        self.cells().fold((0, 0), |(all, open), cell| {
            (all + cell.requests, open + cell.unfinished)
        })
    }
}

/// The table that is given out.
#[derive(Debug, Clone, Default)]
struct Offer {
    table: Option<RouteTable>,
    /// To whom: to whoever has an older one, or to all.
    insists: bool,
}

#[derive(Debug, Clone)]
struct Shared {
    offer: watch::Receiver<Offer>,
    ledger: Arc<Mutex<Ledger>>,
    fate: fn(usize) -> Fate,
}

/// The controller. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) address: SocketAddr,
    offer: watch::Sender<Offer>,
    ledger: Arc<Mutex<Ledger>>,
    task: JoinHandle<()>,
}

impl Controller {
    /// One that gives out that table.
    pub(crate) async fn new(table: Option<RouteTable>) -> Self {
        Self::with_fate(table, |_| Fate::Answered).await
    }

    /// One whose n-th report meets that fate.
    pub(crate) async fn with_fate(table: Option<RouteTable>, fate: fn(usize) -> Fate) -> Self {
        Self::with(table, fate, 64 << 20).await
    }

    /// The same, and it takes no report that is longer.
    pub(crate) async fn with(
        table: Option<RouteTable>,
        fate: fn(usize) -> Fate,
        report_bytes_max: usize,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (offer, watched) = watch::channel(Offer {
            table,
            insists: false,
        });
        let ledger = Arc::<Mutex<Ledger>>::default();
        let shared = Shared {
            offer: watched,
            ledger: Arc::clone(&ledger),
            fate,
        };
        let router = Router::new()
            .route("/api/v1/proxies/{name}/table", get(give))
            .route("/api/v1/proxies/{name}/reports", post(take))
            .layer(DefaultBodyLimit::max(report_bytes_max))
            .with_state(shared);
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            address,
            offer,
            ledger,
            task,
        }
    }

    /// Gives out another table.
    pub(crate) fn set(&self, table: RouteTable) {
        self.offer(table, false);
    }

    /// Gives out another table, also to whoever has a newer one: as a controller that was replaced and does not know it.
    pub(crate) fn insist(&self, table: RouteTable) {
        self.offer(table, true);
    }

    fn offer(&self, table: RouteTable, insists: bool) {
        let table = Some(table);
        self.offer.send_replace(Offer { table, insists });
    }

    /// Looks at the ledger.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.ledger.lock().unwrap())
    }

    /// Waits until the ledger shows it.
    pub(crate) async fn eventually<T>(
        &self,
        what: &str,
        mut look: impl FnMut(&Ledger) -> Option<T>,
    ) -> T {
        eventually(what, || {
            let found = self.look(&mut look);
            async move { found }
        })
        .await
    }

    /// Waits until `requests` requests are reported and all of them have ended.
    pub(crate) async fn all_ended(&self, requests: u32) {
        let what = format!("{requests} requests reported");
        self.eventually(&what, |ledger| {
            (ledger.requests() == (requests, 0)).then_some(())
        })
        .await;
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Deserialize)]
struct Have {
    generation: String,
    wait_seconds: u64,
}

async fn give(
    State(mut shared): State<Shared>,
    Path(name): Path<String>,
    Query(have): Query<Have>,
) -> Response {
    assert!(PROXIES.contains(&name.as_str()), "{name}");
    let generation: Generation = have.generation.parse().unwrap();
    let newer = shared.offer.wait_for(|offer| {
        let table = offer.table.as_ref();
        table.is_some_and(|table| offer.insists || table.generation > generation)
    });
    match tokio::time::timeout(Duration::from_secs(have.wait_seconds), newer).await {
        Ok(Ok(offer)) => Json(offer.table.clone()).into_response(),
        Ok(Err(_)) | Err(_) => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn take(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    Json(report): Json<Report>,
) -> Response {
    assert!(PROXIES.contains(&name.as_str()), "{name}");
    assert_eq!(name, report.proxy);
    let mut ledger = shared.ledger.lock().unwrap();
    let fate = (shared.fate)(ledger.sent);
    ledger.sent += 1;
    if fate == Fate::Lost {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let ack = ledger.take(report);
    if fate == Fate::AnswerLost {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    Json(ack).into_response()
}

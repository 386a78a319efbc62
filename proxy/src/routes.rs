//! The table in force: matched, swapped whole, never by an older one, and on disk before anybody hears of it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::request::Parts;
use proxy_api::{Arm, BasisPoints, Chosen, Generation, Route, RouteTable, TableError, Upstream};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info};

use crate::durable;
use crate::headers;
use crate::kinds::Kinds;
use crate::pick;
use crate::signals::Signals;
use crate::telemetry::{PlaceMetrics, RouteMetrics, Telemetry};
use crate::tls::{Asking, TlsError};
use crate::upstream::{Dial, Peer, PeerKey, Peers};

/// The least age at which a request is counted as too old to wait for.
const AGE_MIN: Duration = Duration::from_secs(10);

/// Why a text is no table, with the place.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {path}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not a table.
    #[error("{path}:{line}:{column}: {problem}", path = .path.display())]
    Malformed {
        /// The file, or where else the text came from.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong there.
        problem: String,
    },
}

/// Reads the table at `path`. Blocks on the disk.
///
/// # Errors
/// See [`LoadError`].
pub(crate) fn load(path: &Path) -> Result<RouteTable, LoadError> {
    let text = std::fs::read(path).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

/// Reads a table from text that came from `path`.
///
/// # Errors
/// See [`LoadError::Malformed`].
pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<RouteTable, LoadError> {
    let malformed = |(line, column), problem| LoadError::Malformed {
        path: path.to_owned(),
        line,
        column,
        problem,
    };
    let table: RouteTable = serde_json::from_slice(text).map_err(|error| {
        let place = (error.line(), error.column());
        let problem = error.to_string();
        // The place is in front already.
        let suffix = format!(" at line {} column {}", place.0, place.1);
        let problem = problem.strip_suffix(&suffix).unwrap_or(&problem);
        malformed(place, problem.to_owned())
    })?;
    table.check().map_err(|error| {
        let place = place_of(&String::from_utf8_lossy(text), &error);
        malformed(place, error.to_string())
    })?;
    Ok(table)
}

/// Line and column of the name of the route that `error` is about; for a name that stands there twice, the second.
fn place_of(text: &str, error: &TableError) -> (usize, usize) {
    let (name, nth) = match error {
        TableError::DuplicateName(name) => (name, 1),
        TableError::DuplicateMatch { route, .. }
        | TableError::Path { route, .. }
        | TableError::NoCanary { route, .. } => (route, 0),
        TableError::Generation(_) | TableError::BasisPoints(_) | TableError::Endpoint(_) => {
            return (1, 1);
        }
    };
    let named = |key: usize| {
        let rest = text[key + "\"name\"".len()..].trim_start();
        let rest = rest.strip_prefix(':')?.trim_start();
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        (values.next()?.ok()? == *name).then_some(key)
    };
    let place = text
        .match_indices("\"name\"")
        .filter_map(|(key, _)| named(key))
        .nth(nth)
        .unwrap_or(0);
    let before = &text[..place];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    (line, column)
}

/// Why a table was not put in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// It contradicts itself.
    #[error("the table is refused")]
    Invalid(#[source] TableError),
    /// The one in force is as new or newer.
    #[error("table {given} is not newer than {have}, which is in force")]
    NotNewer { have: Generation, given: Generation },
    /// What it says of TLS cannot be done.
    #[error("route {route:?} is refused for its TLS")]
    Tls { route: String, source: TlsError },
    /// It could not be made to last, so it was not put in force either.
    #[error("cannot save the table to {path}", path = .path.display())]
    Save { path: PathBuf, source: io::Error },
}

/// What a route's requests use together, whatever its table.
#[derive(Debug)]
pub(crate) struct RouteLoad {
    in_flight: AtomicU32,
    /// What each worker's requests have saved for second attempts, in requests.
    budgets: Box<[AtomicU32]>,
}

/// A second attempt costs what so many requests save: when every request fails, at most a fifth more is sent.
const RETRY_COST: u32 = 5;

/// Most that is saved, for a hundred second attempts: when a task dies, all it was working on may go elsewhere.
const SAVED_MAX: u32 = 100 * RETRY_COST;

impl RouteLoad {
    fn new(workers: usize) -> Self {
        let budget = |_| AtomicU32::new(SAVED_MAX);
        Self {
            in_flight: AtomicU32::new(0),
            budgets: (0..workers.max(1)).map(budget).collect(),
        }
    }

    fn budget(&self, worker: usize) -> &AtomicU32 {
        &self.budgets[worker % self.budgets.len()]
    }
}

/// A place among the requests in flight to a route, with the route.
#[derive(Debug)]
pub(crate) struct Admitted(Arc<ActiveRoute>);

impl Admitted {
    /// The route, by the table of the moment it let the request in.
    pub(crate) fn route(&self) -> &Arc<ActiveRoute> {
        &self.0
    }

    /// The same place by another table, where that still has the route's counts.
    pub(crate) fn by(self, route: &Arc<ActiveRoute>) -> Self {
        if Arc::ptr_eq(&self.0, route) {
            return self;
        }
        route.load.in_flight.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(route))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.load.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the weight did to requests since its table came into force.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    all: AtomicU64,
    canary: AtomicU64,
}

impl Seen {
    /// Counts a routed request, if the weight chose its side.
    pub(crate) fn count(&self, arm: Arm, chosen: Chosen) {
        if chosen == Chosen::Weight {
            self.all.fetch_add(1, Ordering::Relaxed);
            if arm == Arm::Canary {
                self.canary.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The canary's share; `None` before the first request.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let all = self.all.load(Ordering::Relaxed);
        // Exact below 2^53 requests.
        (all > 0).then(|| self.canary.load(Ordering::Relaxed) as f64 / all as f64)
    }
}

/// Where requests are counted: one endpoint, or the lack of one, on one side of one route.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) route: Arc<str>,
    pub(crate) arm: Arm,
    pub(crate) release: Arc<str>,
    pub(crate) endpoint: Option<proxy_api::Endpoint>,
    /// Those of its route.
    pub(crate) kinds: Arc<Kinds>,
    pub(crate) metrics: PlaceMetrics,
}

/// An endpoint of a side.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) peer: Arc<Peer>,
    pub(crate) place: Arc<Place>,
}

/// One release of a route and where it runs.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) arm: Arm,
    pub(crate) release: Arc<str>,
    pub(crate) targets: Vec<Target>,
    /// Where requests are counted that find no endpoint.
    pub(crate) nowhere: Arc<Place>,
}

impl Side {
    /// One of its endpoints, if possible not `avoid`.
    pub(crate) fn choose(&self, avoid: Option<&proxy_api::Endpoint>) -> Option<&Target> {
        let avoid = avoid.and_then(|address| {
            self.targets
                .iter()
                .position(|target| target.peer.address() == address)
        });
        let index = pick::endpoint(
            self.targets.len(),
            |index| self.targets[index].peer.is_healthy(),
            |index| self.targets[index].peer.in_flight(),
            avoid,
            rand::random(),
        )?;
        self.targets.get(index)
    }

    /// Whether it has an endpoint other than `address`.
    pub(crate) fn has_other(&self, address: &proxy_api::Endpoint) -> bool {
        self.targets
            .iter()
            .any(|target| target.peer.address() != address)
    }
}

/// One route of the table in force.
#[derive(Debug)]
pub(crate) struct ActiveRoute {
    pub(crate) name: Arc<str>,
    pub(crate) spec: Route,
    pub(crate) stable: Side,
    pub(crate) canary: Option<Side>,
    pub(crate) seen: Seen,
    pub(crate) metrics: RouteMetrics,
    /// Of the sticky hash.
    pub(crate) seed: u64,
    load: Arc<RouteLoad>,
}

impl ActiveRoute {
    /// The side of that arm; stable where there is no canary.
    pub(crate) fn side(&self, arm: Arm) -> &Side {
        match (arm, &self.canary) {
            (Arm::Canary, Some(canary)) => canary,
            (Arm::Canary | Arm::Stable, _) => &self.stable,
        }
    }

    /// Stable, and the canary if there is one.
    pub(crate) fn sides(&self) -> impl Iterator<Item = &Side> {
        std::iter::once(&self.stable).chain(&self.canary)
    }

    /// Lets one more request in, if the route may have it.
    pub(crate) fn admit(self: &Arc<Self>, worker: usize) -> Option<Admitted> {
        // Only its own worker writes, so nothing is lost between the two.
        let budget = self.load.budget(worker);
        let saved = budget.load(Ordering::Relaxed);
        if saved < SAVED_MAX {
            budget.store(saved + 1, Ordering::Relaxed);
        }
        let before = self.load.in_flight.fetch_add(1, Ordering::AcqRel);
        let admitted = Admitted(Arc::clone(self));
        (before < self.spec.limits.in_flight_max).then_some(admitted)
    }

    /// Whether requests have saved enough for a second attempt; takes it away.
    pub(crate) fn may_retry(&self, worker: usize) -> bool {
        let budget = self.load.budget(worker);
        let saved = budget.load(Ordering::Relaxed);
        let rest = saved.checked_sub(RETRY_COST);
        if let Some(rest) = rest {
            budget.store(rest, Ordering::Relaxed);
        }
        rest.is_some()
    }

    /// How long a request is waited for in its epoch: as long as it can take to connect and to answer.
    pub(crate) fn age_max(&self) -> Duration {
        (self.connect_wait_max() + self.response_wait_max()).max(AGE_MIN)
    }

    /// The longest wait for a connection.
    pub(crate) fn connect_wait_max(&self) -> Duration {
        Duration::from_millis(self.spec.timeouts.connect_ms)
    }

    /// The longest wait for the head of an answer.
    pub(crate) fn response_wait_max(&self) -> Duration {
        Duration::from_millis(self.spec.timeouts.response_ms)
    }
}

/// A table with all that requests need of it at hand.
#[derive(Debug)]
pub(crate) struct Table {
    document: RouteTable,
    routes: Vec<Arc<ActiveRoute>>,
    by_name: HashMap<Arc<str>, usize>,
    /// By host as it stands in the table, in lower case; each list with the longest path first.
    by_host: HashMap<String, Vec<usize>>,
    /// Those for every host, in the same order.
    any_host: Vec<usize>,
}

impl Table {
    /// The number of the table.
    pub(crate) fn generation(&self) -> Generation {
        self.document.generation
    }

    /// The table as it came.
    pub(crate) fn document(&self) -> &RouteTable {
        &self.document
    }

    /// Its routes.
    pub(crate) fn routes(&self) -> &[Arc<ActiveRoute>] {
        &self.routes
    }

    /// The route of that name.
    pub(crate) fn route(&self, name: &str) -> Option<&Arc<ActiveRoute>> {
        self.by_name.get(name).map(|&index| &self.routes[index])
    }

    /// The route for a request: a whole host name wins over `*.…` (the longer one first) over `*`, then the longest
    /// path.
    pub(crate) fn find(&self, head: &Parts) -> Option<&Arc<ActiveRoute>> {
        let path = head.uri.path();
        let among = |list: &[usize]| {
            list.iter()
                .map(|&index| &self.routes[index])
                .find(|route| takes_path(&route.spec.matches.path, path))
        };
        // Most tables name no host, and then a request need not be asked for its own.
        if self.by_host.is_empty() {
            return among(&self.any_host);
        }
        let host = headers::host(head);
        let in_list = |host: &str| among(self.by_host.get(host)?);
        in_list(&host)
            .or_else(|| {
                host.match_indices('.')
                    .filter(|&(dot, _)| dot > 0)
                    .find_map(|(dot, _)| in_list(&format!("*{}", &host[dot..])))
            })
            .or_else(|| among(&self.any_host))
    }
}

/// Whether the prefix, which ends at a segment, takes the path.
fn takes_path(prefix: &str, path: &str) -> bool {
    // `OPTIONS *` is about the server as a whole.
    let path = if path.starts_with('/') { path } else { "/" };
    match path.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'),
        None => false,
    }
}

/// Whether a table is written to the file of [`Routes`] before it is put in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Save {
    /// It is.
    Yes,
    /// It came from there.
    No,
}

/// The table in force, and what it is made of.
#[derive(Debug)]
pub(crate) struct Routes {
    current: ArcSwapOption<Table>,
    /// Where tables are saved.
    file: PathBuf,
    signals: Arc<Signals>,
    telemetry: Arc<Telemetry>,
    peers: Arc<Peers>,
    /// One table after the other.
    applying: tokio::sync::Mutex<()>,
    /// Tells who waits for a table that one was put in force.
    applied: watch::Sender<Generation>,
}

impl Routes {
    /// No table yet; those to come are saved in `file`.
    pub(crate) fn new(
        file: PathBuf,
        signals: Arc<Signals>,
        telemetry: Arc<Telemetry>,
        peers: Arc<Peers>,
    ) -> Self {
        Self {
            current: ArcSwapOption::empty(),
            file,
            signals,
            telemetry,
            peers,
            applying: tokio::sync::Mutex::default(),
            applied: watch::channel(Generation::default()).0,
        }
    }

    /// The table in force. Cheap; not to be held for long.
    pub(crate) fn current(&self) -> arc_swap::Guard<Option<Arc<Table>>> {
        self.current.load()
    }

    /// The number of the table in force; 0.0 without one.
    pub(crate) fn generation(&self) -> Generation {
        let table = self.current();
        table
            .as_ref()
            .map_or_else(Generation::default, |table| table.generation())
    }

    /// The endpoints of this and earlier tables.
    pub(crate) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// Changes with each table that is put in force.
    pub(crate) fn applied(&self) -> watch::Receiver<Generation> {
        self.applied.subscribe()
    }

    /// Puts a table in force: checks it, saves it, swaps it, in this order. When it returns, no request is routed by
    /// the old table any more.
    ///
    /// # Errors
    /// See [`ApplyError`]; the old table serves on.
    pub(crate) async fn apply(&self, table: RouteTable, save: Save) -> Result<(), ApplyError> {
        let one_at_a_time = self.applying.lock().await;
        self.apply_locked(table, save).await?;
        drop(one_at_a_time);
        Ok(())
    }

    /// Like [`Routes::apply`], for tables written by hand: one without a generation gets the next one, and one that is
    /// in force already is no error.
    ///
    /// # Errors
    /// See [`ApplyError`]; the old table serves on.
    pub(crate) async fn apply_by_hand(
        &self,
        mut table: RouteTable,
        save: Save,
    ) -> Result<(), ApplyError> {
        let one_at_a_time = self.applying.lock().await;
        if let Some(current) = self.current.load_full() {
            if table == *current.document() {
                return Ok(());
            }
            if table.generation == Generation::default() {
                let Generation { term, seq } = current.generation();
                table.generation = Generation { term, seq: seq + 1 };
            }
        }
        self.apply_locked(table, save).await?;
        drop(one_at_a_time);
        Ok(())
    }

    async fn apply_locked(&self, document: RouteTable, save: Save) -> Result<(), ApplyError> {
        document.check().map_err(ApplyError::Invalid)?;
        let dials = dials(&document)?;
        let current = self.current.load_full();
        let given = document.generation;
        match &current {
            Some(current) if given <= current.generation() => {
                let have = current.generation();
                return Err(ApplyError::NotNewer { have, given });
            }
            Some(_) | None => {}
        }
        if save == Save::Yes
            && let Err(failed) = self.save(&document).await
        {
            // A full disk must not keep users on a release that shall get nothing more (F40). After a restart of this
            // proxy the older table is in force until the controller answers; no other refusal is worth that.
            if !current
                .as_ref()
                .is_some_and(|current| only_takes_back(current.document(), &document))
            {
                return Err(failed);
            }
            let cause = std::error::Error::source(&failed).map(ToString::to_string);
            error!(
                generation = %given,
                error = %failed,
                cause,
                "the table cannot be saved; it only takes requests from canaries, so it is in force all the same"
            );
        }
        let routes = document.routes.len();
        let weights = document
            .routes
            .iter()
            .map(|route| (route.name.clone(), route.canary_bp))
            .collect();
        let table = Arc::new(self.activate(document, &dials, current.as_deref()));
        self.signals.cut(given, weights, Instant::now(), || {
            self.current.store(Some(table));
        });
        self.peers.forget_unused();
        self.applied.send_replace(given);
        info!(generation = %given, routes, "a new table is in force");
        Ok(())
    }

    async fn save(&self, document: &RouteTable) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::Save {
            path: self.file.clone(),
            source,
        };
        let text = serde_json::to_vec_pretty(document).map_err(|error| failed(error.into()))?;
        let file = self.file.clone();
        tokio::task::spawn_blocking(move || durable::write(&file, &text))
            .await
            .map_err(|panicked| failed(io::Error::other(panicked)))?
            .map_err(failed)
    }

    fn activate(&self, document: RouteTable, dials: &[Dial], before: Option<&Table>) -> Table {
        let mut routes = Vec::with_capacity(document.routes.len());
        let mut by_name = HashMap::new();
        let mut by_host: HashMap<String, Vec<usize>> = HashMap::new();
        let mut labels = HashSet::new();
        for (index, spec) in document.routes.iter().enumerate() {
            let name: Arc<str> = spec.name.as_str().into();
            let kinds = Arc::<Kinds>::default();
            let mut side = |arm: Arm, upstream: &Upstream| {
                let release: Arc<str> = upstream.release.as_str().into();
                let place = |endpoint: Option<&proxy_api::Endpoint>| {
                    Arc::new(Place {
                        route: Arc::clone(&name),
                        arm,
                        release: Arc::clone(&release),
                        endpoint: endpoint.cloned(),
                        kinds: Arc::clone(&kinds),
                        metrics: self.telemetry.place(&name, arm, &release, endpoint),
                    })
                };
                let target = |address: &proxy_api::Endpoint| {
                    labels.insert([
                        Arc::clone(&name),
                        arm.as_str().into(),
                        Arc::clone(&release),
                        address.as_str().into(),
                    ]);
                    Target {
                        peer: self.peers.get(
                            PeerKey {
                                route: Arc::clone(&name),
                                arm,
                                release: Arc::clone(&release),
                                address: address.clone(),
                                transport: spec.transport.clone(),
                            },
                            &dials[index],
                        ),
                        place: place(Some(address)),
                    }
                };
                Side {
                    arm,
                    targets: upstream.endpoints.iter().map(target).collect(),
                    nowhere: place(None),
                    release,
                }
            };
            let known = before.and_then(|table| table.route(&name));
            routes.push(Arc::new(ActiveRoute {
                stable: side(Arm::Stable, &spec.stable),
                canary: spec.canary.as_ref().map(|canary| side(Arm::Canary, canary)),
                seen: Seen::default(),
                metrics: self.telemetry.route(&name),
                seed: pick::route_seed(&name),
                load: known.map_or_else(
                    || Arc::new(RouteLoad::new(self.peers.workers())),
                    |route| Arc::clone(&route.load),
                ),
                spec: spec.clone(),
                name: Arc::clone(&name),
            }));
            by_name.insert(name, index);
            let host = spec.matches.host.to_ascii_lowercase();
            by_host.entry(host).or_default().push(index);
        }
        for list in by_host.values_mut() {
            list.sort_by_key(|&index| std::cmp::Reverse(document.routes[index].matches.path.len()));
        }
        self.telemetry.retire(labels);
        let any_host = by_host.remove("*").unwrap_or_default();
        Table {
            document,
            routes,
            by_name,
            by_host,
            any_host,
        }
    }
}

/// How the endpoints of each route are spoken to. Blocks on the disk where a route has TLS.
fn dials(document: &RouteTable) -> Result<Vec<Dial>, ApplyError> {
    let dial = |route: &Route| {
        let tls = Asking::load(&route.transport).map_err(|source| ApplyError::Tls {
            route: route.name.clone(),
            source,
        })?;
        Ok(Dial {
            protocol: route.transport.protocol,
            tls,
        })
    };
    document.routes.iter().map(dial).collect()
}

/// Whether `next` gives no canary more than `before` does, and some canary less.
fn only_takes_back(before: &RouteTable, next: &RouteTable) -> bool {
    let share = |table: &RouteTable, name: &str| {
        let route = table.routes.iter().find(|route| route.name == name);
        route.map_or(BasisPoints::NONE, |route| route.canary_bp)
    };
    let none_grows = next
        .routes
        .iter()
        .all(|route| route.canary_bp <= share(before, &route.name));
    let some_shrinks = before
        .routes
        .iter()
        .any(|route| share(next, &route.name) < route.canary_bp);
    none_grows && some_shrinks
}

#[cfg(test)]
mod tests {
    use proxy_api::{BootId, Match};

    use super::*;

    fn routes(file: PathBuf) -> Routes {
        Routes::new(
            file,
            Arc::new(Signals::new(BootId(1), 0, 1, Instant::now())),
            Arc::new(Telemetry::new().unwrap()),
            Arc::new(Peers::new(1)),
        )
    }

    fn route(name: &str, host: &str, path: &str) -> Route {
        let text = r#"{"name":"","stable":{"release":"v1","endpoints":["127.0.0.1:1"]}}"#;
        Route {
            name: name.to_owned(),
            matches: Match {
                host: host.to_owned(),
                path: path.to_owned(),
            },
            ..serde_json::from_str(text).unwrap()
        }
    }

    fn table(seq: u64, routes: Vec<Route>) -> RouteTable {
        let generation = Generation { term: 1, seq };
        RouteTable { generation, routes }
    }

    #[tokio::test]
    async fn f40_a_table_that_cannot_be_saved_is_in_force_only_if_it_takes_requests_from_a_canary()
    {
        let routes = routes(PathBuf::from("/nowhere/table.json"));
        let with_share = |seq, points| {
            let mut route = route("web", "*", "/");
            route.canary = Some(route.stable.clone());
            route.canary_bp = BasisPoints::new(points).unwrap();
            table(seq, vec![route])
        };
        routes.apply(with_share(1, 1_000), Save::No).await.unwrap();
        let share = || {
            (*routes.current()).clone().unwrap().document().routes[0]
                .canary_bp
                .get()
        };
        for (seq, points, is_in_force) in [
            (2, 2_500, false),
            (3, 1_000, false),
            (4, 0, true),
            (5, 100, false),
        ] {
            let before = share();
            let applied = routes.apply(with_share(seq, points), Save::Yes).await;
            assert_eq!(applied.is_ok(), is_in_force, "{points}: {applied:?}");
            assert_eq!(share(), if is_in_force { points } else { before });
        }
    }

    #[tokio::test]
    async fn finds_the_most_special_route() {
        let routes = routes(PathBuf::from("/nowhere"));
        let list = vec![
            route("any", "*", "/"),
            route("any-api", "*", "/api"),
            route("below", "*.example.org", "/"),
            route("deep", "*.shop.example.org", "/"),
            route("shop", "Shop.example.org", "/"),
            route("cart", "shop.example.org", "/cart"),
            route("only-x", "other.example.org", "/x/"),
        ];
        routes.apply(table(1, list), Save::No).await.unwrap();
        let table = (*routes.current()).clone().unwrap();
        let cases = [
            ("", "/", "any"),
            ("", "*", "any"),
            ("example.org", "/apix", "any"),
            ("example.org", "/api", "any-api"),
            ("example.org", "/api/x", "any-api"),
            ("a.example.org", "/api", "below"),
            ("a.b.example.org", "/", "below"),
            ("a.shop.example.org", "/", "deep"),
            ("shop.example.org", "/carts", "shop"),
            ("shop.example.org", "/cart/1", "cart"),
            ("other.example.org", "/x/y", "only-x"),
            ("other.example.org", "/y", "below"),
        ];
        for (host, path, name) in cases {
            let request = http::Request::builder().uri(path).header("host", host);
            let head = request.body(()).unwrap().into_parts().0;
            let found = table.find(&head).map(|route| &*route.name);
            assert_eq!(found, Some(name), "{host} {path}");
        }
    }

    #[tokio::test]
    async fn refuses_what_is_not_newer_and_saves_before_it_applies() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("table.json");
        let routes = routes(file.clone());
        let newest = table(5, vec![route("web", "*", "/")]);
        routes.apply(newest.clone(), Save::Yes).await.unwrap();
        assert_eq!(load(&file).unwrap(), newest);
        for seq in [4, 5] {
            let refused = routes.apply(table(seq, vec![]), Save::Yes).await;
            assert!(matches!(refused, Err(ApplyError::NotNewer { .. })));
        }
        assert_eq!(load(&file).unwrap(), newest);
        drop(directory);
        let unsaved = routes.apply(table(6, vec![]), Save::Yes).await;
        assert!(matches!(unsaved, Err(ApplyError::Save { .. })));
        assert_eq!(
            routes.generation(),
            newest.generation,
            "not saved, so not in force"
        );
    }

    #[tokio::test]
    async fn numbers_tables_written_by_hand() {
        let routes = routes(PathBuf::from("/nowhere"));
        let by_hand = |list| RouteTable {
            generation: Generation::default(),
            routes: list,
        };
        let first = by_hand(vec![route("a", "*", "/")]);
        routes.apply_by_hand(first.clone(), Save::No).await.unwrap();
        routes.apply_by_hand(first, Save::No).await.unwrap();
        assert_eq!(routes.generation(), Generation { term: 0, seq: 0 });
        let second = by_hand(vec![route("b", "*", "/")]);
        routes.apply_by_hand(second, Save::No).await.unwrap();
        assert_eq!(routes.generation(), Generation { term: 0, seq: 1 });
    }

    #[tokio::test]
    async fn admits_as_many_as_the_route_may_have_over_all_its_tables() {
        let routes = routes(PathBuf::from("/nowhere"));
        let mut narrow = route("web", "*", "/");
        narrow.limits.in_flight_max = 1;
        routes
            .apply(table(1, vec![narrow.clone()]), Save::No)
            .await
            .unwrap();
        let first = (*routes.current()).clone().unwrap().routes()[0].admit(0);
        assert!(first.is_some());
        routes
            .apply(table(2, vec![narrow]), Save::No)
            .await
            .unwrap();
        let route = Arc::clone(&(*routes.current()).clone().unwrap().routes()[0]);
        assert!(route.admit(0).is_none());
        drop(first);
        assert!(route.admit(0).is_some());
    }

    #[test]
    fn says_where_a_table_is_wrong() {
        let stable = r#""stable":{"release":"v1","endpoints":[]}"#;
        let cases = [
            ("{\n  \"routes\": 3\n}", "t.json:2:13: invalid type"),
            ("{\n \"rotes\": []}", "t.json:2:8: unknown field `rotes`"),
            (
                "{\"routes\":[\n{\"name\":\"a\",\"canary_bp\":10001}]}",
                "t.json:2:",
            ),
            ("", "t.json:1:0: EOF"),
            (
                &format!(
                    "{{\"routes\":[\n  {{\"name\":\"a\",{stable}}},\n  {{\"name\" : \"a\",{stable}}}]}}"
                ),
                "t.json:3:4: route \"a\" stands in the table twice",
            ),
            (
                &format!("{{\"routes\":[{{\"name\":\"a\",\"canary_bp\":5,{stable}}}]}}"),
                "t.json:1:13: route \"a\" gives 5 basis points",
            ),
        ];
        for (text, expected) in cases {
            let error = parse(Path::new("t.json"), text.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }
}

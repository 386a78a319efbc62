//! The table in force: matched, swapped whole, never by an older one, and on disk before anybody hears of it.

mod active;
mod file;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::request::Parts;
use proxy_api::{Arm, BasisPoints, Generation, Route, RouteTable, TableError, Upstream};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info};

use crate::durable;
use crate::headers;
use crate::kinds::Kinds;
use crate::pick;
use crate::signals::Signals;
use crate::telemetry::Telemetry;
use crate::tls::{Asking, AskingError};
use crate::upstream::{Dial, PeerKey, Peers};
use active::RouteLoad;
pub(crate) use active::{ActiveRoute, Admitted, Place, Seen, Side, Target};
pub use file::LoadError;
pub(crate) use file::{load, parse};

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
    Tls { route: String, source: AskingError },
    /// It could not be made to last, so it was not put in force either.
    #[error("cannot save the table to {path}", path = .path.display())]
    Save { path: PathBuf, source: io::Error },
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
    /// [`Dial::files`] of each route.
    files: Vec<u64>,
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

    /// Its endpoints, each with its route and its release.
    fn places(&self) -> HashSet<(&str, &str, &proxy_api::Endpoint)> {
        let sides = self.routes.iter().flat_map(|route| {
            let name = &*route.name;
            route.sides().map(move |side| (name, side))
        });
        let places = sides.flat_map(|(name, side)| {
            let endpoints = side.targets.iter().map(|target| target.peer.address());
            endpoints.map(move |address| (name, &*side.release, address))
        });
        places.collect()
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

    /// Like [`Routes::apply`], for tables written by hand. One that is in force already is no error; it is put in force again
    /// if the files that it names have other contents by now. One that has no generation, or an old one while no controller's
    /// table is in force, gets the next one: we write it into the file ourselves, and people edit what stands around it.
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
                // What its files hold may be new all the same.
                let dials = dials(&table)?;
                if !dials
                    .iter()
                    .map(Dial::files)
                    .eq(current.files.iter().copied())
                {
                    self.put_in_force(table, &dials, Some(current.as_ref()));
                }
                return Ok(());
            }
            let have = current.generation();
            // The term of a controller is never 0: its tables keep their order, and those of one that was replaced stay out.
            let is_old_by_hand = have.term == 0 && table.generation <= have;
            if table.generation == Generation::default() || is_old_by_hand {
                table.generation = Generation {
                    seq: have.seq + 1,
                    ..have
                };
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
        self.put_in_force(document, &dials, current.as_deref());
        Ok(())
    }

    fn put_in_force(&self, document: RouteTable, dials: &[Dial], before: Option<&Table>) {
        let generation = document.generation;
        let routes = document.routes.len();
        let weights = document
            .routes
            .iter()
            .map(|route| (route.name.clone(), route.canary_bp))
            .collect();
        let table = Arc::new(self.activate(document, dials, before));
        let now = Instant::now();
        self.signals.cut(generation, weights, now, || {
            self.current.store(Some(Arc::clone(&table)));
        });
        self.peers.in_force(&table.places(), now);
        drop(table);
        self.peers.forget_unused();
        self.applied.send_replace(generation);
        info!(%generation, routes, "a new table is in force");
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
                                files: dials[index].files(),
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
            files: dials.iter().map(Dial::files).collect(),
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
mod tests;

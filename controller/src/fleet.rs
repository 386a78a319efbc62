//! The proxies, as the controller knows them: which table each applies, and what became of the requests they routed.
//!
//! A table goes out by a watch channel that every proxy's long poll waits on. Reports come in at any time and in any
//! order; they lie here until the reconciler takes the epochs that are final, in the order of their numbers, and has
//! saved what it made of them. Only then are they acknowledged, so a controller that dies in between reads them again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use proxy_api::{
    Arm, BootId, Cell, Chosen, Endpoint, Epoch, Generation, InFlight, Report, ReportAck, RouteTable,
};
use rollout::signals::{Block, LatencyHistogram, merge_cells};
use rollout::{Duration, Weight};
use tokio::sync::{Notify, watch};

use crate::store::Mark;

/// A proxy that was silent for so long counts as gone: it reports twice a second.
pub const PROXY_LIVE: Duration = Duration::from_secs(5);

/// A proxy that was silent for so long is forgotten. Long enough for a person to see it in a list.
const PROXY_KEPT: Duration = Duration::from_secs(600);

/// Most proxies known at once; a report of one more is refused.
pub const PROXIES_MAX: usize = 1_000;

/// Most epochs kept of one proxy: what it keeps itself, 10 minutes.
const EPOCHS_MAX: usize = 1_200;

/// How much of the past the signals that people see cover.
const WINDOW: Duration = Duration::from_secs(10);

/// What became of the requests to one arm of a service, over the last [`WINDOW`] and in all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recent {
    /// How long the window is that was seen.
    pub window: Duration,
    /// Requests routed in it, also those that named their release.
    pub requests: u64,
    /// Of these, the bad.
    pub bad: u64,
    /// Latency of the others.
    pub latency: LatencyHistogram,
}

/// What became of the requests at one endpoint, over the last [`WINDOW`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskWork {
    /// Answered well.
    pub done: u64,
    /// Failed.
    pub failed: u64,
    /// Without an answer yet, at this moment.
    pub in_flight: u64,
}

/// The evidence of one service in one stretch of one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// The table the requests were routed by.
    pub generation: Generation,
    /// The requests.
    pub block: Block,
}

/// What is taken from the proxies at once: by service, oldest first, and how far each proxy was read.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// By service.
    pub slices: BTreeMap<String, Vec<Slice>>,
    /// How far it was read.
    pub marks: Vec<Mark>,
}

/// A proxy, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxyStatus {
    /// Its name.
    pub name: String,
    /// The table it applies.
    pub generation: Generation,
    /// Time since it last reported.
    pub silent: Duration,
    /// Its version, where it said it.
    pub version: Option<String>,
}

#[derive(Debug)]
struct Proxy {
    boot: BootId,
    generation: Generation,
    /// The clock's elapsed time at its last report.
    heard: Duration,
    /// Epochs that are not read yet, by number.
    epochs: BTreeMap<u64, Epoch>,
    /// Read and saved up to here.
    saved: u64,
    in_flight: Vec<InFlight>,
    /// Every route's weight, by the newest epoch.
    weights: BTreeMap<String, Weight>,
    /// Final epochs of the last seconds, for people: number, and when it was heard.
    recent: BTreeMap<u64, (Duration, Epoch)>,
    /// Its program's version, as it says.
    version: Option<String>,
}

/// Why a report was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Too many proxies.
    #[error("there are {PROXIES_MAX} proxies already; proxy {0:?} is one too many")]
    TooMany(String),
    /// The report names another proxy than the address it was sent to.
    #[error("the report of proxy {0:?} came under the name {1:?}")]
    Name(String, String),
}

/// All proxies.
#[derive(Debug)]
pub struct Fleet {
    proxies: Mutex<HashMap<String, Proxy>>,
    table: watch::Sender<Arc<RouteTable>>,
    heard: Notify,
    marks: Mutex<HashMap<String, Mark>>,
}

fn weight(points: proxy_api::BasisPoints) -> Weight {
    Weight::from_basis_points(points.get()).unwrap_or(Weight::ALL)
}

fn cell_of(cell: &Cell) -> rollout::Cell {
    // What has no outcome in a final epoch belongs to a proxy that died: it says nothing of the release.
    let requests = u64::from(cell.requests.saturating_sub(cell.unfinished));
    rollout::Cell {
        node: cell
            .endpoint
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        group: cell.group,
        requests,
        bad: u64::from(cell.bad()).min(requests),
        latency: cell.latency.iter().copied().collect(),
        // A proxy that keeps its word has no more. They go into the event log, so what does not is cut.
        kinds: cell
            .kinds
            .iter()
            .filter(|(kind, _)| kind.len() <= proxy_api::KIND_BYTES_MAX)
            .take(rollout::judge::KINDS_MAX)
            .map(|(kind, count)| (kind.clone(), u64::from(*count)))
            .collect(),
    }
}

/// Adds what `epoch` holds of every service to `blocks`.
fn add_epoch(blocks: &mut BTreeMap<(String, Generation), Block>, epoch: &Epoch) {
    for (route, points) in &epoch.weights {
        let block = blocks.entry((route.clone(), epoch.generation)).or_default();
        block.weight = weight(*points);
        block.duration += Duration::from_millis(u64::from(epoch.duration_ms));
    }
    for cell in epoch
        .cells
        .iter()
        .filter(|cell| cell.chosen == Chosen::Weight)
    {
        let Some(block) = blocks.get_mut(&(cell.route.clone(), epoch.generation)) else {
            continue;
        };
        let side = match cell.arm {
            Arm::Canary => &mut block.canary,
            Arm::Stable => &mut block.stable,
        };
        merge_cells(side, &[cell_of(cell)]);
    }
}

impl Fleet {
    /// No proxies yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            proxies: Mutex::default(),
            table: watch::Sender::new(Arc::new(RouteTable::default())),
            heard: Notify::new(),
            marks: Mutex::default(),
        })
    }

    /// How far reports were read before this controller started; to be told before the first report comes.
    pub fn resume(&self, marks: Vec<Mark>) {
        let mut known = self
            .marks
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        known.extend(marks.into_iter().map(|mark| (mark.proxy.clone(), mark)));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Proxy>> {
        // A panic while the lock was held has ended the process's task; the data is whole all the same.
        self.proxies
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The table that proxies shall apply, from now on.
    pub fn publish(&self, table: RouteTable) {
        self.table.send_replace(Arc::new(table));
    }

    /// The newest table, and a way to wait for a newer one.
    #[must_use]
    pub fn table(&self) -> watch::Receiver<Arc<RouteTable>> {
        self.table.subscribe()
    }

    /// Waits until a proxy has reported.
    ///
    /// # Cancel safety
    /// Safe: a report is kept for the next call.
    pub async fn heard(&self) {
        self.heard.notified().await;
    }

    /// Takes a report in. The answer says what is saved, not what was just heard.
    ///
    /// # Errors
    /// The report is not for us.
    pub fn report(
        &self,
        name: &str,
        report: Report,
        now: Duration,
    ) -> Result<ReportAck, ReportError> {
        if report.proxy != name {
            return Err(ReportError::Name(report.proxy, name.to_owned()));
        }
        let mut proxies = self.lock();
        if !proxies.contains_key(name) && proxies.len() >= PROXIES_MAX {
            proxies.retain(|_, proxy| now.saturating_sub(proxy.heard) < PROXY_KEPT);
            if proxies.len() >= PROXIES_MAX {
                return Err(ReportError::TooMany(name.to_owned()));
            }
        }
        let saved_before = self
            .marks
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .get(name)
            .filter(|mark| mark.boot == report.boot)
            .map_or(0, |mark| mark.number);
        let fresh = || Proxy {
            boot: report.boot,
            generation: report.generation,
            heard: now,
            epochs: BTreeMap::new(),
            saved: saved_before,
            in_flight: Vec::new(),
            weights: BTreeMap::new(),
            recent: BTreeMap::new(),
            version: None,
        };
        let proxy = proxies.entry(name.to_owned()).or_insert_with(fresh);
        if proxy.boot != report.boot {
            *proxy = fresh();
        }
        proxy.heard = now;
        proxy.generation = report.generation;
        proxy.in_flight = report.in_flight;
        if let Some(newest) = report.epochs.iter().max_by_key(|epoch| epoch.number) {
            proxy.weights = newest
                .weights
                .iter()
                .map(|(route, points)| (route.clone(), weight(*points)))
                .collect();
        }
        for epoch in report.epochs {
            if epoch.number > proxy.saved {
                if epoch.is_final {
                    proxy
                        .recent
                        .entry(epoch.number)
                        .or_insert_with(|| (now, epoch.clone()));
                }
                proxy.epochs.insert(epoch.number, epoch);
            }
        }
        while proxy.epochs.len() > EPOCHS_MAX {
            proxy.epochs.pop_first();
        }
        proxy
            .recent
            .retain(|_, (heard, _)| now.saturating_sub(*heard) < WINDOW);
        let ack = ReportAck {
            boot: proxy.boot,
            acknowledged: proxy.saved,
        };
        drop(proxies);
        self.heard.notify_one();
        Ok(ack)
    }

    /// Which version of its program a proxy says it is. One that is not known yet is known by its first report.
    pub fn introduce(&self, name: &str, version: Option<String>) {
        if let Some(proxy) = self.lock().get_mut(name) {
            proxy.version = version;
        }
    }

    /// The final epochs that were not read yet, as slices by service. The same again, until [`Fleet::acknowledge`].
    #[must_use]
    pub fn take(&self) -> Taken {
        let proxies = self.lock();
        let mut taken = Taken::default();
        let mut blocks = BTreeMap::new();
        // Proxies work side by side: the length of a slice is that of the one that was read longest, not their sum.
        let mut longest: BTreeMap<(String, Generation), Duration> = BTreeMap::new();
        let mut names: Vec<&String> = proxies.keys().collect();
        names.sort();
        for name in names {
            let proxy = &proxies[name];
            let mut own = BTreeMap::new();
            let mut number = proxy.saved;
            // A number that is missing was let go by the proxy itself, or by us: what is there goes on after it.
            for epoch in proxy.epochs.values().take_while(|epoch| epoch.is_final) {
                add_epoch(&mut own, epoch);
                number = epoch.number;
            }
            if number > proxy.saved {
                taken.marks.push(Mark {
                    proxy: name.clone(),
                    boot: proxy.boot,
                    number,
                });
            }
            for (key, block) in own {
                let length = longest.entry(key.clone()).or_default();
                *length = (*length).max(block.duration);
                let into: &mut Block = blocks.entry(key).or_default();
                into.weight = block.weight;
                into.append(&block);
            }
        }
        for ((service, generation), mut block) in blocks {
            block.duration = longest
                .get(&(service.clone(), generation))
                .copied()
                .unwrap_or_default();
            taken
                .slices
                .entry(service)
                .or_default()
                .push(Slice { generation, block });
        }
        taken
    }

    /// What was taken is saved: it need not be sent again.
    pub fn acknowledge(&self, marks: &[Mark]) {
        let mut proxies = self.lock();
        for mark in marks {
            if let Some(proxy) = proxies
                .get_mut(&mark.proxy)
                .filter(|proxy| proxy.boot == mark.boot)
            {
                proxy.saved = proxy.saved.max(mark.number);
                proxy.epochs = proxy.epochs.split_off(&(mark.number + 1));
            }
        }
        drop(proxies);
        let mut known = self
            .marks
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for mark in marks {
            known.insert(mark.proxy.clone(), mark.clone());
        }
    }

    /// The canary's share of `service` as every living proxy applies it; `None` when they differ or none lives.
    #[must_use]
    pub fn weight_seen(&self, service: &str, now: Duration) -> Option<Weight> {
        let proxies = self.lock();
        let mut living = proxies
            .values()
            .filter(|proxy| now.saturating_sub(proxy.heard) < PROXY_LIVE);
        let first = *living.next()?.weights.get(service)?;
        living
            .all(|proxy| proxy.weights.get(service) == Some(&first))
            .then_some(first)
    }

    /// Requests in flight to a release of a service, over all living proxies.
    #[must_use]
    pub fn in_flight(&self, service: &str, release: &str, now: Duration) -> u32 {
        let proxies = self.lock();
        proxies
            .values()
            .filter(|proxy| now.saturating_sub(proxy.heard) < PROXY_LIVE)
            .flat_map(|proxy| &proxy.in_flight)
            .filter(|at| at.route == service && at.release == release)
            .map(|at| at.requests)
            .sum()
    }

    /// The proxies that are not waited for any more, by name: silent for [`PROXY_LIVE`].
    #[must_use]
    pub fn silent(&self, now: Duration) -> BTreeSet<String> {
        let proxies = self.lock();
        let silent = proxies
            .iter()
            .filter(|(_, proxy)| now.saturating_sub(proxy.heard) >= PROXY_LIVE);
        silent.map(|(name, _)| name.clone()).collect()
    }

    /// What became of the requests to one arm of a service lately.
    #[must_use]
    pub fn recent(&self, service: &str, arm: Arm, now: Duration) -> Recent {
        let proxies = self.lock();
        let mut recent = Recent::default();
        for proxy in proxies.values() {
            let mut window = Duration::ZERO;
            for (_, epoch) in proxy
                .recent
                .values()
                .filter(|(heard, _)| now.saturating_sub(*heard) < WINDOW)
            {
                window += Duration::from_millis(u64::from(epoch.duration_ms));
                for cell in epoch
                    .cells
                    .iter()
                    .filter(|cell| cell.route == service && cell.arm == arm)
                {
                    recent.requests += u64::from(cell.requests);
                    recent.bad += u64::from(cell.bad());
                    recent
                        .latency
                        .merge(&cell.latency.iter().copied().collect());
                }
            }
            recent.window = recent.window.max(window);
        }
        recent
    }

    /// What became of the requests at each endpoint of a service lately.
    #[must_use]
    pub fn work(&self, service: &str, now: Duration) -> BTreeMap<Endpoint, TaskWork> {
        let proxies = self.lock();
        let mut work: BTreeMap<Endpoint, TaskWork> = BTreeMap::new();
        for proxy in proxies.values() {
            let is_recent = |heard: Duration| now.saturating_sub(heard) < WINDOW;
            let epochs = proxy.recent.values().filter(|(heard, _)| is_recent(*heard));
            let cells = epochs.flat_map(|(_, epoch)| &epoch.cells);
            for cell in cells.filter(|cell| cell.route == service) {
                let Some(endpoint) = &cell.endpoint else {
                    continue;
                };
                let at = work.entry(endpoint.clone()).or_default();
                let ended = cell.requests.saturating_sub(cell.unfinished);
                at.done += u64::from(ended.saturating_sub(cell.bad()));
                at.failed += u64::from(cell.bad());
            }
            if now.saturating_sub(proxy.heard) < PROXY_LIVE {
                for at in proxy.in_flight.iter().filter(|at| at.route == service) {
                    let requests = u64::from(at.requests);
                    work.entry(at.endpoint.clone()).or_default().in_flight += requests;
                }
            }
        }
        work
    }

    /// The proxies, by name.
    #[must_use]
    pub fn status(&self, now: Duration) -> Vec<ProxyStatus> {
        let proxies = self.lock();
        let mut all: Vec<_> = proxies
            .iter()
            .map(|(name, proxy)| ProxyStatus {
                name: name.clone(),
                generation: proxy.generation,
                silent: now.saturating_sub(proxy.heard),
                version: proxy.version.clone(),
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

#[cfg(test)]
mod tests {
    use proxy_api::BasisPoints;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_000);

    fn generation(seq: u64) -> Generation {
        Generation { term: 1, seq }
    }

    fn epoch(number: u64, seq: u64, points: u16, is_final: bool, bad: u32) -> Epoch {
        Epoch {
            number,
            generation: generation(seq),
            weights: BTreeMap::from([("web".to_owned(), BasisPoints::new(points).unwrap())]),
            duration_ms: 500,
            is_final,
            cells: vec![Cell {
                route: "web".into(),
                arm: Arm::Canary,
                release: "v2".into(),
                endpoint: Some("127.0.0.1:1".parse().unwrap()),
                group: 0,
                chosen: Chosen::Weight,
                requests: 10,
                unfinished: u32::from(!is_final),
                outcomes: [10 - bad - u32::from(!is_final), bad, 0, 0, 0],
                failed_to_user: 0,
                latency: vec![(100, 10 - bad - u32::from(!is_final))],
                kinds: [("sad".to_owned(), 1)].into(),
            }],
        }
    }

    fn report(boot: u64, epochs: Vec<Epoch>) -> Report {
        let newest = epochs
            .iter()
            .map(|epoch| epoch.generation)
            .max()
            .unwrap_or_default();
        Report {
            proxy: "p".into(),
            boot: BootId(boot),
            generation: newest,
            epochs,
            epochs_dropped: 0,
            in_flight: vec![],
        }
    }

    fn canary_requests(taken: &Taken) -> u64 {
        taken
            .slices
            .values()
            .flatten()
            .flat_map(|slice| &slice.block.canary)
            .map(|cell| cell.requests)
            .sum()
    }

    #[test]
    fn counts_an_epoch_once_however_often_it_is_sent() {
        let fleet = Fleet::new();
        let all = vec![epoch(1, 1, 100, true, 0), epoch(2, 1, 100, true, 1)];
        for _ in 0..3 {
            assert_eq!(
                fleet
                    .report("p", report(7, all.clone()), NOW)
                    .unwrap()
                    .acknowledged,
                0
            );
        }
        let taken = fleet.take();
        assert_eq!(canary_requests(&taken), 20);
        assert_eq!(
            taken.slices["web"][0].block.duration,
            Duration::from_secs(1)
        );
        assert_eq!(
            canary_requests(&fleet.take()),
            20,
            "not acknowledged yet: read again after a crash"
        );
        fleet.acknowledge(&taken.marks);
        assert_eq!(
            fleet.report("p", report(7, all), NOW).unwrap().acknowledged,
            2
        );
        assert_eq!(canary_requests(&fleet.take()), 0);
    }

    #[test]
    fn tells_what_became_of_the_requests_at_each_endpoint() {
        let fleet = Fleet::new();
        let at: Endpoint = "127.0.0.1:1".parse().unwrap();
        let mut told = report(
            7,
            vec![epoch(1, 1, 100, true, 3), epoch(2, 1, 100, true, 0)],
        );
        told.in_flight = vec![InFlight {
            route: "web".into(),
            release: "v2".into(),
            endpoint: at.clone(),
            requests: 4,
        }];
        fleet.report("p", told, NOW).unwrap();
        let expected = TaskWork {
            done: 17,
            failed: 3,
            in_flight: 4,
        };
        assert_eq!(fleet.work("web", NOW), BTreeMap::from([(at, expected)]));
        assert_eq!(fleet.work("other", NOW), BTreeMap::new());
        // Of a proxy that is silent nothing is known.
        assert_eq!(fleet.work("web", NOW + WINDOW), BTreeMap::new());
    }

    #[test]
    fn kinds_of_answers_are_taken_up_to_a_bound_whatever_a_proxy_sends() {
        // Two names for one thing, because neither side depends on the other.
        assert_eq!(proxy_api::KIND_NONE, rollout::signals::KIND_NONE);
        assert_eq!(proxy_api::KINDS_MAX + 2, rollout::judge::KINDS_MAX);
        let fleet = Fleet::new();
        let mut told = epoch(2, 1, 100, true, 0);
        told.cells[0].kinds = (0..100).map(|n| (format!("k{n:02}"), 1)).collect();
        told.cells[0].kinds.insert("a".repeat(65), 1);
        let epochs = vec![epoch(1, 1, 100, true, 0), told];
        fleet.report("p", report(7, epochs), NOW).unwrap();
        let kinds = &fleet.take().slices["web"][0].block.canary[0].kinds;
        assert_eq!(kinds.len(), 1 + rollout::judge::KINDS_MAX);
        assert_eq!((kinds["sad"], kinds["k00"]), (1, 1));
    }

    #[test]
    fn waits_for_the_last_answer_of_an_epoch_and_keeps_the_order() {
        let fleet = Fleet::new();
        fleet
            .report(
                "p",
                report(
                    7,
                    vec![epoch(1, 1, 100, false, 0), epoch(2, 1, 100, true, 0)],
                ),
                NOW,
            )
            .unwrap();
        assert_eq!(canary_requests(&fleet.take()), 0);
        fleet
            .report(
                "p",
                report(
                    7,
                    vec![epoch(1, 1, 100, true, 0), epoch(2, 1, 100, true, 0)],
                ),
                NOW,
            )
            .unwrap();
        assert_eq!(canary_requests(&fleet.take()), 20);
    }

    #[test]
    fn keeps_the_requests_of_different_weights_apart() {
        let fleet = Fleet::new();
        fleet
            .report(
                "p",
                report(
                    7,
                    vec![epoch(1, 1, 100, true, 0), epoch(2, 2, 500, true, 0)],
                ),
                NOW,
            )
            .unwrap();
        let taken = fleet.take();
        let weights: Vec<_> = taken.slices["web"]
            .iter()
            .map(|slice| slice.block.weight.basis_points())
            .collect();
        assert_eq!(weights, [100, 500]);
    }

    #[test]
    fn a_restarted_proxy_starts_again_and_is_no_drop_in_counts() {
        let mark = Mark {
            proxy: "p".into(),
            boot: BootId(7),
            number: 5,
        };
        let fleet = Fleet::new();
        fleet.resume(vec![mark]);
        let ack = fleet
            .report(
                "p",
                report(
                    7,
                    vec![epoch(5, 1, 100, true, 0), epoch(6, 1, 100, true, 0)],
                ),
                NOW,
            )
            .unwrap();
        assert_eq!(
            ack.acknowledged, 5,
            "as saved before the controller started"
        );
        assert_eq!(canary_requests(&fleet.take()), 10);
        let ack = fleet
            .report("p", report(8, vec![epoch(1, 1, 100, true, 0)]), NOW)
            .unwrap();
        assert_eq!(ack.acknowledged, 0);
        assert_eq!(canary_requests(&fleet.take()), 10);
    }

    #[test]
    fn sees_a_weight_only_when_every_living_proxy_applies_it() {
        let fleet = Fleet::new();
        assert_eq!(fleet.weight_seen("web", NOW), None);
        fleet
            .report("p", report(7, vec![epoch(1, 1, 100, true, 0)]), NOW)
            .unwrap();
        let mut other = report(9, vec![epoch(1, 1, 0, true, 0)]);
        other.proxy = "q".into();
        fleet.report("q", other, NOW).unwrap();
        assert_eq!(fleet.weight_seen("web", NOW), None);
        let later = NOW + PROXY_LIVE;
        fleet
            .report("p", report(7, vec![epoch(2, 1, 100, true, 0)]), later)
            .unwrap();
        assert_eq!(
            fleet.weight_seen("web", later),
            Weight::from_basis_points(100),
            "q is gone"
        );
    }

    #[test]
    fn f07_leaves_requests_that_named_their_release_out_of_the_evidence() {
        let fleet = Fleet::new();
        let mut pinned = epoch(1, 1, 100, true, 5);
        pinned.cells[0].chosen = Chosen::Request;
        fleet.report("p", report(7, vec![pinned]), NOW).unwrap();
        assert_eq!(canary_requests(&fleet.take()), 0);
        assert_eq!(
            fleet.recent("web", Arm::Canary, NOW).bad,
            5,
            "people see them all the same"
        );
    }

    #[test]
    fn refuses_a_report_under_another_name() {
        let fleet = Fleet::new();
        assert!(matches!(
            fleet.report("q", report(7, vec![]), NOW),
            Err(ReportError::Name(..))
        ));
    }
}

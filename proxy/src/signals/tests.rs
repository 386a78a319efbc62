use proxy_api::Arm;

use super::*;
use crate::telemetry::Telemetry;
use proxy_api::latency_bucket;

const BOOT: BootId = BootId(7);
const OLD: Duration = Duration::from_secs(10);
const WORKERS: usize = 2;

struct World {
    signals: Arc<Signals>,
    place: Arc<Place>,
    routed: AtomicU64,
}

impl World {
    fn new(waiting_max: usize) -> Self {
        let telemetry = Telemetry::new().unwrap();
        Self {
            signals: Arc::new(Signals::new(BOOT, waiting_max, WORKERS, Instant::now())),
            place: Arc::new(Place {
                route: "web".into(),
                arm: Arm::Canary,
                release: "v2".into(),
                endpoint: None,
                kinds: Arc::default(),
                metrics: telemetry.place("web", Arm::Canary, "v2", None),
            }),
            routed: AtomicU64::new(0),
        }
    }

    fn route(&self, generation: Generation) -> Result<Ticket, Stale> {
        let request = Request {
            place: &self.place,
            group: 3,
            chosen: Chosen::Weight,
            age_max: OLD,
        };
        // One worker after the other.
        let worker = self.routed.fetch_add(1, Ordering::Relaxed) as usize;
        let shard = self.signals.shard(worker);
        let begun = shard.begin(generation, request, None, Instant::now());
        begun.map(|(ticket, _)| ticket)
    }

    fn report(&self) -> Report {
        let (report, next) = self.signals.report("p", 0, Instant::now(), Vec::new);
        assert_eq!(next, None, "all of it");
        report
    }

    fn ack(&self, sent: &Report, acknowledged: u64) {
        let ack = ReportAck {
            boot: BOOT,
            acknowledged,
        };
        self.signals.acknowledge(&mut finals(sent), ack);
    }
}

const NONE: Generation = Generation { term: 0, seq: 0 };
const FIRST: Generation = Generation { term: 1, seq: 1 };

fn numbers(report: &Report) -> Vec<(u64, bool)> {
    report
        .epochs
        .iter()
        .map(|e| (e.number, e.is_final))
        .collect()
}

/// The epochs of the report that are final there.
fn finals(report: &Report) -> Vec<u64> {
    let finals = report.epochs.iter().filter(|epoch| epoch.is_final);
    finals.map(|epoch| epoch.number).collect()
}

#[tokio::test(start_paused = true)]
async fn counts_a_request_in_the_epoch_in_which_it_was_routed() {
    let world = World::new(10);
    let mut ticket = world.route(NONE).unwrap();
    ticket.answered();
    tokio::time::advance(EPOCH_LENGTH).await;
    world.signals.tick(Instant::now());
    let report = world.report();
    assert_eq!(numbers(&report), [(1, false), (2, false)]);
    assert_eq!(report.epochs[0].duration_ms, 500);
    assert_eq!(
        (
            report.epochs[0].cells[0].unfinished,
            report.epochs[1].cells.len()
        ),
        (1, 0)
    );
    tokio::time::advance(Duration::from_millis(300)).await;
    drop(ticket);
    let epoch = world.report().epochs.remove(0);
    assert!(epoch.is_final);
    let cell = &epoch.cells[0];
    assert_eq!((cell.outcomes, cell.unfinished), ([1, 0, 0, 0, 0], 0));
    assert_eq!(cell.latency, [(latency_bucket(800_000), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_new_table_cuts_the_epoch_and_stale_choices_are_sent_back() {
    let world = World::new(10);
    let old = world.route(NONE).unwrap();
    let weights = Weights::from([("web".to_owned(), BasisPoints::ALL)]);
    let now = Instant::now();
    world.signals.cut(FIRST, weights.clone(), now, || {});
    assert_eq!(world.route(NONE).unwrap_err(), Stale);
    let new = world.route(FIRST).unwrap();
    let report = world.report();
    let generations: Vec<_> = report.epochs.iter().map(|e| e.generation).collect();
    assert_eq!(generations, [NONE, FIRST]);
    assert_eq!(
        (report.epochs[0].weights.len(), &report.epochs[1].weights),
        (0, &weights)
    );
    assert!(
        report
            .epochs
            .iter()
            .all(|epoch| epoch.cells[0].requests == 1)
    );
    drop((old, new));
}

#[tokio::test(start_paused = true)]
async fn the_first_failure_is_the_outcome() {
    let world = World::new(10);
    let mut ticket = world.route(NONE).unwrap();
    ticket.failed(Outcome::Connect);
    ticket.failed(Outcome::Reset);
    ticket.answered();
    drop(ticket);
    let mut broken = world.route(NONE).unwrap();
    broken.answered();
    broken.failed(Outcome::Reset);
    broken.failed_to_user();
    drop(broken);
    let cell = world.report().epochs.remove(0).cells.remove(0);
    assert_eq!(cell.outcomes, [0, 0, 0, 1, 1]);
    assert_eq!((cell.failed_to_user, cell.latency.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn answers_are_counted_by_kind_over_all_workers_and_the_bad_are_not() {
    let world = World::new(10);
    let kind = |text: &'static str| {
        let header = http::HeaderValue::from_static(text);
        world.place.kinds.of(Some(&header))
    };
    for text in ["glad", "sad", "glad", "two words"] {
        let mut ticket = world.route(NONE).unwrap();
        ticket.answered();
        ticket.of_kind(kind(text));
    }
    let mut broken = world.route(NONE).unwrap();
    broken.answered();
    broken.of_kind(kind("glad"));
    broken.failed(Outcome::Reset);
    drop(broken);
    // Its client left before the head came.
    drop(world.route(NONE).unwrap());
    let cell = world.report().epochs.remove(0).cells.remove(0);
    assert_eq!(cell.requests, 6);
    let expected = [("(none)", 1), ("glad", 2), ("sad", 1)];
    assert_eq!(
        cell.kinds,
        expected.map(|(kind, n)| (kind.to_owned(), n)).into()
    );
}

#[tokio::test(start_paused = true)]
async fn an_old_request_ages_out_and_its_later_end_changes_nothing() {
    let world = World::new(100);
    let silent = world.route(NONE).unwrap();
    let mut stream = world.route(NONE).unwrap();
    stream.answered();
    let mut shielded = world.route(NONE).unwrap();
    shielded.failed(Outcome::ServerError);
    tokio::time::advance(OLD - Duration::from_millis(1)).await;
    world.signals.tick(Instant::now());
    assert!(!world.report().epochs[0].is_final);
    tokio::time::advance(Duration::from_millis(1)).await;
    world.signals.tick(Instant::now());
    let aged = world.report().epochs.remove(0);
    assert!(aged.is_final);
    assert_eq!(aged.cells[0].outcomes, [1, 1, 1, 0, 0]);
    assert_eq!(aged.cells[0].latency, [(latency_bucket(10_000_000), 1)]);
    stream.failed(Outcome::Reset);
    stream.failed_to_user();
    drop((silent, stream, shielded));
    assert_eq!(world.report().epochs[0], aged);
}

#[tokio::test(start_paused = true)]
async fn an_epoch_stays_until_it_was_acknowledged_as_final() {
    let world = World::new(100);
    let ticket = world.route(NONE).unwrap();
    world.signals.tick(Instant::now());
    world.signals.tick(Instant::now());
    let sent = world.report();
    assert_eq!(numbers(&sent), [(1, false), (2, true), (3, false)]);
    drop(ticket);
    // It became final after the report was made: that acknowledgement is not about it.
    world.ack(&sent, 3);
    assert_eq!(numbers(&world.report()), [(1, true), (3, false)]);
    let sent = world.report();
    world.ack(&sent, 0);
    assert_eq!(
        numbers(&world.report()),
        [(1, true), (3, false)],
        "none yet"
    );
    world.signals.acknowledge(
        &mut finals(&sent),
        ReportAck {
            boot: BootId(8),
            acknowledged: 9,
        },
    );
    assert_eq!(
        numbers(&world.report()),
        [(1, true), (3, false)],
        "of another boot"
    );
    world.ack(&sent, 3);
    world.ack(&sent, 3);
    assert_eq!(numbers(&world.report()), [(3, false)]);
}

#[tokio::test(start_paused = true)]
async fn lets_the_oldest_epochs_go_when_too_many_wait_and_says_so() {
    let world = World::new(3);
    let late = world.route(NONE).unwrap();
    for _ in 0..5 {
        world.signals.tick(Instant::now());
    }
    drop(late);
    let report = world.report();
    assert_eq!(report.epochs_dropped, 2);
    assert_eq!(
        numbers(&report),
        [(3, true), (4, true), (5, true), (6, false)]
    );
}

/// All reports of one moment; each has the present epoch at its end, and is not larger than it may be.
fn all_reports(world: &World) -> Vec<Report> {
    let mut reports = Vec::new();
    let mut from = Some(0);
    while let Some(first) = from {
        let (report, next) = world.signals.report("p", first, Instant::now(), Vec::new);
        let bytes = serde_json::to_vec(&report).unwrap().len();
        assert!(bytes <= REPORT_BYTES_MAX, "{bytes}");
        assert!(report.epochs.len() <= REPORT_EPOCHS_MAX + 1);
        reports.push(report);
        from = next;
    }
    reports
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_told_in_pieces_from_the_oldest_on_each_epoch_once() {
    let world = World::new(EPOCHS_WAITING_MAX);
    for _ in 0..EPOCHS_WAITING_MAX {
        drop(world.route(NONE).unwrap());
        world.signals.tick(Instant::now());
    }
    let reports = all_reports(&world);
    assert_eq!(reports.len(), EPOCHS_WAITING_MAX / REPORT_EPOCHS_MAX);
    let present = EPOCHS_WAITING_MAX as u64 + 1;
    for report in &reports {
        let last = report.epochs.last().unwrap();
        assert_eq!((last.number, last.is_final), (present, false));
    }
    let told: Vec<u64> = reports.iter().flat_map(finals).collect();
    assert!(told.iter().copied().eq(1..present), "{told:?}");
    // What came in an earlier piece may be acknowledged by the answer to a later one.
    let mut told = told;
    for (acknowledged, left) in [(0, 1_200), (130, 1_070), (1_200, 0)] {
        let ack = ReportAck {
            boot: BOOT,
            acknowledged,
        };
        world.signals.acknowledge(&mut told, ack);
        assert_eq!(told.len(), left);
    }
    assert_eq!(numbers(&world.report()), [(present, false)]);
}

#[tokio::test(start_paused = true)]
async fn a_report_of_large_epochs_has_fewer_of_them() {
    let world = World::new(100);
    let name = |number: usize| (format!("{number:0>10000}"), BasisPoints::ALL);
    // Ten of them are a megabyte.
    let weights: Weights = (0..10).map(name).collect();
    for seq in 1..=100 {
        let generation = Generation { term: 1, seq };
        let now = Instant::now();
        world.signals.cut(generation, weights.clone(), now, || {});
    }
    let reports = all_reports(&world);
    assert!((3..=5).contains(&reports.len()), "{}", reports.len());
    let told: Vec<u64> = reports.iter().flat_map(finals).collect();
    assert!(told.iter().copied().eq(1..=100), "{told:?}");
}

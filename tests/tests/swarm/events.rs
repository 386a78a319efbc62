//! The engine's events: what is new is used at once, who has nothing to do asks seldom, and a lost stream costs delay alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use controller_testing::eventually;
use friday::clock::{Clock, SystemClock};
use rollout::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::stage::{SPEC, Stage};
use crate::world::{LIMIT, World, docker};

/// F23: a new address is in use within this, once its task is ready.
const USED_MAX: Duration = Duration::from_secs(1);

/// A task's stop begins 3 s after it is decided; so much earlier its address must be out of use.
const LEFT_MAX: Duration = Duration::from_secs(2);

/// How long calls are counted.
const COUNTED: Duration = Duration::from_secs(8);

/// So long it asks seldom who is at rest: longer than what follows a change.
const REST: Duration = Duration::from_secs(4);

/// The most calls a second of a controller with one service and nothing to do: a look takes two, once a second.
const CALLS_MAX: f64 = 3.0;

/// Stands before an engine: counts what it is asked, and cuts connections.
struct Relay {
    socket: PathBuf,
    asked: Arc<AtomicUsize>,
    streams: Arc<AtomicUsize>,
    cut: watch::Sender<u32>,
}

impl Relay {
    fn start(engine: &Path) -> Self {
        // In a folder beside those of the nodes: what else the lab has is found from there.
        let folder = engine.parent().unwrap().parent().unwrap().join("relay");
        std::fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("docker.sock");
        drop(std::fs::remove_file(&socket));
        let listener = UnixListener::bind(&socket).unwrap();
        let (asked, streams) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (cut, was_cut) = watch::channel(0);
        let (engine, counts) = (engine.to_owned(), (asked.clone(), streams.clone()));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let engine = UnixStream::connect(&engine).await.unwrap();
                tokio::spawn(pass(client, engine, counts.clone(), was_cut.clone()));
            }
        });
        Self {
            socket,
            asked,
            streams,
            cut,
        }
    }

    /// Waits until the controller has nothing to do and asks seldom.
    async fn rest(&self) {
        eventually(
            "the controller is at rest",
            LIMIT,
            async || self.rate(REST).await,
            |rate| *rate <= CALLS_MAX,
        )
        .await;
    }

    /// Calls a second, from now on and for `counted`.
    async fn rate(&self, counted: Duration) -> f64 {
        let (before, began) = (self.asked.load(Ordering::SeqCst), Instant::now());
        sleep(counted).await;
        let calls = self.asked.load(Ordering::SeqCst) - before;
        calls as f64 / began.elapsed().as_secs_f64()
    }

    /// How often events were asked for.
    fn streams(&self) -> usize {
        self.streams.load(Ordering::SeqCst)
    }

    fn cut(&self) {
        self.cut.send_modify(|times| *times += 1);
    }
}

async fn pass(
    client: UnixStream,
    engine: UnixStream,
    (asked, streams): (Arc<AtomicUsize>, Arc<AtomicUsize>),
    mut cut: watch::Receiver<u32>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_engine, mut to_engine) = engine.into_split();
    let there = async move {
        let mut piece = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from_client.read(&mut piece).await {
            let text = String::from_utf8_lossy(&piece[..count]);
            asked.fetch_add(text.matches(" HTTP/1.1\r\n").count(), Ordering::SeqCst);
            streams.fetch_add(text.matches("/events?").count(), Ordering::SeqCst);
            if to_engine.write_all(&piece[..count]).await.is_err() {
                return;
            }
        }
    };
    let back = async move { drop(tokio::io::copy(&mut from_engine, &mut to_client).await) };
    cut.mark_unchanged();
    tokio::select! {
        () = there => {}
        () = back => {}
        _ = cut.changed() => {}
    }
}

/// When a task began to run, as the engine says, of those that run: the newest.
fn newest_running(socket: &Path) -> Timestamp {
    let tasks = docker(
        socket,
        &[
            "service",
            "ps",
            "worker",
            "--quiet",
            "--no-trunc",
            "--filter",
            "desired-state=running",
        ],
    );
    let format =
        "{{.Status.State}} {{.Status.Timestamp.Format \"2006-01-02T15:04:05.999999999Z07:00\"}}";
    let mut arguments = vec!["inspect", "--type", "task", "--format", format];
    arguments.extend(tasks.lines());
    let times = docker(socket, &arguments);
    let running = times
        .lines()
        .filter_map(|line| line.strip_prefix("running "));
    running.map(|text| text.parse().unwrap()).max().unwrap()
}

/// Scales the service, and waits until so many tasks are in use; how long that took after the order.
async fn scale(stage: &Stage, socket: &Path, tasks: usize) -> Duration {
    docker(
        socket,
        &["service", "scale", "--detach", &format!("worker={tasks}")],
    );
    let ordered = Instant::now();
    eventually(
        "as many tasks as ordered are in use",
        LIMIT,
        async || stage.endpoints(0).await.0,
        |count| *count == tasks,
    )
    .await;
    ordered.elapsed()
}

#[test]
fn f23_an_address_is_in_use_within_a_second_of_ready_and_out_of_use_before_its_task_stops() {
    let world = World::new();
    world.create(&[]);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let relay = Relay::start(&socket);
        let stage = Stage::open(relay.socket.clone(), SPEC, 1).await;
        let clock = SystemClock::new();
        relay.rest().await;
        scale(&stage, &socket, 3).await;
        let used = clock.now();
        let late = used.duration_since(newest_running(&socket));
        println!("in use {late:?} after it was ready");
        assert!(late <= USED_MAX.try_into().unwrap(), "{late:?}");

        relay.rest().await;
        let took = scale(&stage, &socket, 1).await;
        println!("out of use {took:?} after the order");
        assert!(took <= LEFT_MAX, "{took:?}");
    });
}

#[test]
fn a_controller_at_rest_asks_seldom_and_a_lost_stream_of_events_changes_nothing_but_the_delay() {
    let world = World::new();
    world.create(&[]);
    let socket = world.lab().socket(1);
    world.lab().within(move || async move {
        let relay = Relay::start(&socket);
        let stage = Stage::open(relay.socket.clone(), SPEC, 1).await;
        relay.rest().await;
        let rate = relay.rate(COUNTED).await;
        println!("{rate:.1} calls a second at rest");
        assert!(rate <= CALLS_MAX, "{rate}");
        let streams = relay.streams();
        assert!(streams >= 1);

        relay.cut();
        scale(&stage, &socket, 3).await;
        eventually(
            "events are followed again",
            LIMIT,
            async || relay.streams(),
            |count| *count > streams,
        )
        .await;
    });
}

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::json;

use super::*;
use crate::store::outbox::OutboxState;

/// Goes with tokio's time, which is paused; its time of day may be ahead.
#[derive(Debug)]
struct TokioClock(tokio::time::Instant, Mutex<Duration>);

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        let ahead = *lock(&self.1);
        start() + self.0.elapsed() + ahead
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

fn start() -> Timestamp {
    "2026-11-20T16:00:00Z".parse().unwrap()
}

/// Says what it is told to, then yes; it remembers what it was asked.
#[derive(Debug, Default)]
struct Scripted {
    answers: Mutex<VecDeque<Undelivered>>,
    asked: Mutex<Vec<String>>,
    /// As long as it holds a word, everything fails with that.
    away: Mutex<Option<Undelivered>>,
    /// What is about these rollouts fails, and seems to reach so far.
    sick: Mutex<Option<(&'static [&'static str], Reach)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Courier for Scripted {
    async fn tell(&self, message: &Message) -> Result<Option<String>, Undelivered> {
        let shown = format!("{} {} {}", message.rollout, message.topic, message.body);
        lock(&self.asked).push(shown);
        if let Some(away) = lock(&self.away).clone() {
            return Err(away);
        }
        if let Some((sick, reach)) = *lock(&self.sick)
            && sick.contains(&message.rollout.as_str())
        {
            return Err(failure(reach, None));
        }
        lock(&self.answers).pop_front().map_or(Ok(None), Err)
    }
}

fn failure(reach: Reach, after: Option<Duration>) -> Undelivered {
    Undelivered {
        reach,
        after,
        words: "no".into(),
    }
}

/// An outbox in memory: a database is another thread's, which paused time does not wait for.
#[derive(Debug, Default)]
struct Memory {
    waiting: Mutex<Vec<Message>>,
    dead: Mutex<u64>,
    /// How long it takes to save what failed.
    slow: Mutex<Duration>,
}

#[async_trait]
impl Outbox for Memory {
    async fn waiting(&self, destination: Destination, _: u32) -> Result<Vec<Message>, StoreError> {
        let all = lock(&self.waiting).clone();
        Ok(all
            .into_iter()
            .filter(|one| one.destination == destination)
            .collect())
    }

    async fn settle(&self, _: u64, message: &Message, settled: &Settled) -> Result<(), StoreError> {
        if let Settled::Failed { .. } = settled {
            for one in lock(&self.waiting).iter_mut() {
                one.attempts += u32::from(one.id == message.id);
            }
            let slow = *lock(&self.slow);
            tokio::time::sleep(slow).await;
            return Ok(());
        }
        let is_this = |one: &Message| (one.id, one.version) == (message.id, message.version);
        lock(&self.waiting).retain(|one| !is_this(one));
        *lock(&self.dead) += u64::from(matches!(settled, Settled::Dead { .. }));
        Ok(())
    }

    async fn told(&self, _: &RolloutId, _: &str) -> Result<Option<String>, StoreError> {
        Ok(None)
    }

    async fn is_anothers(&self, _: &RolloutId, _: &str, _: &str) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn outbox_state(&self) -> Result<OutboxState, StoreError> {
        Ok(OutboxState::default())
    }
}

struct World {
    store: Arc<Memory>,
    courier: Arc<Scripted>,
    clock: Arc<TokioClock>,
    wake: watch::Sender<u64>,
    running: Option<(
        CancellationToken,
        tokio::task::JoinHandle<Result<(), StoreError>>,
    )>,
}

impl World {
    fn new() -> Self {
        Self {
            store: Arc::default(),
            courier: Arc::default(),
            clock: Arc::new(TokioClock(tokio::time::Instant::now(), Mutex::default())),
            wake: watch::Sender::new(0),
            running: None,
        }
    }

    fn begin(&mut self) {
        let notifier = Notifier {
            store: Arc::clone(&self.store) as Arc<dyn Outbox>,
            term: 1,
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            courier: Arc::clone(&self.courier) as Arc<dyn Courier>,
            wake: self.wake.subscribe(),
            pace: Pace::default(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(notifier.run(stop.clone()));
        self.running = Some((stop, task));
    }

    async fn end(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            stop.cancel();
            task.await.unwrap().unwrap();
        }
    }

    fn say(&self, rollout: &str, topic: &str, body: i64) {
        let mut waiting = lock(&self.store.waiting);
        let rollout = RolloutId::from_text(rollout);
        let old = waiting
            .iter_mut()
            .find(|one| one.rollout == rollout && one.topic == topic);
        if let Some(old) = old {
            old.version += 1;
            old.body = json!(body);
        } else {
            let id = waiting.last().map_or(1, |last| last.id + 1);
            waiting.push(Message {
                id,
                version: 1,
                rollout,
                destination: Destination::Gitlab,
                topic: topic.into(),
                body: json!(body),
                at: self.clock.now(),
                attempts: 0,
            });
        }
        self.wake.send_modify(|count| *count += 1);
    }

    /// Waits until nothing waits to be told, by paused time at most `within`.
    async fn until_told(&self, within: Duration) {
        let end = self.clock.elapsed() + within;
        while !lock(&self.store.waiting).is_empty() {
            assert!(self.clock.elapsed() < end, "{:?}", self.store);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn asked(&self) -> Vec<String> {
        lock(&self.courier.asked).clone()
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(start_paused = true)]
async fn a_pause_that_ends_while_the_failure_is_saved_is_over() {
    for reach in [Reach::Everything, Reach::Rollout] {
        let mut world = World::new();
        *lock(&world.store.slow) = Duration::from_secs(3);
        lock(&world.courier.answers).push_back(failure(reach, None));
        world.begin();
        world.say("web-1", "note", 1);
        world.until_told(Duration::from_secs(6)).await;
        assert_eq!(world.asked().len(), 2);
        world.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn tells_what_waited_for_hours_in_order_once_and_only_the_newest_of_each() {
    let mut world = World::new();
    *lock(&world.courier.away) = Some(failure(Reach::Everything, None));
    world.begin();
    for hour in 0..9 {
        world.say("web-1", "note", hour);
        world.say("web-1", "status", hour);
        world.say("web-2", "note", hour);
        tokio::time::sleep(HOUR).await;
    }
    let tried = world.asked().len();
    assert!((50..400).contains(&tried), "{tried} attempts in nine hours");
    // Another life in between.
    world.end().await;
    lock(&world.courier.asked).clear();
    *lock(&world.courier.away) = None;
    world.begin();
    world.until_told(Duration::from_secs(60)).await;
    assert_eq!(
        world.asked(),
        ["web-1 note 8", "web-1 status 8", "web-2 note 8"]
    );
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn waits_as_long_as_it_is_told_to() {
    let mut world = World::new();
    let after = Some(Duration::from_secs(600));
    lock(&world.courier.answers).push_back(failure(Reach::Everything, after));
    world.say("web-1", "note", 1);
    let begun = world.clock.elapsed();
    world.begin();
    world.until_told(HOUR).await;
    let waited = world.clock.elapsed() - begun;
    assert!(
        waited >= Duration::from_secs(600) && waited < Duration::from_secs(700),
        "{waited:?}"
    );
    assert_eq!(world.asked().len(), 2);
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn one_rollout_in_trouble_keeps_its_own_order_and_nobody_else_waiting() {
    // Also where GitLab seems to be away whenever it is asked for this one.
    for reach in [Reach::Rollout, Reach::Everything] {
        let mut world = World::new();
        *lock(&world.courier.sick) = Some((&["web-1"], reach));
        world.say("web-1", "note", 1);
        world.say("web-1", "status", 1);
        world.say("web-2", "note", 1);
        world.begin();
        tokio::time::sleep(HOUR).await;
        // It was tried so often that its own pause is the longest; what is new waits for seconds.
        world.say("web-3", "note", 1);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let asked = world.asked();
        for told in ["web-2 note 1", "web-3 note 1"] {
            assert!(asked.contains(&told.to_owned()), "{told}: {asked:?}");
        }
        assert!(!asked.contains(&"web-1 status 1".to_owned()), "{asked:?}");
        *lock(&world.courier.sick) = None;
        world.until_told(HOUR).await;
        assert_eq!(world.asked().last().unwrap(), "web-1 status 1");
        world.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_rollouts_in_trouble_keep_nobody_else_waiting_for_longer_than_one_pause() {
    let mut world = World::new();
    *lock(&world.courier.sick) = Some((&["web-1", "web-2"], Reach::Everything));
    world.say("web-1", "note", 1);
    world.say("web-2", "note", 1);
    world.begin();
    // Each fails when the other's failure is still in doubt: the pause of all is the longest by now.
    tokio::time::sleep(HOUR).await;
    for rollout in ["shop-1", "shop-2", "shop-3"] {
        world.say(rollout, "note", 1);
        tokio::time::sleep(Pace::default().most + Duration::from_secs(1)).await;
        let asked = world.asked();
        assert!(
            asked.contains(&format!("{rollout} note 1")),
            "{rollout}: {asked:?}"
        );
    }
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn gives_up_what_can_never_be_told_and_what_nobody_took_for_a_week() {
    let mut world = World::new();
    lock(&world.courier.answers).push_back(failure(Reach::Never, None));
    world.say("web-1", "note", 1);
    world.begin();
    world.until_told(HOUR).await;
    assert_eq!(*lock(&world.store.dead), 1);
    *lock(&world.courier.away) = Some(failure(Reach::Everything, None));
    world.say("web-2", "note", 1);
    tokio::time::sleep(6 * 24 * HOUR).await;
    assert_eq!(*lock(&world.store.dead), 1);
    world.until_told(2 * 24 * HOUR).await;
    assert_eq!(*lock(&world.store.dead), 2);
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_a_month_ahead_for_a_minute_gives_nothing_up() {
    let mut world = World::new();
    *lock(&world.courier.away) = Some(failure(Reach::Everything, None));
    world.say("web-1", "note", 1);
    world.begin();
    *lock(&world.clock.1) = 30 * 24 * HOUR;
    tokio::time::sleep(Duration::from_secs(60)).await;
    *lock(&world.clock.1) = Duration::ZERO;
    *lock(&world.courier.away) = None;
    world.until_told(HOUR).await;
    assert_eq!(*lock(&world.store.dead), 0);
    world.end().await;
}

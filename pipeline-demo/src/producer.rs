//! The subscriber's place: takes records from a source and appends them to topic "tweets" at an even rate.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use prometheus::IntCounter;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::unconstrained;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::{Hush, wait_after};
use crate::bus::{Bus, BusConfig, BusError, NewRecord, Position, TWEETS};
use crate::intake::{append_all, to_repeat};
use crate::server::{self, Counted, Health, Server, ServerConfig, ServerError};
use crate::source::{Source, SourceConfig, SourceError, SourceRecord};
use crate::telemetry::{Identity, Telemetry, chain};

/// How often the producer looks what is due. Below the 5 ms a record may be early or late, nobody can tell; and at 5,000
/// records a second it is 25 records a time.
const TICK: Duration = Duration::from_millis(5);

/// How much of a delay is made up for. After a longer one (a suspended machine, a bus that was away) the rate goes on as
/// before, because a burst would be a load that nobody asked for.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// Records that may wait for the bus at once: at 5,000 a second 6 s of a bus that does not answer, 13 MB at 400 bytes a
/// record. Without a rate it is what makes batches large, and a broker writes a batch at once.
const UNACKNOWLEDGED_MAX: usize = 32_768;

/// Bytes of those records at most, because a record may have 256 KiB. One above it is sent all the same.
const UNACKNOWLEDGED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How long the records on their way may take once the producer is told to stop.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);

/// What to produce.
#[derive(Debug, Clone, PartialEq)]
pub struct ProducerConfig {
    /// Where to.
    pub bus: BusConfig,
    /// Where from.
    pub source: SourceConfig,
    /// Records a second, above 0; infinite for as many as the bus takes.
    pub rate: f64,
    /// When to end; without it, with the source.
    pub duration: Option<Duration>,
    /// Where to show the counts.
    pub server: ServerConfig,
    /// Labels of the metrics.
    pub identity: Identity,
}

/// What was produced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Produced {
    /// Records that are durable in the bus.
    pub tasks_produced: u64,
    /// Those among them that were made malformed on purpose.
    pub malformed_produced: u64,
}

/// Why the producer ended early.
#[derive(Debug, thiserror::Error)]
pub enum ProducerError {
    /// The source failed.
    #[error("the source failed")]
    Source(#[from] SourceError),
    /// The bus failed in a way that trying again does not mend.
    #[error("the bus failed")]
    Bus(#[from] BusError),
    /// The process cannot be reached.
    #[error("the producer's server failed")]
    Server(#[from] ServerError),
}

/// Produces until the source or the time is over, or `shutdown`; all it counted is durable when it returns.
///
/// # Errors
/// When the source ends in an error or the bus cannot be opened. A bus that is away for a while is waited for.
pub async fn run(
    config: ProducerConfig,
    shutdown: CancellationToken,
) -> Result<Produced, ProducerError> {
    let bus = tokio::select! {
        bus = config.bus.open() => bus?,
        () = shutdown.cancelled() => return Ok(Produced::default()),
    };
    let source = config.source.open().await?;
    let server = Server::bind(&config.server).await?;
    let producer = Producer::new(bus, &config);
    info!(listen = %server.address(), rate = config.rate, "produce: started");
    let routes = server::routes(producer.health());
    let produced = server::beside(server, routes, producer.run(source, shutdown)).await?;
    info!(?produced, "produce: ended");
    Ok(produced)
}

/// A source's way into the bus.
pub struct Producer {
    bus: Arc<dyn Bus>,
    rate: f64,
    duration: Option<Duration>,
    counts: Arc<Counts>,
    telemetry: Arc<Telemetry>,
    hush: Hush,
}

/// The producer's counts, live.
#[derive(Debug)]
struct Counts {
    produced: IntCounter,
    malformed: IntCounter,
}

impl Counts {
    fn now(&self) -> Produced {
        Produced {
            tasks_produced: self.produced.get(),
            malformed_produced: self.malformed.get(),
        }
    }
}

#[async_trait]
impl Counted for Counts {
    async fn counts(&self) -> Value {
        json!(self.now())
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("bus", &self.bus)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl Producer {
    /// A producer of this rate and duration into `bus`; the rest of the configuration is not looked at.
    #[must_use]
    pub fn new(bus: Arc<dyn Bus>, config: &ProducerConfig) -> Self {
        let telemetry = Telemetry::new(&config.identity);
        let counts = Counts {
            produced: telemetry.counter(
                "pipeline_produced_total",
                "Records appended to the topic of tweets, durably.",
            ),
            malformed: telemetry.counter(
                "pipeline_produced_malformed_total",
                "Those among them that were made malformed on purpose.",
            ),
        };
        Self {
            bus,
            rate: config.rate,
            duration: config.duration,
            counts: Arc::new(counts),
            telemetry: Arc::new(telemetry),
            hush: Hush::default(),
        }
    }

    fn health(&self) -> Health {
        Health {
            telemetry: self.telemetry.clone(),
            ready: Arc::new(AtomicBool::new(true)),
            counted: self.counts.clone(),
        }
    }

    /// Produces; see [`run`].
    ///
    /// # Errors
    /// As [`run`].
    pub async fn run(
        &self,
        mut source: Box<dyn Source>,
        shutdown: CancellationToken,
    ) -> Result<Produced, ProducerError> {
        let started = Instant::now();
        let ends = self.duration.map(|duration| started + duration);
        let over = || async move {
            match ends {
                Some(ends) => sleep_until(ends).await,
                None => std::future::pending().await,
            }
        };
        let mut pace = Pace::new(self.rate);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut on_their_way = OnTheirWay::default();
        let mut open = true;
        while open {
            tokio::select! {
                () = shutdown.cancelled() => open = false,
                () = over() => open = false,
                Some(answered) = on_their_way.next() => {
                    let stopping = async {
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            () = over() => {}
                        }
                        sleep(STOP_WAIT_MAX).await;
                    };
                    tokio::select! {
                        settled = self.settle(answered, &mut on_their_way) => settled?,
                        () = stopping => {
                            warn!("produce: gave up records the bus did not take");
                            return Ok(self.counts.now());
                        }
                    }
                }
                _ = tick.tick() => {
                    let room = UNACKNOWLEDGED_MAX - on_their_way.records.len();
                    for _ in 0..pace.due(started.elapsed()).min(room as u64) {
                        if on_their_way.bytes >= UNACKNOWLEDGED_BYTES_MAX {
                            break;
                        }
                        let Some(record) = source.next().await? else {
                            open = false;
                            break;
                        };
                        pace.sent += 1;
                        on_their_way.push(&*self.bus, record);
                    }
                }
            }
        }
        // What is on its way is finished and counted. A record that is given up here may be durable or not; it is not
        // counted as produced, so nothing that was promised is missing.
        let finishing = async {
            while let Some(answered) = on_their_way.next().await {
                self.settle(answered, &mut on_their_way).await?;
            }
            Ok::<(), BusError>(())
        };
        match timeout_at(Instant::now() + STOP_WAIT_MAX, finishing).await {
            Ok(finished) => finished?,
            Err(_) => warn!("produce: gave up records the bus did not take"),
        }
        Ok(self.counts.now())
    }

    /// Counts a record that the bus has. When it did not take one, that one and all that follow it under its key are appended
    /// again before anything new is: so the last ones of each key stand in their order.
    async fn settle(
        &self,
        (record, appended): Answered,
        on_their_way: &mut OnTheirWay<'_>,
    ) -> Result<(), BusError> {
        let error = match appended {
            Ok(_) => {
                self.count(&record);
                return Ok(());
            }
            Err(error) if error.is_transient() => error,
            Err(error) => return Err(error),
        };
        if self.hush.may_speak() {
            warn!(
                error = chain(&error),
                "produce: the bus did not take a record, trying again"
            );
        }
        let mut all = vec![(record, Err(error))];
        while let Some(answered) = on_their_way.next().await {
            all.push(answered);
        }
        let records: Vec<SourceRecord> = all.iter().map(|(record, _)| record.clone()).collect();
        let (again, _) = to_repeat(all)?;
        sleep(wait_after(1, "produce")).await;
        append_all(&*self.bus, again, &self.hush).await?;
        records.iter().for_each(|record| self.count(record));
        Ok(())
    }

    fn count(&self, record: &SourceRecord) {
        self.counts.produced.inc();
        if record.malformed_on_purpose {
            self.counts.malformed.inc();
        }
    }
}

/// A record that was handed to the bus, and what the bus said.
type Answered = (SourceRecord, Result<Position, BusError>);

/// Records that the bus was handed and has not answered, in their order.
#[derive(Default)]
struct OnTheirWay<'a> {
    records: FuturesOrdered<BoxFuture<'a, Answered>>,
    bytes: usize,
}

impl<'a> OnTheirWay<'a> {
    fn push(&mut self, bus: &'a dyn Bus, record: SourceRecord) {
        self.bytes += record.value.len();
        let new = NewRecord {
            key: record.key.clone(),
            value: record.value.clone(),
        };
        let appending = bus.produce(TWEETS, new);
        // Begun in this order, which is the one in which the bus gets them; tokio's budget would let some begin later.
        let appending = unconstrained(async { (record, appending.await) });
        self.records.push_back(Box::pin(appending));
    }

    /// The answer for the oldest; none while nothing is on its way. A call that is dropped took nothing.
    async fn next(&mut self) -> Option<Answered> {
        let (record, appended) = self.records.next().await?;
        self.bytes -= record.value.len();
        Some((record, appended))
    }
}

/// How many records should have been sent by now. Pure: the time is an argument.
#[derive(Debug)]
struct Pace {
    rate: f64,
    sent: u64,
    /// Time that was lost and is not made up for.
    forgiven: Duration,
}

impl Pace {
    const fn new(rate: f64) -> Self {
        Self {
            rate,
            sent: 0,
            forgiven: Duration::ZERO,
        }
    }

    /// Records due after `elapsed`: the n-th record is due at n / rate, the first at once.
    fn due(&mut self, elapsed: Duration) -> u64 {
        if self.rate.is_infinite() {
            return u64::MAX;
        }
        let worked = elapsed.saturating_sub(self.forgiven);
        let behind = worked.as_secs_f64() - self.sent as f64 / self.rate;
        let too_late = behind - CATCH_UP_MAX.as_secs_f64() - 1.0 / self.rate;
        if too_late > 0.0 {
            self.forgiven += Duration::from_secs_f64(too_late);
        }
        let worked = elapsed.saturating_sub(self.forgiven);
        ((worked.as_secs_f64() * self.rate) as u64 + 1).saturating_sub(self.sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_rate_and_makes_up_for_a_short_delay_only() {
        let mut pace = Pace::new(200.0);
        let mut at = Duration::ZERO;
        for _ in 0..2_000 {
            pace.sent += pace.due(at);
            at += TICK;
        }
        // The last look was at 9.995 s.
        assert!((1_999..=2_000).contains(&pace.sent), "{}", pace.sent);
        let after_a_pause = pace.due(at + Duration::from_millis(500));
        assert!((100..=102).contains(&after_a_pause), "{after_a_pause}");
        let mut pace = Pace::new(200.0);
        pace.sent += pace.due(Duration::ZERO);
        let after_an_hour = pace.due(Duration::from_secs(3_600));
        assert!((200..=202).contains(&after_an_hour), "{after_an_hour}");
        pace.sent += after_an_hour;
        assert!(pace.due(Duration::from_secs(3_601)).abs_diff(200) <= 1);
    }

    #[test]
    fn without_a_rate_there_is_always_something_due() {
        let mut pace = Pace::new(f64::INFINITY);
        pace.sent = 1_000_000;
        assert_eq!(pace.due(Duration::ZERO), u64::MAX);
        assert_eq!(pace.due(Duration::from_secs(3_600)), u64::MAX);
    }

    #[test]
    fn a_slow_rate_sends_its_first_record_at_once() {
        let mut pace = Pace::new(0.5);
        assert_eq!(pace.due(Duration::ZERO), 1);
        pace.sent = 1;
        assert_eq!(pace.due(Duration::from_millis(1_999)), 0);
        assert_eq!(pace.due(Duration::from_secs(2)), 1);
    }
}

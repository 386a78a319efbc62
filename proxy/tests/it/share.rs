//! The share of requests that a weight gives to the canary.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use friday_proxy::pick::{self, Wish};
use futures::StreamExt;
use futures::future::join_all;
use proxy_api::{Arm, BasisPoints, Chosen};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};

use crate::controller::Controller;
use crate::world::{Backend, Client, PATIENCE, Proxy, side, table};

/// Requests for each weight.
const REQUESTS: u32 = 4_000;

/// Requests at a time.
const AT_A_TIME: usize = 16;

/// The weights that are tried, in basis points.
const SHARES: [u16; 4] = [1, 100, 3_700, 9_999];

/// The counts that a binomial distribution of `n` and `p` leaves on either side but once in 2 000 times, by its exact
/// probabilities: near 0 and 1 it looks like no normal one.
fn band(n: u32, p: f64) -> (u32, u32) {
    const TAIL: f64 = 0.000_5;
    let mut log = f64::from(n) * (-p).ln_1p();
    let (mut below, mut low) = (0.0, None);
    for k in 0..=n {
        below += log.exp();
        if low.is_none() && below > TAIL {
            low = Some(k);
        }
        if below >= 1.0 - TAIL {
            return (low.unwrap_or(k), k);
        }
        log += (f64::from(n - k) / f64::from(k + 1)).ln() + p.ln() - (-p).ln_1p();
    }
    (low.unwrap_or(n), n)
}

#[test]
fn the_band_is_that_of_the_binomial_distribution() {
    // 0.001 of ten coins is less than one outcome on either side: 2^-10 is 0.00098.
    assert_eq!(band(10, 0.5), (0, 10));
    assert_eq!(band(20, 0.5), (3, 17));
    // Poisson with mean 1: P(more than 5) is 0.000 59, P(more than 6) is 0.000 08.
    assert_eq!(band(10_000, 0.000_1), (0, 6));
    assert_eq!(band(10_000, 0.999_9), (9_994, 10_000));
}

/// What the proxy has reported of this table: requests of stable, and of the canary.
fn reported(controller: &Controller, seq: u64) -> (u32, u32) {
    controller.look(|ledger| {
        let epochs = ledger.epochs.values();
        let cells = epochs
            .filter(|epoch| epoch.generation.seq == seq)
            .flat_map(|epoch| &epoch.cells);
        cells.fold((0, 0), |(stable, canary), cell| match cell.arm {
            Arm::Stable => (stable + cell.requests, canary),
            Arm::Canary => (stable, canary + cell.requests),
        })
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_the_observed_share_is_in_its_binomial_band_and_the_report_is_what_the_backends_saw() {
    let stable = Backend::named("stable").await;
    let canary = Backend::named("canary").await;
    let at = |seq, share: u16| {
        let more = json!({ "canary_bp": share, "canary": side("v2", &[canary.address]) });
        table(seq, &[stable.address], more)
    };
    let controller = Controller::new(Some(at(1, 0))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    let client = Client::new();
    let url = proxy.url("/");
    let (mut seq, mut sent) = (1, 0);
    for share in SHARES {
        let (low, high) = band(REQUESTS, f64::from(share) / 10_000.0);
        // Chance alone leaves a band once in 1 000 runs, and twice in a row once in a million.
        let mut outside = Vec::new();
        loop {
            seq += 1;
            controller.set(at(seq, share));
            proxy.has(seq).await;
            let before = (stable.hits(), canary.hits());
            let answers = futures::stream::iter(0..REQUESTS).map(|_| client.get(&url, &[]));
            let mut answers = answers.buffer_unordered(AT_A_TIME);
            while let Some(answer) = answers.next().await {
                assert!(["stable", "canary"].contains(&&*answer.unwrap().body));
            }
            let seen = (stable.hits() - before.0, canary.hits() - before.1);
            assert_eq!(seen.0 + seen.1, REQUESTS);
            sent += REQUESTS;
            controller.all_ended(sent).await;
            assert_eq!(reported(&controller, seq), seen, "the report at {share} bp");
            println!("{share} bp: {} of {REQUESTS}, {low} to {high}", seen.1);
            if (low..=high).contains(&seen.1) {
                break;
            }
            outside.push(seen.1);
            assert!(
                outside.len() < 2,
                "{share} bp: {outside:?} of {REQUESTS}, not {low} to {high}"
            );
        }
    }
    proxy.stop().await;
}

#[test]
fn f20_the_choice_itself_is_in_its_band_for_a_million_requests_by_chance_and_by_key() {
    const CHOICES: u32 = 1_000_000;
    // Always the same numbers, so this is the same band that one run may leave, and did not.
    let mut random = SmallRng::seed_from_u64(20);
    for share in SHARES {
        let (low, high) = band(CHOICES, f64::from(share) / 10_000.0);
        let canary = Some(BasisPoints::new(share).unwrap());
        let seed = pick::route_seed("web");
        let (mut by_chance, mut by_key) = (0, 0);
        for client in 0..CHOICES {
            let key = format!("client-{client}");
            let (arm, chosen) = pick::arm(canary, Wish::None, seed, random.random());
            by_chance += u32::from((arm, chosen) == (Arm::Canary, Chosen::Weight));
            let (arm, _) = pick::arm(canary, Wish::Key(key.as_bytes()), seed, 0);
            by_key += u32::from(arm == Arm::Canary);
        }
        println!("{share} bp: {by_chance} by chance, {by_key} by key, {low} to {high}");
        assert!((low..=high).contains(&by_chance), "{share} bp: {by_chance}");
        assert!((low..=high).contains(&by_key), "{share} bp: {by_key}");
    }
}

/// An endpoint that answers with one byte as quickly as it can. Dropped, it is gone.
struct Quick {
    address: SocketAddr,
    hits: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Drop for Quick {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Quick {
    async fn new(body: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hits = Arc::<AtomicU32>::default();
        let counter = Arc::clone(&hits);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(stream, body, Arc::clone(&counter)));
            }
        });
        Self {
            address,
            hits,
            task,
        }
    }
}

async fn answer(mut stream: TcpStream, body: u8, hits: Arc<AtomicU32>) {
    let answer = [b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n", &[body][..]].concat();
    let mut head = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut head).await {
        // The proxy sends the next request when the last is answered.
        if head.ends_with(b"\r\n\r\n") {
            hits.fetch_add(1, Ordering::SeqCst);
            head.clear();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }
}

/// Sends so many requests by one connection, some at a time, and counts the bytes 1 and 2 that come back: no head of an answer
/// has any.
async fn ask(proxy: SocketAddr, requests: usize) -> (u32, u32) {
    const AT_ONCE: usize = 50;
    let batch = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(AT_ONCE);
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let mut buffer = vec![0; 16 << 10];
    let (mut ones, mut twos) = (0, 0);
    for batches in 1..=requests / AT_ONCE {
        stream.write_all(&batch).await.unwrap();
        while ones + twos < batches * AT_ONCE {
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "the proxy closed after {ones} and {twos}");
            ones += buffer[..read].iter().filter(|byte| **byte == 1).count();
            twos += buffer[..read].iter().filter(|byte| **byte == 2).count();
        }
    }
    (ones as u32, twos as u32)
}

// On one thread: other tests measure times beside it.
#[tokio::test]
async fn f20_one_request_in_ten_thousand_comes_to_the_canary_or_to_stable_and_is_counted_so() {
    // So that chance alone would give 20 to the smaller side; split evenly over the connections.
    const REQUESTS: u32 = 200_000;
    const CONNECTIONS: usize = 8;
    let (stable, canary) = (Quick::new(1).await, Quick::new(2).await);
    let at = |seq, share: u16| {
        let more = json!({ "canary_bp": share, "canary": side("v2", &[canary.address]) });
        table(seq, &[stable.address], more)
    };
    let controller = Controller::new(Some(at(1, 0))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    let hits = || {
        let hits = |quick: &Quick| quick.hits.load(Ordering::SeqCst);
        (hits(&stable), hits(&canary))
    };
    let (mut seq, mut sent) = (1, 0);
    for share in [1, 9_999] {
        let (low, high) = band(REQUESTS, f64::from(share) / 10_000.0);
        let mut outside = Vec::new();
        loop {
            seq += 1;
            controller.set(at(seq, share));
            proxy.has(seq).await;
            let (before, began) = (hits(), Instant::now());
            let each = REQUESTS as usize / CONNECTIONS;
            let all = join_all((0..CONNECTIONS).map(|_| tokio::spawn(ask(proxy.listen, each))));
            let answers = timeout(PATIENCE * 6, all).await.expect("answers in time");
            let seen = answers.into_iter().fold((0, 0), |seen, answers| {
                let (ones, twos) = answers.unwrap();
                (seen.0 + ones, seen.1 + twos)
            });
            println!(
                "{share} bp: {} of {REQUESTS}, {low} to {high}, in {:?}",
                seen.1,
                began.elapsed()
            );
            assert_eq!(seen.0 + seen.1, REQUESTS);
            let after = hits();
            assert_eq!(seen, (after.0 - before.0, after.1 - before.1));
            sent += REQUESTS;
            controller.all_ended(sent).await;
            assert_eq!(reported(&controller, seq), seen, "the report at {share} bp");
            if (low..=high).contains(&seen.1) {
                break;
            }
            // Chance alone leaves a band once in 1 000 runs, and twice in a row once in a million.
            outside.push(seen.1);
            assert!(
                outside.len() < 2,
                "{share} bp: {outside:?} of {REQUESTS}, not {low} to {high}"
            );
        }
    }
    proxy.stop().await;
}

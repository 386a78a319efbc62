//! The share of requests that a weight gives to the canary.

use futures::StreamExt;
use proxy_api::Arm;
use serde_json::json;

use crate::controller::Controller;
use crate::world::{Backend, Client, Proxy, side, table};

/// Requests for each weight.
const REQUESTS: u32 = 4_000;

/// Requests at a time.
const AT_A_TIME: usize = 16;

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
    for share in [1, 100, 3_700, 9_999] {
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
            let reported = controller.look(|ledger| {
                let epochs = ledger.epochs.values();
                let cells = epochs
                    .filter(|epoch| epoch.generation.seq == seq)
                    .flat_map(|epoch| &epoch.cells);
                cells.fold((0, 0), |(stable, canary), cell| match cell.arm {
                    Arm::Stable => (stable + cell.requests, canary),
                    Arm::Canary => (stable, canary + cell.requests),
                })
            });
            assert_eq!(reported, seen, "the report at {share} bp");
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

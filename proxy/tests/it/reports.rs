//! What the controller learns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::client::legacy::Client as PooledClient;
use hyper_util::rt::TokioExecutor;
use proxy_api::{Arm, Chosen, Generation, KIND_NONE, KIND_OTHER, KINDS_MAX};
use serde_json::json;

use crate::controller::{Controller, Fate};
use crate::world::{Backend, Client, Proxy, nobody, side, table};

#[tokio::test]
async fn counts_are_exact_though_reports_and_answers_get_lost() {
    let stable = Backend::named("stable").await;
    let canary = Backend::with_status("canary", StatusCode::NOT_FOUND).await;
    let at = |seq, share: u16| {
        let more = json!({ "canary_bp": share, "canary": side("v2", &[canary.address]) });
        table(seq, &[stable.address], more)
    };
    let unreliable = |n| match n % 4 {
        0 => Fate::AnswerLost,
        1 | 2 => Fate::Lost,
        _ => Fate::Answered,
    };
    let controller = Controller::with_fate(Some(at(1, 2_000)), unreliable).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let client = Client::new();
    let url = proxy.url("/");
    let mut sent = 0;
    // Long enough for several reports.
    for seq in 2..40 {
        let answers = join_all((0..50).map(|_| client.get(&url, &[]))).await;
        sent += answers.into_iter().filter(Result::is_ok).count() as u32;
        let pinned = client.get(&url, &[("x-friday-release", "canary")]).await;
        sent += u32::from(pinned.is_ok());
        if seq % 4 == 0 {
            controller.set(at(seq, 2_000 + 100 * seq as u16));
            proxy.has(seq).await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    controller.all_ended(sent).await;
    assert_eq!(stable.hits() + canary.hits(), sent);
    controller.look(|ledger| {
        let count = |arm| {
            ledger
                .cells()
                .filter(|c| c.arm == arm)
                .map(|c| c.requests)
                .sum::<u32>()
        };
        assert_eq!(
            (count(Arm::Stable), count(Arm::Canary)),
            (stable.hits(), canary.hits())
        );
        let pinned = ledger.cells().filter(|c| c.chosen == Chosen::Request);
        assert_eq!(pinned.map(|c| c.requests).sum::<u32>(), 38);
        for cell in ledger.cells() {
            assert_eq!(
                cell.outcomes,
                [cell.requests, 0, 0, 0, 0],
                "404 is the caller's mistake"
            );
            let latencies: u32 = cell.latency.iter().map(|(_, count)| count).sum();
            assert_eq!(latencies, cell.requests);
        }
        // No gaps, and every epoch has the weights of its own table.
        let boots: BTreeMap<_, Vec<_>> =
            ledger
                .epochs
                .keys()
                .fold(BTreeMap::new(), |mut all, (boot, number)| {
                    all.entry(*boot).or_insert_with(Vec::new).push(*number);
                    all
                });
        assert_eq!(boots.len(), 1);
        for numbers in boots.values() {
            assert!(
                numbers.iter().copied().eq(1..=numbers.len() as u64),
                "{numbers:?}"
            );
        }
        for epoch in ledger.epochs.values() {
            if epoch.generation != Generation::default() {
                let expected = 2_000 + 100 * epoch.generation.seq as u16;
                let weight = epoch.weights["web"].get();
                assert!(weight == expected || epoch.generation.seq == 1, "{epoch:?}");
            }
            assert!(epoch.duration_ms < 5_000);
        }
        let dropped = ledger
            .reports
            .iter()
            .map(|report| report.epochs_dropped)
            .max();
        assert_eq!(dropped, Some(0));
    });
    // What was acknowledged is not sent again.
    controller
        .eventually("a short report", |ledger| {
            let last = ledger.reports.last()?;
            (last.epochs.len() <= 8 && last.in_flight.is_empty()).then_some(())
        })
        .await;
    proxy.stop().await;
}

#[tokio::test]
async fn reports_at_once_after_a_new_table_and_with_it_what_is_still_in_flight_elsewhere() {
    let (release, wait) = tokio::sync::watch::channel(false);
    let slow = Backend::new(move |_| {
        let mut wait = wait.clone();
        async move {
            wait.wait_for(|released| *released).await.unwrap();
            crate::world::text(StatusCode::OK, "slow")
        }
    })
    .await;
    let other = Backend::named("other").await;
    let controller = Controller::new(Some(table(1, &[slow.address], json!({})))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let (client, url) = (Client::new(), proxy.url("/"));
    let pending = tokio::spawn(async move { client.get(&url, &[]).await.unwrap() });
    let in_flight = |seq| {
        move |ledger: &crate::controller::Ledger| {
            let last = ledger.reports.last()?;
            let busy = last.in_flight.iter().map(|busy| busy.requests).sum::<u32>();
            (last.generation.seq == seq).then_some(busy)
        }
    };
    controller
        .eventually("the request in flight", |ledger| {
            (in_flight(1)(ledger)? == 1).then_some(())
        })
        .await;
    controller.set(table(2, &[other.address], json!({})));
    let busy = controller
        .eventually("a report of table 2", in_flight(2))
        .await;
    assert_eq!(busy, 1, "the old endpoint still works");
    release.send_replace(true);
    assert_eq!(pending.await.unwrap().body, "slow");
    controller
        .eventually("nothing in flight", |ledger| {
            (in_flight(2)(ledger)? == 0).then_some(())
        })
        .await;
    controller.all_ended(1).await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_stream_without_end_ages_out_as_good_while_it_flows_on() {
    let (events, _) = tokio::sync::broadcast::channel::<Bytes>(16);
    let source = events.clone();
    let streaming = Backend::new(move |_| {
        let receiver = source.subscribe();
        async move {
            let first = futures::stream::iter([Bytes::from_static(b"data: 0\n\n")]);
            let rest = futures::stream::unfold(receiver, |mut receiver| async move {
                Some((receiver.recv().await.ok()?, receiver))
            });
            let frames = first
                .chain(rest)
                .map(|data| Ok::<_, std::convert::Infallible>(Frame::data(data)));
            Response::new(StreamBody::new(frames.boxed()))
        }
    })
    .await;
    let controller = Controller::new(Some(table(1, &[streaming.address], json!({})))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let client: PooledClient<_, Full<Bytes>> =
        PooledClient::builder(TokioExecutor::new()).build_http();
    let request = Request::get(proxy.url("/events"))
        .body(Full::default())
        .unwrap();
    let mut body = client.request(request).await.unwrap().into_body();
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "data: 0\n\n"
    );
    // 11 s: the connect and the response timeout of the route.
    controller.all_ended(1).await;
    controller.look(|ledger| {
        let cell = ledger.cells().next().unwrap();
        assert_eq!((cell.outcomes, cell.failed_to_user), ([1, 0, 0, 0, 0], 0));
        let busy = &ledger.reports.last().unwrap().in_flight;
        assert_eq!(busy.len(), 1, "it is in flight all the same");
    });
    events.send(Bytes::from_static(b"data: 1\n\n")).unwrap();
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "data: 1\n\n"
    );
    drop((body, client));
    controller
        .eventually("nothing in flight", |ledger| {
            ledger.reports.last()?.in_flight.is_empty().then_some(())
        })
        .await;
    assert_eq!(
        controller.look(|ledger| ledger.requests()),
        (1, 0),
        "counted once"
    );
    proxy.stop().await;
}

#[tokio::test]
async fn kinds_of_answers_are_counted_by_release_and_bounded_whatever_upstreams_write() {
    let mood = |mood: String| {
        let mut answer = crate::world::text(StatusCode::OK, "answer");
        let mood = HeaderValue::try_from(mood).unwrap();
        answer.headers_mut().insert("x-mood", mood);
        answer
    };
    let stable = Backend::new(move |_| async move { mood("glad".to_owned()) }).await;
    let number = Arc::new(AtomicU32::new(0));
    // An identifier, now and then longer than any word.
    let canary = Backend::new(move |_| {
        let number = number.fetch_add(1, Ordering::Relaxed) as usize;
        async move { mood(format!("{number:0width$}", width = [4, 5_000][number % 2])) }
    })
    .await;
    let more = json!({
        "canary_bp": 5_000,
        "canary": side("v2", &[canary.address]),
        "answer_kind": "x-mood",
    });
    let controller = Controller::new(Some(table(1, &[stable.address], more))).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    proxy.has(1).await;
    let (client, url) = (Client::new(), proxy.url("/"));
    client
        .get(&url, &[("x-friday-release", "stable")])
        .await
        .unwrap();
    for _ in 0..200 {
        client.get(&url, &[]).await.unwrap();
    }
    controller.all_ended(201).await;
    controller.look(|ledger| {
        let mut kinds: BTreeMap<(Arm, String), u32> = BTreeMap::new();
        for cell in ledger.cells() {
            for (kind, count) in &cell.kinds {
                *kinds.entry((cell.arm, kind.clone())).or_default() += count;
            }
        }
        let of = |arm, kind: &str| kinds.get(&(arm, kind.to_owned())).copied().unwrap_or(0);
        assert_eq!(of(Arm::Stable, "glad"), stable.hits());
        // What is no word names none; of the others fifteen are told apart beside stable's.
        assert_eq!(of(Arm::Canary, KIND_NONE), canary.hits() / 2);
        let others = canary.hits().div_ceil(2) - (KINDS_MAX as u32 - 1);
        assert_eq!(of(Arm::Canary, KIND_OTHER), others);
        assert_eq!(kinds.len(), KINDS_MAX + 2);
    });
    let (_, metrics) = proxy.ask("/metrics").await;
    assert!(!metrics.contains("glad"), "kinds make no series");
    proxy.stop().await;
}

#[tokio::test]
async fn what_waited_for_a_controller_gets_through_in_pieces_in_order_and_each_epoch_once() {
    static IS_BACK: AtomicBool = AtomicBool::new(false);
    let fate = |_| match IS_BACK.load(Ordering::SeqCst) {
        true => Fate::Answered,
        false => Fate::Lost,
    };
    // Each table is the end of an epoch, and makes it as large as the names of all its routes: 100 KB.
    let nobody = nobody().await;
    let at = |seq| {
        let mut all = table(seq, &[], json!({}));
        all.routes = (0..50)
            .flat_map(|number| {
                let name = format!("{number:0>2000}");
                let more = json!({ "name": name, "match": { "path": format!("/{number}") } });
                table(seq, &[nobody], more).routes
            })
            .collect();
        all
    };
    let tables = 80;
    // Smaller than all of them together.
    let controller = Controller::with(Some(at(1)), fate, 5 << 20).await;
    let state = tempfile::tempdir().unwrap();
    let proxy = Proxy::led(controller.address, state.path()).await.unwrap();
    for seq in 1..=tables {
        controller.set(at(seq));
        proxy.has(seq).await;
    }
    IS_BACK.store(true, Ordering::SeqCst);
    let last = Generation {
        term: 1,
        seq: tables - 1,
    };
    controller
        .eventually("the epochs of all tables", |ledger| {
            let mut finals = ledger.epochs.values().filter(|epoch| epoch.is_final);
            finals.any(|epoch| epoch.generation == last).then_some(())
        })
        .await;
    controller.look(|ledger| {
        let epochs = ledger.reports.iter().flat_map(|report| &report.epochs);
        let finals: Vec<u64> = epochs
            .filter(|epoch| epoch.is_final)
            .map(|epoch| epoch.number)
            .collect();
        let all = finals.len() as u64;
        assert!(all >= tables);
        assert!(finals.iter().copied().eq(1..=all), "{finals:?}");
        let dropped = ledger.reports.iter().map(|report| report.epochs_dropped);
        assert_eq!(dropped.max(), Some(0));
    });
    proxy.stop().await;
}

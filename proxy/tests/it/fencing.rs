//! Tables of two controllers: the term, their fencing number, counts before everything else.

use http::StatusCode;
use proxy_api::{Generation, RouteTable};
use serde_json::json;

use crate::controller::Controller;
use crate::program::Running;
use crate::world::{Backend, Client, Proxy, eventually, table};

/// The table number `seq` of a term, with this backend alone.
fn of(term: u64, seq: u64, stable: &Backend) -> RouteTable {
    let mut table = table(seq, &[stable.address], json!({}));
    table.generation.term = term;
    table
}

/// Who answers at this URL.
async fn answers(url: &str) -> String {
    Client::new().get(url, &[]).await.unwrap().body
}

#[tokio::test]
async fn f26_a_table_of_an_older_term_is_refused_however_high_it_counts() {
    let (new, old) = (Backend::named("new").await, Backend::named("old").await);
    let proxy = Proxy::alone(&of(1, 7, &old)).await;
    let (status, why) = proxy.put(&of(2, 1, &new)).await;
    assert_eq!(
        status,
        StatusCode::OK,
        "a newer term begins to count anew: {why}"
    );
    for (term, seq) in [(1, 8), (1, u64::MAX), (0, 9), (2, 1)] {
        let (status, why) = proxy.put(&of(term, seq, &old)).await;
        let words = format!("table {term}.{seq} is not newer than 2.1, which is in force\n");
        assert_eq!((status, why), (StatusCode::CONFLICT, words));
    }
    let in_force = proxy.generation().await;
    assert_eq!(in_force, Some(Generation { term: 2, seq: 1 }));
    let term = ["part=\"term\""];
    assert_eq!(proxy.metric("friday_proxy_generation", &term).await, 2.0);
    assert_eq!(answers(&proxy.url("/")).await, "new");
    assert_eq!(old.hits(), 0);
}

#[tokio::test]
async fn f26_a_controller_that_was_replaced_gets_no_table_in_by_a_poll_either() {
    let (new, old) = (Backend::named("new").await, Backend::named("old").await);
    let next = Backend::named("next").await;
    let controller = Controller::new(Some(of(2, 3, &new))).await;
    let (addresses, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let url = format!("http://{}", controller.address);
    let state_dir = state.path().to_str().unwrap();
    let led = [
        "--controller",
        &url,
        "--state-dir",
        state_dir,
        "--name",
        "edge",
    ];
    let proxy = Running::start(addresses.path(), &led).await;
    proxy.logs("generation=2.3", 1).await;

    controller.insist(of(1, 99, &old));
    let words = "table 1.99 is not newer than 2.3, which is in force";
    proxy.logs(words, 1).await;
    proxy.logs("serving on without the controller", 1).await;
    assert_eq!(answers(&proxy.url("/")).await, "new");
    let saved = std::fs::read(state.path().join("table.json")).unwrap();
    let saved: RouteTable = serde_json::from_slice(&saved).unwrap();
    assert_eq!(saved, of(2, 3, &new), "a restart would come back with it");
    let told = controller.look(|ledger| ledger.reports.len());
    controller
        .eventually("a report after the refusal", |ledger| {
            let report = ledger.reports.get(told)?;
            assert_eq!(report.generation, Generation { term: 2, seq: 3 });
            Some(())
        })
        .await;

    controller.set(of(2, 4, &next));
    proxy.logs("the controller answers again", 1).await;
    let what = "the newer controller's next table in force";
    eventually(what, async || {
        (answers(&proxy.url("/")).await == "next").then_some(())
    })
    .await;
    assert_eq!(old.hits(), 0, "no request went by the older term's table");
}

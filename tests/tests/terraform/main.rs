//! The Terraform modules on real engines: from bare ones to a swarm with Friday on it, and back.
//!
//! Needs root, Docker's engine and Terraform. The tests take turns on four engines, which a test leaves as it found them.

#![expect(
    clippy::unwrap_used,
    reason = "clippy excuses test functions alone, not what helps them"
)]

mod bench;
mod roles;

use serde_json::json;
use system_tests::{SshDaemons, stack};

use bench::{Bench, with_engines};

/// The service that Friday releases, and its canary.
const WORKER: &str = "friday_tweets-worker";
const CANARY: &str = "friday_tweets-worker-canary";

/// What runs with all parts.
const PARTS: [&str; 13] = [
    "friday_agent",
    "friday_controller",
    "friday_feeder",
    "friday_ingest",
    "friday_jobs",
    "friday_kafka",
    "friday_postgres",
    "friday_producer",
    "friday_prometheus",
    "friday_proxy",
    "friday_sink",
    "friday_stats",
    WORKER,
];

#[test]
fn bare_engines_become_a_system_that_releases_while_terraform_applies_and_are_bare_again() {
    with_engines(|lab| {
        let bench = Bench::new(lab, None);
        let three = bench.with_platform(&[1, 2, 3]);
        bench.apply(&three);
        bench.are_managers(&[1, 2, 3]);
        for node in [1, 2, 3] {
            bench.answers(node);
        }
        bench.nothing_to_do(&three);
        bench.no_secret_is_in_the_state();
        // The image of the service is Friday's business.
        let mut other = three.clone();
        other["images"]["worker"] = json!("tweets-worker:v2");
        bench.nothing_to_do(&other);

        bench.friday("deploy -f swarm/friday.yml --image tweets-worker:v2");
        bench.until_running(CANARY);
        let (worker, canary) = (bench.tasks(WORKER), bench.tasks(CANARY));
        let image = bench.image_of(WORKER);
        let mut again = other.clone();
        again["secrets_revision"] = json!("2");
        let said = bench.apply(&again);
        assert!(said.contains(&format!("leaves {WORKER} alone")), "{said}");
        for (service, before) in [(WORKER, worker), (CANARY, canary)] {
            let after = bench.tasks(service);
            assert!(
                before.iter().all(|task| after.contains(task)),
                "{service}: {before:?} became {after:?}"
            );
        }
        assert_eq!(bench.image_of(WORKER), image);

        // A manager is replaced: the new one is in before the old one is out.
        let mut replaced = bench.with_platform(&[1, 2, 4]);
        replaced["secrets_revision"] = json!("2");
        let said = bench.apply(&replaced);
        let at = |words: &str| {
            said.find(words)
                .unwrap_or_else(|| panic!("no {words}: {said}"))
        };
        assert!(at("joins host n4") < at("removes n3"), "{said}");
        bench.are_managers(&[1, 2, 4]);
        assert_eq!(bench.membership(3), "inactive");
        bench.answers(4);
        bench.nothing_to_do(&replaced);
        let mut fewer = bench.with_platform(&[1]);
        fewer["secrets_revision"] = json!("2");
        bench.apply(&fewer);
        bench.are_managers(&[1]);
        bench.answers(1);

        // Hosts keep data when they leave, and give it up in the end, but for what is of another stack of this name.
        for node in [2, 3, 4] {
            assert_eq!(bench.volumes(node), "friday_proxy", "n{node}");
        }
        bench.make_volume(4, "friday_others");
        let said = bench.destroy(&fewer);
        assert!(
            said.contains("not of this deployment: friday_others"),
            "{said}"
        );
        assert_eq!(bench.volumes(4), "friday_others");
        lab.docker(4, &["volume", "rm", "friday_others"]);
        bench.nothing_is_left();
    });
}

#[test]
fn hosts_that_are_reached_by_ssh_alone_become_the_whole_system_and_are_bare_again() {
    with_engines(|lab| {
        let daemons = SshDaemons::start(lab, &[1, 2, 3]);
        let bench = Bench::new(lab, Some(&daemons));
        let three = bench.with_all_parts(&[1, 2, 3]);
        bench.apply(&three);
        bench.are_managers(&[1, 2, 3]);
        for part in PARTS {
            bench.until_running(part);
        }
        bench.answers(2);
        let services = bench.friday("list");
        assert!(services.contains(WORKER), "{services}");
        bench.stores_tweets(&[1, 2, 3]);
        stack::until_scraped(lab, &stack::SCRAPED);
        bench.nothing_to_do(&three);
        bench.no_secret_is_in_the_state();
        bench.destroy(&three);
        bench.nothing_is_left();
    });
}

#[test]
fn an_apply_that_would_lose_the_quorum_is_refused_and_changes_nothing() {
    with_engines(|lab| {
        let bench = Bench::new(lab, None);
        let three = bench.swarm_alone(&[1, 2, 3]);
        bench.apply(&three);
        let orders = lab.orders();
        orders.give("cut", 2);
        bench.until_reachable(&[1, 3]);
        // Its socket answers, its cable is out.
        let two = bench.swarm_alone(&[1, 2]);
        let said = bench.refuses(&two);
        assert!(said.contains("nothing was changed"), "{said}");
        assert!(said.contains("only 1 of 2 managers"), "{said}");
        bench.until_reachable(&[1, 3]);
        orders.give("heal", 2);
        bench.until_reachable(&[1, 2, 3]);

        let none = bench.swarm_alone(&[4]);
        let said = bench.refuses(&none);
        assert!(said.contains("none of the managers in hosts"), "{said}");
        bench.are_managers(&[1, 2, 3]);
        assert_eq!(bench.membership(4), "inactive");

        bench.apply(&two);
        bench.are_managers(&[1, 2]);
        bench.destroy(&two);
        bench.nothing_is_left();
    });
}

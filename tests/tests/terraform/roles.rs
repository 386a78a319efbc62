//! Roles and labels: in a swarm that somebody else has made, hosts join as workers, become managers and workers again.

use serde_json::json;

use crate::bench::{Bench, with_engines};

#[test]
fn workers_of_a_swarm_that_was_there_before_become_managers_and_workers_again() {
    with_engines(|lab| {
        let bench = Bench::new(lab, None);
        // Somebody's swarm: the fourth node leads it, and is not Terraform's.
        lab.docker(4, &["swarm", "init", "--advertise-addr", "10.77.0.14"]);
        for (node, role) in [(1, "manager"), (2, "worker")] {
            let token = lab.docker(4, &["swarm", "join-token", "--quiet", role]);
            bench.join(node, &token, 4);
        }
        bench.until_members(
            4,
            &[
                "n1 Ready Active Reachable",
                "n2 Ready Active",
                "n4 Ready Active Reachable",
            ],
        );
        lab.docker(4, &["node", "update", "--label-add", "rack=7", "n2"]);
        let swarm = bench.swarm_id(4);

        // It is adopted; a worker that is new in it joins.
        let adopted = bench.swarm_of(&[
            (1, "manager", json!({ "friday.state": "here", "zone": "a" })),
            (2, "worker", json!({ "disk": "slow" })),
            (3, "worker", json!({})),
        ]);
        let said = bench.apply(&adopted);
        assert!(said.contains("adopts the swarm"), "{said}");
        assert!(said.contains("joins host n3 as a worker"), "{said}");
        assert_eq!(bench.swarm_id(1), swarm);
        bench.until_members(
            1,
            &[
                "n1 Ready Active Reachable",
                "n2 Ready Active",
                "n3 Ready Active",
                "n4 Ready Active Reachable",
            ],
        );
        let labels = json!({ "friday.state": "here", "zone": "a" });
        bench.has_labels(1, labels, Some("friday.state,zone"));
        let labels = json!({ "disk": "slow", "rack": "7" });
        bench.has_labels(2, labels, Some("disk"));
        bench.has_labels(3, json!({}), Some(""));
        bench.has_labels(4, json!({}), None);
        bench.nothing_to_do(&adopted);

        // Workers become managers; one label changes, one is new, one goes, and what others gave stays.
        let promoted = bench.swarm_of(&[
            (1, "manager", json!({ "friday.state": "here" })),
            (2, "manager", json!({ "disk": "quick", "zone": "b" })),
            (3, "manager", json!({})),
        ]);
        let said = bench.apply(&promoted);
        assert!(said.contains("promotes host n2"), "{said}");
        assert!(said.contains("promotes host n3"), "{said}");
        bench.are_managers(&[1, 2, 3, 4]);
        bench.has_labels(1, json!({ "friday.state": "here" }), Some("friday.state"));
        let labels = json!({ "disk": "quick", "rack": "7", "zone": "b" });
        bench.has_labels(2, labels, Some("disk,zone"));
        bench.nothing_to_do(&promoted);

        // One is a worker again, the other leaves as a manager.
        let demoted = bench.swarm_of(&[
            (1, "manager", json!({ "friday.state": "here" })),
            (2, "worker", json!({})),
        ]);
        let said = bench.apply(&demoted);
        assert!(said.contains("demotes host n2"), "{said}");
        bench.until_members(
            1,
            &[
                "n1 Ready Active Reachable",
                "n2 Ready Active",
                "n4 Ready Active Reachable",
            ],
        );
        bench.has_labels(2, json!({ "rack": "7" }), Some(""));
        assert_eq!(bench.membership(3), "inactive");
        bench.nothing_to_do(&demoted);

        // It goes on without us; its owner clears away the manager that had to be asked to the end.
        bench.destroy(&demoted);
        bench.until_members(4, &["n1 Down Drain", "n4 Ready Active Reachable"]);
        assert_eq!(bench.swarm_id(4), swarm);
        for node in [1, 2] {
            assert_eq!(bench.membership(node), "inactive", "n{node}");
        }
        lab.docker(4, &["swarm", "leave", "--force"]);
        bench.nothing_is_left();
    });
}

//! A controller that no proxy reports to, whose disk fills up, and whose engine dies at last.

use std::fs;

use controller_testing::eventually;
use friday::api::types::Order;
use friday::client::Client;
use system_tests::{
    Lab, NETWORK, PATIENCE, Part, SmallDisk, deploy_request, friday, order_request,
};

use crate::ALERT_MAX;
use crate::alerts::OF_ONE_ALONE;
use crate::monitoring::{NOBODY, Prometheus};

const SPEC: &str = "service: worker\nport: 9000\nready: { path: /ready }\n";

#[test]
fn alerts_of_a_controller_that_is_alone_fire() {
    let lab = Lab::start(1);
    for tag in ["v1", "v2", "v3"] {
        lab.image(&format!("worker:{tag}"), &["tag", tag]);
    }
    let create = [
        "service",
        "create",
        "--detach",
        "--quiet",
        "--no-resolve-image",
        "--name",
        "worker",
        "--replicas",
        "2",
        "--network",
        NETWORK,
        "--endpoint-mode",
        "dnsrr",
        "worker:v1",
    ];
    lab.docker(1, &create);
    let (orders, socket) = (lab.orders(), lab.socket(1));
    lab.within(move || async move {
        let disk = SmallDisk::mount().await;
        let dir = tempfile::Builder::new()
            .prefix("friday-alone-")
            .tempdir()
            .unwrap();
        let file = dir.path().join("friday.yml");
        fs::write(&file, SPEC).unwrap();
        let state = disk.path().join("controller");
        let args = [
            "serve",
            "--orchestrator",
            "swarm",
            "--engine",
            &format!("unix://{}", socket.display()),
            "--listen",
            "127.0.0.1:0",
            "--state-dir",
            &state.display().to_string(),
            "--service",
            &file.display().to_string(),
        ];
        let controller = Part::start("controller", &friday(), &args, dir.path()).await;
        let address = controller.address("listen").to_string();
        let client = Client::new(&format!("http://{address}"), None).unwrap();
        let prometheus = Prometheus::start(dir.path(), &[("controller", address)], NOBODY).await;
        let from = prometheus.now();
        let [(no_proxy, _), (nothing_saved, _), (unseen, _)] = OF_ONE_ALONE;
        prometheus.fires(no_proxy, ALERT_MAX, from).await;

        client
            .deploy(&deploy_request(SPEC, "worker:v2"))
            .await
            .unwrap();
        // The controller gives up its reserve; then that is used up too.
        let reserve = state.join("friday.reserve");
        assert!(reserve.exists());
        disk.fill();
        let gone = async || !reserve.exists();
        eventually("the reserve is given up", PATIENCE, gone, |gone| *gone).await;
        let next = deploy_request(SPEC, "worker:v3");
        let try_next = async || {
            disk.fill();
            client.deploy(&next).await
        };
        let refused = eventually("a release is refused", PATIENCE, try_next, Result::is_err).await;
        println!("{}", refused.unwrap_err());
        let newest = client.rollout("worker").await.unwrap();
        let abort = order_request(Order::Abort);
        client.order(&newest.id, &abort).await.unwrap();
        prometheus.fires(nothing_saved, ALERT_MAX, from).await;

        orders.give("kill", 1);
        prometheus.fires(unseen, ALERT_MAX, from).await;
        for (alert, cause) in OF_ONE_ALONE {
            println!("{alert} fired: {cause}");
        }
    });
}

use super::*;
use serde_json::json;

const SECOND: u64 = 1_000_000_000;

fn good() -> Value {
    json!({
        "Name": "web",
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "web:1.4.2",
                "Healthcheck": { "Test": ["CMD", "/web", "health"], "Interval": 2 * SECOND, "Retries": 3, "StartPeriod": 4 * SECOND },
            },
            "Resources": { "Limits": { "NanoCPUs": 1, "MemoryBytes": 1 } },
        },
        "Mode": { "Replicated": { "Replicas": 2 } },
        "UpdateConfig": { "Order": "start-first", "Monitor": 10 * SECOND },
        "EndpointSpec": { "Mode": "dnsrr" },
    })
}

fn said(spec: &Value, image: Option<&Value>) -> Vec<Fault> {
    let running = Running {
        name: "web",
        spec,
        image,
    };
    check(&running, &[])
}

#[test]
fn each_rule_speaks_of_its_setting_alone_and_says_when_it_can_be_mended() {
    assert_eq!(said(&good(), None), []);
    let host = json!([{ "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host" }]);
    let host_udp = json!([{ "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host", "Protocol": "udp" }]);
    let ingress = json!([{ "TargetPort": 53, "PublishedPort": 53, "Protocol": "udp" }]);
    let container = "/TaskTemplate/ContainerSpec";
    for (rule, place, key, value, waits) in [
        (
            "floating-tag",
            container,
            "Image",
            json!("web:latest"),
            false,
        ),
        (
            "no-health-check",
            container,
            "Healthcheck",
            json!({ "Test": ["NONE"] }),
            false,
        ),
        (
            "no-health-check",
            container,
            "Healthcheck",
            Value::Null,
            false,
        ),
        ("stop-first", "/UpdateConfig", "Order", Value::Null, false),
        ("fixed-port", "/EndpointSpec", "Ports", host, true),
        ("vip", "/EndpointSpec", "Mode", Value::Null, false),
        (
            "one-replica",
            "/Mode/Replicated",
            "Replicas",
            json!(1),
            false,
        ),
        (
            "no-limits",
            "/TaskTemplate/Resources/Limits",
            "NanoCPUs",
            json!(0),
            false,
        ),
        (
            "short-monitor",
            "/UpdateConfig",
            "Monitor",
            json!(9 * SECOND),
            false,
        ),
    ] {
        let mut spec = good();
        spec.pointer_mut(place).unwrap()[key] = value;
        let found = said(&spec, None);
        let [fault] = &found[..] else {
            panic!("{rule}: {found:#?}");
        };
        assert_eq!(
            (fault.rule.as_str(), fault.waits_for_proxy),
            (rule, waits),
            "{fault:?}"
        );
    }
    let mut spec = good();
    spec["UpdateConfig"]["Order"] = Value::Null;
    spec["EndpointSpec"]["Ports"] = host_udp;
    assert_eq!(
        said(&spec, None)[0].mend,
        "docker service update --publish-rm mode=host,target=80,protocol=udp --update-order start-first web"
    );
    let mut spec = good();
    spec["EndpointSpec"] = json!({ "Mode": "vip", "Ports": ingress });
    let found = said(&spec, None);
    assert!(found[0].waits_for_proxy, "{found:?}");
    assert_eq!(
        found[0].mend,
        "docker service update --publish-rm 53/udp --endpoint-mode dnsrr web"
    );
}

#[test]
fn f36_what_a_service_does_not_say_of_its_health_check_is_its_images() {
    let image = json!({ "Healthcheck": { "Test": ["CMD-SHELL", "curl localhost"], "Interval": 5 * SECOND, "Retries": 4 } });
    let mut spec = good();
    // Four tries of 5 s, then of 1 s; and Swarm's own three of 30 s.
    spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"] = Value::Null;
    let found = said(&spec, Some(&image));
    assert!(found[0].mend.contains("--update-monitor 20s"), "{found:?}");
    spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"] = json!({ "Interval": SECOND });
    assert_eq!(said(&spec, Some(&image)), []);
    let bare = json!({ "Healthcheck": { "Test": ["CMD", "/web"] } });
    spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"] = Value::Null;
    let found = said(&spec, Some(&bare));
    assert!(
        found[0].mend.contains("--update-monitor 1m30s"),
        "{found:?}"
    );
    let none = said(&spec, Some(&json!({})));
    assert_eq!(none[0].rule, "no-health-check");
}

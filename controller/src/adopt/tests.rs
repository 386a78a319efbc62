use serde_json::{Value, json};

use super::{AdoptError, Adoption, Subject, adopt, weights};
use crate::orchestrator::swarm::{Found, Holder, Network};
use crate::spec::{ReadOptions, read};

fn network(id: &str, name: &str) -> Network {
    Network {
        id: id.to_owned(),
        name: name.to_owned(),
        driver: "overlay".to_owned(),
        ingress: name == "ingress",
    }
}

fn networks() -> [Network; 3] {
    [
        network("n1", "mesh"),
        network("n2", "back"),
        network("n3", "ingress"),
    ]
}

/// A service that was made with care: only its users have to be sent to the proxy.
fn careful() -> Value {
    json!({
        "Name": "shop_web",
        "Labels": { "com.docker.stack.namespace": "shop" },
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "registry.example.org/shop/web:1.4.2",
                "Healthcheck": {
                    "Test": ["CMD-SHELL", "curl -fsS http://127.0.0.1:8080/healthz?full=1 || exit 1"],
                    "Interval": 2_000_000_000_u64, "Retries": 3,
                },
            },
            "Resources": { "Limits": { "NanoCPUs": 500_000_000, "MemoryBytes": 268_435_456 } },
            "Networks": [{ "Target": "n1", "Aliases": ["web"] }],
        },
        "Mode": { "Replicated": { "Replicas": 12 } },
        "UpdateConfig": { "Order": "start-first", "Monitor": 10_000_000_000_u64 },
        "EndpointSpec": { "Mode": "dnsrr" },
    })
}

/// One as `docker service create` makes it, behind Traefik and with ports of its own.
fn careless() -> Value {
    json!({
        "Name": "api",
        "Labels": {
            "traefik.enable": "true",
            "traefik.http.routers.api.rule": "Host(`api.example.org`) && PathPrefix(`/v1`)",
            "traefik.http.services.api.loadbalancer.server.port": "3000",
        },
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "api",
                "Mounts": [{ "Type": "volume", "Source": "uploads", "Target": "/uploads" }],
            },
            "Networks": [{ "Target": "n2" }],
        },
        "Mode": { "Replicated": { "Replicas": 1 } },
        "EndpointSpec": {
            "Mode": "vip",
            "Ports": [
                { "Protocol": "tcp", "TargetPort": 3000, "PublishedPort": 80, "PublishMode": "ingress" },
                { "Protocol": "udp", "TargetPort": 9125, "PublishedPort": 9125, "PublishMode": "host" },
            ],
        },
    })
}

/// What is known beside a service.
struct Beside {
    image: Option<Value>,
    holder: Holder,
    port: Option<u16>,
}

/// Nothing unusual.
const USUAL: Beside = Beside {
    image: None,
    holder: Holder::Found,
    port: None,
};

fn adoption(spec: Value, beside: Beside) -> Result<Adoption, AdoptError> {
    let service = Found { spec };
    let proxy = Found {
        spec: json!({
            "Name": "friday_proxy",
            "TaskTemplate": {
                "ContainerSpec": { "Image": "registry.example.org/friday-proxy:0.1.0" },
                "Networks": [{ "Target": "n1" }],
            },
        }),
    };
    adopt(&Subject {
        engine: "unix:///var/run/docker.sock",
        service: &service,
        image: beside.image.as_ref(),
        holder: &beside.holder,
        networks: &networks(),
        others: &[proxy],
        port: beside.port,
    })
}

/// All that a person reads of it.
fn shown(adoption: &Adoption) -> String {
    let mut text = adoption.friday_yml.clone();
    for step in &adoption.steps {
        let how = step.how.as_deref().unwrap_or("-");
        text.push_str(&format!("\n{:?}: {}\n    {how}", step.who, step.what));
    }
    text
}

#[test]
fn a_careful_service_needs_its_users_to_come_by_the_proxy_and_nothing_else() {
    let adoption = adoption(careful(), USUAL).unwrap();
    insta::assert_snapshot!(shown(&adoption));
}

#[test]
fn a_careless_one_is_mended_in_an_order_that_cuts_nobody_off() {
    let beside = Beside {
        image: Some(json!({ "ExposedPorts": { "3000/tcp": {} } })),
        holder: Holder::HereAlone {
            nodes: 3,
            words: "docker.io says: denied".to_owned(),
        },
        ..USUAL
    };
    let adoption = adoption(careless(), beside).unwrap();
    insta::assert_snapshot!(shown(&adoption));
}

#[test]
fn the_port_is_the_one_that_says_most_about_users() {
    let port = |change: &dyn Fn(&mut Value), image: Value| {
        let mut spec = careful();
        change(&mut spec);
        let beside = Beside {
            image: Some(image),
            ..USUAL
        };
        let adoption = adoption(spec, beside);
        adoption.map(|adoption| (adoption.port.value, adoption.port.source))
    };
    let container = "/TaskTemplate/ContainerSpec";
    let without_check = |spec: &mut Value| {
        spec.pointer_mut(container).unwrap()["Healthcheck"] =
            json!({ "Test": ["CMD", "/web", "health"] });
    };
    let publish = |spec: &mut Value, targets: &[u16]| {
        let ports = targets
            .iter()
            .map(|target| json!({ "Protocol": "tcp", "TargetPort": target, "PublishedPort": 80 }));
        spec["EndpointSpec"]["Ports"] = ports.collect();
    };
    let image = json!({ "Env": ["PATH=/", "PORT=7000"], "ExposedPorts": { "9001/tcp": {}, "9000/tcp": {}, "53/udp": {} } });
    let is = |found: Result<(u16, String), AdoptError>, port: u16, words: &str| {
        let (value, source) = found.unwrap();
        assert_eq!(value, port, "{source}");
        assert!(source.contains(words), "{source}");
    };
    is(
        port(
            &|spec| spec["Labels"]["com.df.port"] = json!("81"),
            image.clone(),
        ),
        81,
        "label com.df.port",
    );
    is(
        port(&|spec| publish(spec, &[9999, 8080]), image.clone()),
        8080,
        "one of 2 that are published",
    );
    is(
        port(&|spec| publish(spec, &[9999]), image.clone()),
        9999,
        "port 80 of its nodes",
    );
    is(port(&|_| {}, image.clone()), 8080, "health check");
    is(port(&without_check, image.clone()), 7000, "PORT");
    let exposes = json!({ "ExposedPorts": { "9001/tcp": {}, "9000/tcp": {}, "53/udp": {} } });
    is(port(&without_check, exposes), 9000, "the smallest of 2");
    let error = port(&without_check, json!({})).unwrap_err().to_string();
    assert!(error.contains("say it with --port"), "{error}");
    let given = Beside {
        port: Some(1234),
        ..USUAL
    };
    let given = adoption(careful(), given);
    is(
        given.map(|found| (found.port.value, found.port.source)),
        1234,
        "--port",
    );
}

#[test]
fn the_ready_path_is_that_of_the_health_check_whichever_way_it_is_written() {
    for (test, path) in [
        (
            json!(["CMD", "wget", "-qO-", "http://localhost:8080/"]),
            "/",
        ),
        (
            json!(["CMD-SHELL", "wget -qO- localhost:8080/ready?x=1"]),
            "/ready?x=1",
        ),
        (
            json!([
                "CMD-SHELL",
                "curl -f 'http://localhost:${PORT}/up' || exit 1"
            ]),
            "/up",
        ),
        (
            json!([
                "CMD-SHELL",
                "test \"$(curl -s 127.0.0.1:8080/health)\" = ok"
            ]),
            "/health",
        ),
        (json!(["CMD", "/web", "health"]), "/ready"),
        (json!(["CMD-SHELL", "nc -z localhost 8080"]), "/ready"),
    ] {
        let mut spec = careful();
        let container = spec.pointer_mut("/TaskTemplate/ContainerSpec").unwrap();
        container["Healthcheck"]["Test"] = test.clone();
        container["Env"] = json!(["PORT=8080"]);
        let adoption = adoption(spec, USUAL).unwrap();
        assert_eq!(adoption.ready.value, path, "{test}");
        let read = read(&adoption.friday_yml, "friday.yml", &ReadOptions::default()).unwrap();
        assert_eq!(
            (read.ready.path.as_str(), read.port),
            (path, 8080),
            "{test}"
        );
    }
}

#[test]
fn every_number_of_tasks_and_every_name_makes_a_file_that_lint_accepts() {
    for replicas in [0_u32, 1, 2, 3, 4, 9, 10, 50, 1000] {
        let mut spec = careful();
        spec["Mode"]["Replicated"]["Replicas"] = json!(replicas);
        let adoption = adoption(spec, USUAL).unwrap();
        let read = read(&adoption.friday_yml, "friday.yml", &ReadOptions::default()).unwrap();
        assert_eq!(read.plan.steps().len(), weights(replicas).len());
    }
    for name in ["1", "true", "a.b_c-d", "0x1f"] {
        let mut spec = careful();
        spec["Name"] = json!(name);
        let adoption = adoption(spec, USUAL).unwrap();
        let read = read(&adoption.friday_yml, "friday.yml", &ReadOptions::default()).unwrap();
        assert_eq!(read.service.as_str(), name);
    }
}

#[test]
fn a_slow_start_gets_a_longer_deadline() {
    let mut spec = careful();
    let container = spec.pointer_mut("/TaskTemplate/ContainerSpec").unwrap();
    container["Healthcheck"]["StartPeriod"] = json!(600_000_000_000_u64);
    let adoption = adoption(spec, USUAL).unwrap();
    assert!(
        adoption.friday_yml.contains("deadlines: { ready: 20m12s }"),
        "{}",
        adoption.friday_yml
    );
}

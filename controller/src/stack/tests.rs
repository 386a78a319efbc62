use rollout::ServiceName;

use super::{Rule, check};

fn service(name: &str) -> ServiceName {
    ServiceName::try_from(name.to_owned()).unwrap()
}

/// What is said of a service `web` of the stack `shop`.
fn said(text: &str, allowed: &[Rule]) -> Vec<String> {
    let found = check(text, "stack.yml", &service("shop_web"), allowed);
    found.iter().map(ToString::to_string).collect()
}

const GOOD: &str = "
services:
  web:
    image: registry.example.org:5000/shop/web:1.4.2
    healthcheck: { test: [CMD, /web, health], interval: 2s, retries: 3, start_period: 4s }
    deploy:
      endpoint_mode: dnsrr
      replicas: 4
      resources: { limits: { cpus: \"0.50\", memory: 256M } }
      update_config: { order: start-first, monitor: 10s }
";

#[test]
fn a_careful_service_passes() {
    assert_eq!(said(GOOD, &[]), Vec::<String>::new());
}

#[test]
fn each_rule_speaks_where_its_setting_stands_and_only_there() {
    let cases = [
        (Rule::FloatingTag, "web:1.4.2", "web:latest", "4:12"),
        (Rule::FloatingTag, "shop/web:1.4.2", "shop/web", "4:12"),
        (
            Rule::FloatingTag,
            "shop/web:1.4.2",
            "shop/web:${TAG:-latest}",
            "4:12",
        ),
        (
            Rule::FloatingTag,
            "registry.example.org:5000/shop/web:1.4.2",
            "\"${REGISTRY}/shop/web:latest\"",
            "4:12",
        ),
        (
            Rule::NoHealthCheck,
            "test: [CMD, /web, health]",
            "disable: true",
            "5:18",
        ),
        (Rule::NoHealthCheck, "[CMD, /web, health]", "[NONE]", "5:18"),
        (Rule::StopFirst, "order: start-first, ", "", "3:3"),
        (Rule::StopFirst, "start-first", "stop-first", "10:31"),
        (Rule::Vip, "dnsrr", "vip", "7:22"),
        (Rule::Vip, "endpoint_mode: dnsrr", "labels: {}", "3:3"),
        (Rule::OneReplica, "replicas: 4", "replicas: 1", "8:17"),
        (Rule::OneReplica, "replicas: 4", "mode: replicated", "3:3"),
        (Rule::NoLimits, ", memory: 256M", "", "3:3"),
        (
            Rule::NoLimits,
            "limits: { cpus: \"0.50\", memory: 256M }",
            "",
            "3:3",
        ),
        // The start period and three tries of 2 s take 10 s.
        (Rule::ShortMonitor, "monitor: 10s", "monitor: 9s", "10:53"),
        (Rule::ShortMonitor, ", monitor: 10s", "", "3:3"),
        (Rule::ShortMonitor, "interval: 2s, ", "", "10:53"),
        (
            Rule::FixedPort,
            "    deploy:",
            "    ports: [{ target: 80, published: 8080, mode: host }]\n    deploy:",
            "6:13",
        ),
    ];
    for (rule, good, bad, place) in cases {
        assert!(GOOD.contains(good), "{good}");
        let text = GOOD.replace(good, bad);
        let found = said(&text, &[]);
        let [one] = &found[..] else {
            panic!("{bad}: {found:#?}");
        };
        assert!(one.starts_with(&format!("stack.yml:{place}: ")), "{one}");
        assert!(one.ends_with(&format!("--allow {}", rule.word())), "{one}");
        assert_eq!(said(&text, &[rule]), Vec::<String>::new(), "{bad}");
    }
}

#[test]
fn f36_an_update_that_is_watched_for_less_than_a_sick_task_needs_to_show_is_refused() {
    // (start_period, interval, retries, monitor in seconds, whether it is refused): Swarm's own defaults where absent.
    for (start_period, interval, retries, monitor, refused) in [
        (Some(4), Some(2), Some(3), Some(10), false),
        (Some(4), Some(2), Some(3), Some(9), true),
        (Some(5), Some(2), Some(3), Some(10), true),
        (Some(4), Some(2), Some(4), Some(10), true),
        (None, Some(2), Some(3), Some(6), false),
        (None, Some(2), Some(3), Some(5), true),
        (None, None, None, Some(90), false),
        (None, None, None, Some(89), true),
        (None, Some(1), None, None, false),
        (None, Some(2), None, None, true),
    ] {
        let key = |name: &str, unit: &str, value: Option<u32>| {
            value.map_or(String::new(), |value| format!(", {name}: {value}{unit}"))
        };
        let health = format!(
            "[CMD, /web, health]{}{}{}",
            key("interval", "s", interval),
            key("retries", "", retries),
            key("start_period", "s", start_period)
        );
        let text = GOOD
            .replace(
                "[CMD, /web, health], interval: 2s, retries: 3, start_period: 4s",
                &health,
            )
            .replace(", monitor: 10s", &key("monitor", "s", monitor));
        let found = said(&text, &[]);
        let hears = found
            .iter()
            .any(|one| one.ends_with("--allow short-monitor"));
        assert_eq!(
            (hears, found.len()),
            (refused, refused.into()),
            "{text}\n{found:#?}"
        );
    }
}

#[test]
fn what_the_deployer_puts_in_is_not_guessed_at() {
    for image in [
        "shop/web:${TAG}",
        "${IMAGE}",
        "$IMAGE",
        "web@sha256:00",
        "shop/web:${TAG:-1.2}",
    ] {
        let text = GOOD.replace(
            "registry.example.org:5000/shop/web:1.4.2",
            &format!("\"{image}\""),
        );
        assert_eq!(said(&text, &[]), Vec::<String>::new(), "{image}");
    }
    let text = GOOD.replace("replicas: 4", "replicas: ${REPLICAS:-1}");
    assert_eq!(said(&text, &[]), Vec::<String>::new());
    // A port that the engine chooses is free.
    let ports = "    ports: [{ target: 80, mode: host }, \"8080:80\"]\n    deploy:";
    assert_eq!(
        said(&GOOD.replace("    deploy:", ports), &[]),
        Vec::<String>::new()
    );
}

#[test]
fn a_bare_service_hears_all_at_once() {
    let found = said("services:\n  web:\n    image: web\n", &[]);
    insta::assert_snapshot!(found.join("\n\n"));
}

#[test]
fn the_service_is_found_by_what_follows_an_underscore() {
    let found = |name| check(GOOD, "stack.yml", &service(name), &[]).len();
    assert_eq!(
        (found("web"), found("shop_web"), found("a_b_web")),
        (0, 0, 0)
    );
    let other = check(GOOD, "stack.yml", &service("cobweb"), &[]);
    let [one] = &other[..] else {
        panic!("{other:#?}");
    };
    assert_eq!(
        one.to_string(),
        "stack.yml:3:3: services: expected a service cobweb, or what follows an underscore in it; there are: web"
    );
}

#[test]
fn what_is_no_stack_file_is_said() {
    for text in [
        "",
        "[]",
        "services: []",
        "services: { web: 7 }",
        "services: { web: { image: 7 } }",
        "version: '3'",
    ] {
        assert!(!said(text, &[]).is_empty(), "{text}");
    }
    // Wrong values are wrong whatever rule they are about.
    for (good, bad) in [
        ("2s", "soon"),
        ("retries: 3", "retries: 0"),
        ("dnsrr", "mesh"),
        ("4\n", "many\n"),
    ] {
        let found = said(&GOOD.replace(good, bad), &[]);
        assert!(
            found.iter().any(|one| one.contains("expected")),
            "{bad}: {found:#?}"
        );
    }
}

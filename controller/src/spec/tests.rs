use proptest::prelude::*;
use rollout::proxy::{ProxySpec, TaskProtocol};
use rollout::{Bound, Check, Hold, Step};
use serde_json::Value as Json;

use super::*;

fn findings(text: &str) -> String {
    findings_with(text, &ReadOptions::default())
}

fn findings_with(text: &str, options: &ReadOptions<'_>) -> String {
    match read(text, "friday.yml", options) {
        Ok(_) => "none".to_owned(),
        Err(findings) => {
            assert!(!findings.is_empty());
            findings
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        }
    }
}

/// A file that is right but for `more`.
fn with(more: &str) -> String {
    format!("service: web\nport: 80\n{more}\n")
}

fn spec(text: &str) -> Spec {
    read(text, "friday.yml", &ReadOptions::default()).unwrap()
}

#[test]
fn writes_out_every_default_in_the_example() {
    assert_eq!(
        spec(example()),
        spec("service: tweets-worker\nport: 9000\n")
    );
}

#[test]
fn reads_the_design_documents_example() {
    let text = r#"
service: tweets-worker            # the Swarm service that users call
port: 9000
ready: { path: /ready }
route: { host: "*", path: / }
sticky: { by: cookie }
shield: idempotent
plan:
  - { weight: 1%,  hold: 10s..5m }
  - { weight: 10%, hold: 10s..5m }
  - { gate: release-managers }
  - { weight: 50%, hold: 10s..5m }
bake: { weight: 80%, for: 60s }
keep_warm: 2m
deadlines: { ready: 5m, evidence: 30m, rollout: 2h }
warm_up: 30s
guard:
  errors:     { margin: 0.5% }
  latency:    { p50: +14%, p90: +19%, p99: +30%, floor: 1ms }
  saturation: { cpu: +25%, memory: +25% }
  checks:
    - { name: consumer lag, prometheus: 'max(pipeline_consumer_lag{release="$release"})', max: 1000 }
freeze: [{ cron: "0 17 * * 5", for: 63h, zone: Europe/Berlin }]
plans: { quick: [ { weight: 25%, hold: 10s..2m } ] }
environments: { staging: { plan: quick }, production: { needs: staging, approvals: 1 } }
notify: { gitlab: true, slack: { url_file: /run/secrets/slack } }
"#;
    assert_eq!(findings(text), "none");
    let read_in = |environment| {
        read(
            text,
            "friday.yml",
            &ReadOptions {
                environment,
                plan: None,
            },
        )
        .unwrap()
        .plan
        .steps()
        .len()
    };
    assert_eq!(
        (
            read_in(Some("staging")),
            read_in(Some("production")),
            read_in(None)
        ),
        (1, 4, 4)
    );
}

#[test]
fn says_where_what_and_how_to_mend_it() {
    let cases = [
        // The file as a whole.
        "",
        "- a\n",
        "service: web\nport: [\n",
        "service: web\nport: 80\nport: 81\n",
        "service: web\nport: 80\n---\nservice: b\n",
        "service: web\n\tport: 80\n",
        // Names, ports, paths.
        "port: 80\n",
        "service: a b\nport: 0\n",
        "service: 007\nport: 65536\n",
        "service:\nport: http\n",
        &with("ready: /ready"),
        &with("ready: { path: ready }"),
        &with("route: { host: \"http://x\", path: \"/a?b\" }"),
        // Misspelt keys (F6).
        &with("prot: 81"),
        &with("keepwarm: 1m"),
        &with("guard: { latency: { p95: +10% }, eror: {} }"),
        &with("plan: [{ weight: 10%, holds: 10s..5m }]"),
        // Sticky, shield.
        &with("sticky: cookies"),
        &with("sticky: { by: header }"),
        &with("sticky: { by: cookie, name: x }"),
        &with("sticky: { name: x }"),
        &with("sticky: header a b"),
        &with("shield: on"),
        // What the proxy does with requests.
        &with("proxy: h2"),
        &with("proxy: { miror: 1%, mirror: 101%, protocol: h3, connect: 0s, answer: 2h }"),
        &with("proxy: { tls: { ca_file: ca.pem, key_file: /key } }"),
        // Plans.
        &with("plan: []"),
        &with("plan:"),
        &with("plan: [10%]"),
        &with("plan: [{ weight: 0% }, { weight: 100% }]"),
        &with(
            "plan:\n  - { weight: 10%, hold: 10x }\n  - weight: 5%\n    hold: 5m..10s\n  - { weight: 20%, hold: 30m }",
        ),
        &with("plan: [{ weight: 10% }, { weight: 10.0% }]"),
        &with("plan: [{ weight: 1.234% }]"),
        &with(
            "plan: [{ gate: a }, { weight: 10% }, { gate: a }, { gate: b }, { gate: c, hold: 1s }]",
        ),
        &with("plan: [{ weight: 10%, gate: a }, { hold: 10s }]"),
        &with("plan: [{ weight: 10%, hold: 30m..40m }]"),
        // Bake, deadlines, and what cannot go together.
        &with("plan: [{ weight: 90% }]"),
        &with("bake: { weight: 50%, for: 30m }"),
        &with("bake: { weight: 100% }"),
        &with("deadlines: { evidence: 60s }"),
        &with("deadlines: { evidence: 2h, ready: 3h }"),
        &with("deadlines: { evidence: 0s }"),
        &with("deadlines: { rollout: 3m, evidence: 2m, ready: 1m }"),
        &with("keep_warm: 3h"),
        &with("keep_warm: 31d"),
        &with("keep_warm: 10"),
        &with("warm_up: 30m"),
        // Guard.
        &with("guard: { alpha: 0.01, alpha_gate: 0%, alpha_promote: 50% }"),
        &with("guard: { errors: { margin: 0% } }"),
        &with("guard: { errors: { margin: -1% } }"),
        &with("guard: { latency: { p50: +0%, p90: -5%, p99: 1.3, floor: 2m } }"),
        &with("guard: { saturation: { cpu: 1000%, memory: lots } }"),
        &with("guard: { ratio_check: yes }"),
        &with("guard: { start: never, tuning: 3 }"),
        &with(
            "guard: { tuning: { cap_nats: 0, restart_first: 100%, restart: 9s, catastrophe: 50%, suspicion: 1 } }",
        ),
        &with(
            "guard: { tuning: { latency_tolerance_buckets: 65, reference_half_life: 5, errors_margin_relative: 0.5 } }",
        ),
        &with(
            "guard: { tuning: { canary_requests_min: 0, idle_max: 9s, canary_rate_min: 0, cap: 3 } }",
        ),
        &with("guard: { tuning: { aimed: 100%, alpha_watch: 0% } }"),
        &with("guard: { tuning: { weight_errors: 101%, weight_latency: lots } }"),
        &with("guard:\n  tuning:\n    weight_errors: 50%\n    weight_latency: 40%"),
        &with("guard: { watch: sometimes }"),
        &with("sticky: none\nguard: { answers: x-kind }"),
        &with("sticky: none\nguard: { answers: { header: 'x kind', kinds: [a] } }"),
        &with("guard: { answers: { header: x-kind } }"),
        &with("sticky: header x-user\nguard: { answers: { header: x-kind } }"),
        // Checks.
        &with("guard: { checks: { name: a } }"),
        &with("guard: { checks: [lag] }"),
        &with("guard: { checks: [{ name: a, prometheus: up }] }"),
        &with("guard: { checks: [{ name: a, prometheus: up, max: 1, min: 0 }] }"),
        &with("guard: { checks: [{ name: a, prometheus: up, max: lots, evry: 10s }] }"),
        &with("guard: { checks: [{ name: '', prometheus: 7, max: .inf }] }"),
        &with(
            "guard: { checks: [{ name: a, prometheus: up, max: 1, every: 1s, lag: 1, grace: 5s }] }",
        ),
        &with("guard: { checks: [{ name: a, prometheus: up, max: 1, every: 20s, grace: 20s }] }"),
        &with(
            "guard:\n  checks:\n    - { name: a, prometheus: up, max: 1 }\n    - { name: a, prometheus: up, min: 1 }",
        ),
        &with("guard: { checks: [{ name: a, prometheus: up, above_stable: +25% }] }"),
        &with(
            "guard: { checks: [{ name: a, prometheus: 'up{r=\"$release\"}', above_stable: +0% }] }",
        ),
        &with("guard: { checks: [{ name: a, prometheus: 'up{r=\"$relase\"}', max: 1 }] }"),
        &with("guard: { checks: [{ name: a, prometheus: 'rate(x[$__rate_interval])', max: 1 }] }"),
        &with("guard: { checks: [{ name: a, prometheus: 'up offset -1m', max: 1 }] }"),
        &with("guard: { checks: [{ name: a, prometheus: 'rate(x[1h])', max: 1 }] }"),
        // Who is told.
        &with(
            "notify: { gitlab: all, slack: { url: x }, webhook: { url: 'http://hook.example.com', secret_file: a } }",
        ),
        &with(
            "notify: { gitlab: { notes: true, ticket: maybe, alert: { url_file: a } }, mail: x }",
        ),
        // When and where.
        &with("freeze: { cron: '0 17 * * 5', for: 63h }"),
        &with("freeze: [{ cron: '0 17 * *', for: 0s, zone: Europe/Bonn, until: monday }, {}]"),
        &with("freeze: [{ cron: '0 0 30 2 *', for: 31d, environments: [] }]"),
        &with(
            "environments: { staging: {} }\nfreeze:\n  - { cron: '0 17 * * 5', for: 63h, environments: [production] }",
        ),
        &with("environments: { production: { needs: staging, approvals: -1 } }"),
        &with("environments: { a: { needs: a, approvals: 11 }, b: { needs: { environment: a } } }"),
        &with(
            "environments: { a: { needs: b }, b: { needs: c }, c: { needs: a }, d: { needs: a } }",
        ),
        // Named plans.
        &with(
            "plans: { quick: [{ weight: 90% }], slow: 5 }\nenvironments: { staging: { plan: quik } }",
        ),
    ];
    let said: Vec<_> = cases
        .iter()
        .map(|text| format!("{}\n=>\n{}\n", text.trim_end(), findings(text)))
        .collect();
    insta::assert_snapshot!("findings", said.join("\n"));
}

#[test]
fn reads_when_and_where_it_may_be_released() {
    let text = with(
        "freeze:\n  - { cron: '0 17 * * 5', for: 63h, zone: Europe/Berlin, environments: [production] }\n  - { cron: '0 0 24 12 *', for: 14d }\nenvironments:\n  staging: {}\n  production: { needs: staging, approvals: 1 }\n  europe: { needs: { service: web-staging, environment: staging } }",
    );
    insta::assert_json_snapshot!(spec(&text).policy, @r#"
    {
      "freeze": [
        {
          "cron": "0 17 * * 5",
          "for_ms": 226800000,
          "zone": "Europe/Berlin",
          "environments": [
            "production"
          ]
        },
        {
          "cron": "0 0 24 12 *",
          "for_ms": 1209600000,
          "zone": "UTC"
        }
      ],
      "environments": {
        "europe": {
          "needs": {
            "service": "web-staging",
            "environment": "staging"
          },
          "approvals": 0
        },
        "production": {
          "needs": {
            "environment": "staging"
          },
          "approvals": 1
        }
      }
    }
    "#);
    assert!(
        spec(&with("freeze: []\nenvironments: { staging: {} }"))
            .policy
            .is_empty()
    );
}

#[test]
fn names_the_plans_and_environments_there_are() {
    let text = with(
        "plans: { quick: [{ weight: 25% }] }\nenvironments: { staging: { plan: quick }, production: {} }",
    );
    let wrong = ReadOptions {
        plan: Some("slow"),
        environment: Some("prod"),
    };
    insta::assert_snapshot!(findings_with(&text, &wrong), @r#"
    friday.yml:3:8: plans: "slow": there is no such plan, expected one of quick
    friday.yml:4:15: environments: "prod": there is no such environment, expected one of production, staging
    "#);
    let none = with("");
    insta::assert_snapshot!(
        findings_with(&none, &wrong),
        @r#"friday.yml:1:1: plans: "slow": there is no such plan: the file names none"#
    );
    // Without `environments:` an environment is a label.
    assert_eq!(
        findings_with(
            &none,
            &ReadOptions {
                plan: None,
                environment: Some("prod")
            }
        ),
        "none"
    );
    // The word of whoever starts the rollout counts for more than the file's.
    let options = ReadOptions {
        plan: Some("quick"),
        environment: Some("production"),
    };
    assert_eq!(
        read(&text, "friday.yml", &options)
            .unwrap()
            .plan
            .steps()
            .len(),
        1
    );
}

#[test]
fn knows_who_is_told() {
    use rollout::GitlabNotice::{Deployment, Note, Status, Ticket};
    let notify = |text: &str| spec(&with(&format!("notify: {text}"))).notify;
    let gitlab = |text: &str| Vec::from_iter(notify(&format!("{{ gitlab: {text} }}")).gitlab);
    assert!(notify("{}").is_nothing() && gitlab("false").is_empty());
    assert_eq!(gitlab("true"), [Status, Note, Deployment]);
    assert_eq!(gitlab("{}"), [Status, Note, Deployment]);
    assert_eq!(
        gitlab("{ note: false, ticket: true }"),
        [Status, Deployment, Ticket]
    );
    let read = notify(
        "{ gitlab: { alert: { url_file: a, key_file: b } }, slack: { url_file: /run/secrets/c }, webhook: { url: 'https://h.example/x', secret_file: d } }",
    );
    assert_eq!(read.alert.unwrap().key_file, "b");
    assert_eq!(read.slack_url_file.as_deref(), Some("/run/secrets/c"));
    assert_eq!(read.webhook.unwrap().url, "https://h.example/x");
}

#[test]
fn accepts_every_way_to_write_a_value() {
    let sticky = |text: &str| spec(&with(&format!("sticky: {text}"))).sticky;
    assert_eq!(sticky("none"), Sticky::None);
    assert_eq!(sticky("{ by: none }"), Sticky::None);
    assert_eq!(sticky("cookie"), Sticky::Cookie);
    assert_eq!(sticky("key"), Sticky::Key);
    assert_eq!(sticky("header X-User"), Sticky::Header("X-User".into()));
    assert_eq!(
        sticky("{ by: header X-User }"),
        Sticky::Header("X-User".into())
    );
    assert_eq!(
        sticky("{ by: header, name: X-User }"),
        Sticky::Header("X-User".into())
    );
    assert!(!spec(&with("shield: off")).shield);
    let read = spec(&with(
        "proxy: { mirror: 0.5%, protocol: h2, answer: 30s, tls: { server_name: a, ca_file: /a } }",
    ));
    assert_eq!(read.proxy.mirror.basis_points(), 50);
    assert_eq!(read.proxy.protocol, TaskProtocol::H2);
    assert_eq!(read.proxy.answer, Duration::from_secs(30));
    assert_eq!(read.proxy.connect, ProxySpec::default().connect);
    assert_eq!(read.proxy.tls.unwrap().ca_file, "/a");
    assert!(
        !spec(&with("guard: { ratio_check: false }"))
            .guard
            .ratio_check
    );
    assert!(spec(&with("sticky: none")).guard.watch);
    for sticky in ["none", "key"] {
        let text = with(&format!(
            "sticky: {sticky}\nguard: {{ answers: {{ header: X-Kind }} }}"
        ));
        assert_eq!(spec(&text).guard.answers.as_deref(), Some("x-kind"));
    }
    assert!(!spec(&with("guard: { watch: false }")).guard.watch);
    assert!(spec(&with("sticky: none")).guard.ratio_check);
    assert!(
        !spec(&with("sticky: cookie")).guard.ratio_check,
        "the share is that of few clients"
    );
    assert!(
        spec(&with("sticky: cookie\nguard: { ratio_check: true }"))
            .guard
            .ratio_check
    );

    let plan = spec(&with(
        "plan: [{ weight: 0.25 }, { weight: 5 %, hold: 6m }, { weight: \"7\", hold: 1s .. 1.5m }]",
    ));
    let hold = |least: u64, most: u64| Hold {
        least: Duration::from_secs(least),
        most: Duration::from_secs(most),
    };
    let weight = |points, hold| Step::Weight {
        weight: Weight::from_basis_points(points).unwrap(),
        hold,
    };
    let steps = [
        weight(25, hold(10, 300)),
        weight(500, hold(360, 360)),
        weight(700, hold(1, 90)),
    ];
    assert_eq!(plan.plan.steps(), steps);

    let guard = spec(&with(
        "warm_up: 0s\nguard: { latency: { p50: 20%, floor: 250us }, errors: { margin: 1 % } }",
    ))
    .guard;
    assert_eq!(guard.warm_up, Duration::ZERO);
    assert_eq!(
        (
            guard.latency_p50,
            guard.latency_floor_us,
            guard.errors_margin
        ),
        (1.2, 250, 0.01)
    );

    let anchors = with("plan: &steps [{ weight: 10% }]\nplans: { same: *steps }");
    assert_eq!(findings(&anchors), "none");
}

fn checks(text: &str) -> Vec<Check> {
    spec(&with(&format!("guard:\n  checks:\n    - {text}")))
        .guard
        .checks
}

#[test]
fn reads_checks() {
    let seconds = Duration::from_secs;
    let lag = Check {
        name: "consumer lag".into(),
        query: r#"max(lag{release="$release"})"#.into(),
        bound: Bound::Max(1000.0),
        every: seconds(10),
        lag: seconds(15),
        window: Duration::ZERO,
        grace: seconds(30),
    };
    let text = r#"{ name: consumer lag, prometheus: 'max(lag{release="$release"})', max: 1000 }"#;
    assert_eq!(checks(text), [lag]);
    let text = r#"{ name: 7, prometheus: 'rate(x{arm="$arm"}[1m])', above_stable: +25%, every: 20s, lag: 0s, grace: 2m }"#;
    let check = checks(text).remove(0);
    assert_eq!(
        (check.name.as_str(), check.bound),
        ("7", Bound::AboveStable(0.25))
    );
    assert_eq!(
        (check.every, check.lag, check.window, check.grace),
        (seconds(20), seconds(0), seconds(60), seconds(120))
    );
    assert_eq!(
        checks("{ name: a, prometheus: up, min: -0.5 }")[0].bound,
        Bound::Min(-0.5)
    );

    let twenty_one = "    - { name: a, prometheus: up, max: 1 }\n".repeat(21);
    let said = findings(&with(&format!("guard:\n  checks:\n{twenty_one}")));
    assert!(
        said.contains("guard.checks: 21 checks: expected at most 20 checks"),
        "{said}"
    );
}

#[test]
fn f05_refuses_a_check_whose_first_sample_would_come_after_the_deadline() {
    let text = |evidence: &str| {
        with(&format!(
            "bake: {{ for: 10s }}\nwarm_up: 1s\nplan: [{{ weight: 10%, hold: 1s..2s }}]\ndeadlines: {{ evidence: {evidence} }}\n\
             guard:\n  checks: [{{ name: a, prometheus: 'rate(x[5m])', max: 1, every: 10s, lag: 15s }}]"
        ))
    };
    assert_eq!(findings(&text("5m26s")), "none");
    let said = findings(&text("5m25s"));
    assert!(
        said.contains(
            "guard.checks[0]: its first sample of a step comes after 5m25s: expected less than"
        ),
        "{said}"
    );
}

#[test]
fn f06_refuses_at_lint_what_nothing_would_ever_set() {
    let said = findings(&with(
        "guard:\n  checks:\n    - { name: a, prometheus: 'up{release=\"$relase\"}', max: 1 }",
    ));
    assert!(
        said.starts_with("friday.yml:5:30: guard.checks[0].prometheus:"),
        "{said}"
    );
    assert!(
        said.contains("$relase: nothing sets it, expected one of $release"),
        "{said}"
    );
}

#[test]
fn finds_the_place_of_a_query() {
    let text = with(
        "guard:\n  checks:\n    - { name: a, prometheus: up, max: 1 }\n    - name: b\n      prometheus: down\n      max: 1",
    );
    let finding = finding_at_query(&text, "friday.yml", 1, "no such metric".into(), None).unwrap();
    assert_eq!(
        finding.to_string(),
        "friday.yml:7:19: guard.checks[1].prometheus: \"down\": no such metric"
    );
    assert_eq!(
        finding_at_query(&text, "friday.yml", 2, String::new(), None),
        None
    );
}

#[test]
fn has_a_limit_for_everything() {
    let long = with(&format!(
        "# {}",
        "x".repeat(crate::api::types::SPEC_BYTES_MAX)
    ));
    let deep = with(&format!("ready: {}1{}", "{a: ".repeat(30), "}".repeat(30)));
    let deeper = with(&format!("ready: {}", "[".repeat(10_000)));
    let bomb: String = (1..9)
        .map(|n| {
            format!(
                "x{n}: &x{n} [{}]\n",
                vec![format!("*x{}", n - 1); 9].join(",")
            )
        })
        .collect();
    let bomb = with(&format!("x0: &x0 [lol]\n{bomb}"));
    let steps = (1..=101)
        .map(|n| format!("  - weight: {}%\n", f64::from(n) / 10.0))
        .collect::<String>();
    let steps = with(&format!("plan:\n{steps}"));
    let said: Vec<_> = [&long, &deep, &deeper, &bomb, &steps]
        .map(|text| findings(text))
        .into();
    insta::assert_snapshot!(said.join("\n"), @r"
    friday.yml:1:1: 262169 bytes: expected at most 262144 bytes: is it the right file?
    friday.yml:3:68: nested or repeated too much: expected at most 16 levels, 20000 values and 100 aliases
    friday.yml:3:263: this is not YAML: recursion limit exceeded
    friday.yml:7:38: this is not YAML: alias replay limit exceeded: total_replayed_events=20001 > 20000
    friday.yml:4:3: plan: 101 steps: expected at most 100 steps
    ");
    let unknown: String = (0..1000).map(|n| format!("x{n}: 1\n")).collect();
    assert_eq!(
        read(&with(&unknown), "f", &ReadOptions::default())
            .unwrap_err()
            .len(),
        50
    );
    let long_value = with(&format!("keep_warm: {}", "ä".repeat(10_000)));
    assert!(findings(&long_value).chars().count() < 300);
}

/// Every map of the schema by the path of a key in it, with its keys.
fn maps(schema: &Json) -> Vec<(String, Vec<String>)> {
    fn visit(schema: &Json, at: &Json, path: &str, maps: &mut Vec<(String, Vec<String>)>) {
        if let Some(reference) = at["$ref"].as_str() {
            visit(
                schema,
                schema.pointer(reference.trim_start_matches('#')).unwrap(),
                path,
                maps,
            );
        }
        for choice in at["anyOf"].as_array().into_iter().flatten() {
            visit(schema, choice, path, maps);
        }
        if let Some(properties) = at["properties"].as_object() {
            let mut keys: Vec<_> = properties.keys().cloned().collect();
            keys.sort();
            maps.push((path.to_owned(), keys));
            for (key, value) in properties {
                visit(schema, value, &format!("{path}.{key}"), maps);
            }
        }
        if at["items"].is_object() {
            visit(schema, &at["items"], &format!("{path}[0]"), maps);
        }
        if at["additionalProperties"].is_object() {
            visit(
                schema,
                &at["additionalProperties"],
                &format!("{path}.any"),
                maps,
            );
        }
    }
    let mut found = Vec::new();
    visit(schema, schema, "", &mut found);
    found
}

/// A file with nothing but one map that holds an unknown key.
fn nested(path: &str) -> String {
    let mut text = "{ zzzzzz: 1 }".to_owned();
    for part in path.rsplit('.').filter(|part| !part.is_empty()) {
        text = match part.strip_suffix("[0]") {
            Some(key) => format!("{{ {key}: [{text}] }}"),
            None => format!("{{ {part}: {text} }}"),
        };
    }
    text
}

#[test]
fn knows_the_same_keys_as_the_schema() {
    let maps = maps(&schema());
    assert!(maps.len() > 12, "{maps:?}");
    for (path, keys) in maps {
        let said = findings(&nested(&path));
        let expected = format!("zzzzzz: unknown key: expected one of {}", keys.join(", "));
        assert!(said.contains(&expected), "{path}: {expected}\n{said}");
    }
}

#[test]
fn has_the_same_defaults_as_the_schema() {
    // A default of the schema, written out, changes nothing.
    fn visit(at: &Json, path: &str) {
        for (key, value) in at["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            if let Some(default) = value.get("default").filter(|_| path != ".service") {
                let leaf = path.split('.').filter(|part| !part.is_empty()).rev();
                let text = leaf.fold(default.to_string(), |text, part| {
                    format!("{{ {part}: {text} }}")
                });
                let inner = &text[1..text.len() - 1];
                assert_eq!(
                    spec(&format!("{{ service: web, port: 80, {inner} }}")),
                    spec(&with("")),
                    "{path}"
                );
            }
            visit(value, &path);
        }
    }
    visit(&schema(), "");
}

/// Every setting of the guard, the key that sets it, and a value that is not the default. A weight needs another one
/// beside it, for the four sum to 100 %.
const SETTINGS: [(&str, &str, &str); 32] = [
    ("/alpha", "guard.alpha", "2%"),
    ("/alpha_gate", "guard.alpha_gate", "5%"),
    ("/alpha_promote", "guard.alpha_promote", "2%"),
    ("/answers", "guard.answers", "{ header: x-kind }"),
    (
        "/checks",
        "guard.checks",
        "[{ name: a, prometheus: up, max: 1 }]",
    ),
    ("/errors_margin", "guard.errors.margin", "1%"),
    ("/latency_floor_us", "guard.latency.floor", "2ms"),
    ("/latency_p50", "guard.latency.p50", "+20%"),
    ("/latency_p90", "guard.latency.p90", "+20%"),
    ("/latency_p99", "guard.latency.p99", "+20%"),
    ("/ratio_check", "guard.ratio_check", "true"),
    ("/saturation_cpu", "guard.saturation.cpu", "+50%"),
    ("/saturation_memory", "guard.saturation.memory", "+50%"),
    ("/start", "guard.start", "first"),
    ("/tuning/aimed", "guard.tuning.aimed", "50%"),
    ("/tuning/alpha_watch", "guard.tuning.alpha_watch", "1%"),
    (
        "/tuning/canary_rate_min",
        "guard.tuning.canary_rate_min",
        "2",
    ),
    (
        "/tuning/canary_requests_min",
        "guard.tuning.canary_requests_min",
        "20",
    ),
    ("/tuning/cap_nats", "guard.tuning.cap_nats", "2"),
    ("/tuning/catastrophe", "guard.tuning.catastrophe", "40%"),
    (
        "/tuning/errors_margin_relative",
        "guard.tuning.errors_margin_relative",
        "25%",
    ),
    ("/tuning/idle_max_ms", "guard.tuning.idle_max", "1m"),
    (
        "/tuning/latency_tolerance_buckets",
        "guard.tuning.latency_tolerance_buckets",
        "4",
    ),
    (
        "/tuning/reference_half_life_ms",
        "guard.tuning.reference_half_life",
        "10m",
    ),
    ("/tuning/restart_first", "guard.tuning.restart_first", "25%"),
    ("/tuning/restart_ms", "guard.tuning.restart", "20m"),
    ("/tuning/suspicion", "guard.tuning.suspicion", "20"),
    (
        "/tuning/weight_errors",
        "guard.tuning.weight_errors",
        "30%, weight_latency: 50%",
    ),
    (
        "/tuning/weight_latency",
        "guard.tuning.weight_latency",
        "30%, weight_saturation: 20%",
    ),
    (
        "/tuning/weight_saturation",
        "guard.tuning.weight_saturation",
        "15%, weight_warm_up: 5%",
    ),
    (
        "/tuning/weight_warm_up",
        "guard.tuning.weight_warm_up",
        "5%, weight_errors: 45%",
    ),
    ("/watch", "guard.watch", "false"),
];

/// The one setting of the guard whose key is not below `guard`: all of `friday.yml` speaks of the warm-up.
const WARM_UP: (&str, &str, &str) = ("/warm_up_ms", "warm_up", "20s");

/// Every value of a document that is no map, by its JSON pointer.
fn leaves(at: &Json, path: &str, found: &mut std::collections::BTreeMap<String, Json>) {
    if let Json::Object(map) = at {
        for (key, value) in map {
            leaves(value, &format!("{path}/{key}"), found);
        }
    } else {
        found.insert(path.to_owned(), at.clone());
    }
}

#[test]
fn every_setting_of_the_guard_has_a_key_and_a_meaning_in_the_schema() {
    let settings = |text: &str| {
        let mut found = std::collections::BTreeMap::new();
        leaves(
            &serde_json::to_value(spec(text).guard).unwrap(),
            "",
            &mut found,
        );
        found
    };
    let (defaults, schema) = (settings(&with("")), schema());
    let mut known: Vec<&str> = SETTINGS
        .iter()
        .chain([&WARM_UP])
        .map(|(setting, ..)| *setting)
        .collect();
    known.sort_unstable();
    assert_eq!(
        defaults.keys().collect::<Vec<_>>(),
        known,
        "a setting without a key here: give it one in spec/, in the schema, and in this list"
    );
    for (setting, key, value) in SETTINGS.into_iter().chain([WARM_UP]) {
        let text = key.rsplit('.').fold(value.to_owned(), |text, part| {
            format!("{{ {part}: {text} }}")
        });
        // A client that keeps its release would keep answers from being compared.
        let changed = settings(&with(&format!("sticky: key\n{}", &text[2..text.len() - 2])));
        let moved: Vec<_> = known
            .iter()
            .filter(|key| changed[**key] != defaults[**key])
            .collect();
        let beside = usize::from(setting.contains("/weight_"));
        assert!(
            moved.contains(&&setting) && moved.len() == 1 + beside,
            "{text} changes {moved:?}"
        );
        let place = key.replace('.', "/properties/");
        let meaning = schema.pointer(&format!("/properties/{place}/description"));
        assert!(
            meaning.is_some_and(|meaning| meaning.as_str().unwrap().len() > 10),
            "{key} in the schema"
        );
    }
}

#[test]
fn finds_the_key_that_was_meant() {
    let known = ["service", "port", "plan", "keep_warm"];
    assert_eq!(nearest("prot", &known), Some("port"));
    assert_eq!(nearest("Service", &known), Some("service"));
    assert_eq!(nearest("keepwarm", &known), Some("keep_warm"));
    assert_eq!(nearest("replicas", &known), None);
}

proptest! {
    #[test]
    fn never_panics_on_any_text(text in ".{0,200}") {
        let read = read(&text, "f", &ReadOptions::default());
        prop_assert!(read.is_ok() || !read.unwrap_err().is_empty());
    }

    #[test]
    fn never_panics_on_a_file_with_a_piece_replaced(at in 0usize..1500, length in 0usize..20, piece in "[ -~\n]{0,12}") {
        let mut bytes = example().as_bytes().to_vec();
        let at = at.min(bytes.len());
        let end = (at + length).min(bytes.len());
        bytes.splice(at..end, piece.bytes());
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let read = read(&text, "f", &ReadOptions::default());
        prop_assert!(read.is_ok() || !read.unwrap_err().is_empty());
    }

    #[test]
    fn reads_back_what_a_valid_spec_would_be_written_as(
        port in 1u16..,
        points in prop::collection::btree_set(1u16..8_000, 1..6),
        least in 0u64..60_000,
        more in 0u64..600_000,
        keep_warm in 0u64..300_000,
        margin in 5u32..9_999,
        slower in 1u32..90_000,
    ) {
        let show = |millis| show_duration(Duration::from_millis(millis));
        let steps: String = points
            .iter()
            .map(|points| {
                let weight = Weight::from_basis_points(*points).unwrap();
                format!("  - {{ weight: {weight}, hold: {}..{} }}\n", show(least), show(least + more))
            })
            .collect();
        let text = format!(
            "service: web\nport: {port}\nplan:\n{steps}keep_warm: {}\nguard:\n  errors: {{ margin: {}% }}\n  latency: {{ p50: +{}% }}\n",
            show(keep_warm), f64::from(margin) / 100.0, f64::from(slower) / 100.0,
        );
        let spec = read(&text, "f", &ReadOptions::default()).unwrap();
        prop_assert_eq!(spec.port, port);
        let hold = Hold { least: Duration::from_millis(least), most: Duration::from_millis(least + more) };
        let steps: Vec<_> = points
            .iter()
            .map(|points| Step::Weight { weight: Weight::from_basis_points(*points).unwrap(), hold })
            .collect();
        prop_assert_eq!(spec.plan.steps(), steps);
        prop_assert_eq!(spec.keep_warm, Duration::from_millis(keep_warm));
        prop_assert!((spec.guard.errors_margin - f64::from(margin) / 1e4).abs() < 1e-12);
        prop_assert!((spec.guard.latency_p50 - 1.0 - f64::from(slower) / 1e4).abs() < 1e-9);
        // What a rollout keeps of it comes back the same from the store.
        let json = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
    }
}

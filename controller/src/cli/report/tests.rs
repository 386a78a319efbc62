use rollout::judge::{Decision, Signal};

use super::*;
use crate::cli::{Cli, GivenUp, Refusal};
use crate::words::samples::{timestamp, verdict, view};

fn request() -> DeployRequest {
    DeployRequest {
        spec: "service: web\nport: 80\n".into(),
        spec_name: "friday.yml".into(),
        image: "registry.example.com/web:v2 <&\"'>".into(),
        commit: Some("0123abc".into()),
        environment: Some("production".into()),
        plan: None,
        author: "ada".into(),
        retry: false,
        emergency: None,
        fence: None,
        change_rules: false,
        origin: None,
        lease: None,
    }
}

fn record(ended: &anyhow::Result<u8>, view: Option<RolloutView>) -> Record {
    let request = request();
    let asked = Asked {
        service: "web",
        request: &request,
        id: view.as_ref().map(|_| "web-3"),
    };
    let now = timestamp("2025-03-07T09:03:21Z");
    Record::new(&asked, ended, now, view, Vec::new(), None)
}

fn rolled_back() -> RolloutView {
    let failing = Decision::Fail {
        signal: Signal::Errors,
        sick_node: None,
    };
    let cause = rollout::Cause::Evidence {
        signal: "errors".into(),
    };
    view(Phase::RolledBack { cause }, Some(verdict(failing)))
}

#[test]
fn says_how_it_ended_in_every_file() {
    let refused: anyhow::Result<u8> =
        Err(Refusal("production is frozen until Monday".into()).into());
    let given_up: anyhow::Result<u8> = Err(GivenUp("gave up".into()).into());
    let analyzing = || {
        view(
            Phase::Analyzing {
                step: 1,
                elapsed: Duration::ZERO,
            },
            None,
        )
    };
    let cases = [
        (
            "promoted",
            0,
            record(&Ok(0), Some(view(Phase::Promoted, None))),
        ),
        ("rolled_back", 10, record(&Ok(10), Some(rolled_back()))),
        ("refused", 20, record(&refused, None)),
        ("running", 1, record(&given_up, Some(analyzing()))),
        ("running", 0, record(&Ok(0), Some(analyzing()))),
        ("error", 1, record(&given_up, None)),
    ];
    for (outcome, code, record) in cases {
        assert_eq!((record.outcome, record.exit_code), (outcome, code));
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        record.write(&inner).unwrap();
        let read = |name: &str| fs::read_to_string(inner.join(name)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&read("friday.json")).unwrap();
        assert_eq!(
            (&json["outcome"], &json["exit_code"]),
            (&outcome.into(), &code.into())
        );
        assert!(read("friday.env").contains(&format!("FRIDAY_OUTCOME={outcome}\n")));
        assert!(read("metrics.txt").contains(&format!("friday_exit_code {code}\n")));
        assert!(read("metrics.txt").ends_with("# EOF\n"));
        let junit = read("junit.xml");
        let is_green = !junit.contains("<failure") && !junit.contains("<error ");
        assert_eq!(is_green, code == 0, "{junit}");
        assert!(
            junit.contains("web:v2 &lt;&amp;&quot;&apos;&gt;"),
            "{junit}"
        );
    }
}

#[test]
fn the_signal_that_speaks_against_the_release_is_the_case_that_fails() {
    let junit = junit::text(&record(&Ok(10), Some(rolled_back())));
    let failed = |name: &str| {
        let at = junit.find(&format!("name=\"{name}\"")).expect(name);
        let end = at + junit[at..].find("</testcase>").expect(name);
        junit[at..end].contains("<failure type=\"rolled_back\"")
    };
    assert!(failed("errors") && failed("release"), "{junit}");
    for name in [
        "ready",
        "latency p50",
        "latency p99",
        "saturation",
        "warm-up",
        "restarts",
    ] {
        assert!(!failed(name), "{name}: {junit}");
    }
    assert!(
        junit.contains("failures=\"2\" errors=\"0\" skipped=\"0\""),
        "{junit}"
    );
    let metrics = metrics::text(&record(&Ok(10), Some(rolled_back())));
    assert!(metrics.contains("friday_promoted 0\n"), "{metrics}");
    assert!(
        metrics.contains("friday_error_ratio{arm=\"canary\"} "),
        "{metrics}"
    );
}

#[test]
fn no_variable_for_later_jobs_is_one_that_a_command_reads() {
    use clap::CommandFactory;
    let mut command = Cli::command();
    command.build();
    let mut read: Vec<String> = Vec::new();
    for sub in command.get_subcommands().chain([&command]) {
        let names = sub.get_arguments().filter_map(clap::Arg::get_env);
        read.extend(names.map(|name| name.to_string_lossy().into_owned()));
    }
    assert!(
        read.iter().any(|name| name == "FRIDAY_ENVIRONMENT"),
        "{read:?}"
    );
    let variables = record(&Ok(10), Some(rolled_back())).variables();
    assert!(variables.lines().count() > 5);
    for line in variables.lines() {
        let (name, _) = line.split_once('=').expect("a variable on each line");
        assert!(!read.iter().any(|other| other == name), "{name}");
    }
}

#[test]
fn a_value_cannot_bring_another_variable() {
    let mut record = record(&Ok(0), None);
    record.image = "web:v2\nFRIDAY_URL=http://elsewhere".into();
    let variables = record.variables();
    assert!(
        !variables
            .lines()
            .any(|line| line.starts_with("FRIDAY_URL=")),
        "{variables}"
    );
}

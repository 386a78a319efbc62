use clap::CommandFactory;
use rollout::judge::{Decision, Missing, Signal};
use rollout::rollout::Promotion;
use rollout::{Cause, Duration, Phase, Timestamp};

use super::output::Paint;
use super::*;
use crate::clock::Clock;
use crate::words::samples::{timestamp, verdict, view};

/// A clock that stands still.
#[derive(Debug)]
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Timestamp {
        timestamp("2025-03-07T09:03:21Z")
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

fn analyzing() -> Phase {
    Phase::Analyzing {
        step: 1,
        elapsed: Duration::from_secs(34),
    }
}

#[test]
fn is_a_consistent_command_line() {
    Cli::command().debug_assert();
}

#[test]
fn helps_with_every_command() {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut helps = vec![command.render_help().to_string()];
    for sub in command.get_subcommands_mut() {
        // What it serves with is the app's to say.
        if sub.get_name() != "serve" {
            let help = sub.render_help();
            helps.push(format!("=== {}\n{help}", sub.get_name()));
        }
    }
    insta::assert_snapshot!("help", helps.join("\n"));
}

#[test]
fn reads_both_ways_to_write_deploy() {
    for line in [
        "friday deploy --image worker:v2",
        "friday set-image --image worker:v2",
        "friday set image --image worker:v2 -f other.yml --wait --timeout 10m -o json",
        "friday --output json --url http://x deploy --image worker:v2",
    ] {
        assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
    }
    for line in [
        "friday deploy",
        "friday status",
        "friday get a/b",
        "friday get -w ..",
        "friday undo a --to x",
        "friday deploy --image x --timeout 10",
        "friday history a --limit 0",
        "friday list -o yaml",
    ] {
        assert_eq!(
            Cli::try_parse_from(line.split(' '))
                .unwrap_err()
                .exit_code(),
            2,
            "{line}"
        );
    }
}

#[test]
fn draws_the_tree() {
    let now = Stopped.now();
    let draw = |view: &crate::api::types::RolloutView| tree::tree(view, now, Paint { on: false });
    let missing = vec![Missing::CanaryRequests {
        have: 6,
        needed: 10,
    }];
    let running = view(
        analyzing(),
        Some(verdict(Decision::Inconclusive { missing })),
    );
    let mut troubled = view(
        Phase::Paused {
            at: Box::new(analyzing()),
        },
        None,
    );
    troubled.weight.seen_percent = None;
    troubled.canary.restarts = 2;
    troubled.canary.trouble = Some("exit code 1:\n\x1b[31mno such file".into());
    let fail = Decision::Fail {
        signal: Signal::Errors,
        sick_node: None,
    };
    let cause = Cause::Evidence {
        signal: "errors".into(),
    };
    let back = view(Phase::RolledBack { cause }, Some(verdict(fail)));
    let mut promoting = view(
        Phase::Promoting {
            stage: Promotion::Updating,
            elapsed: Duration::ZERO,
        },
        None,
    );
    promoting.stable.tasks[1].release = promoting.canary.release.id.to_string();
    let mut promoted = view(Phase::Promoted, None);
    for task in &mut promoted.stable.tasks {
        task.release = promoted.canary.release.id.to_string();
    }
    let drawn = [&running, &troubled, &promoting, &back, &promoted]
        .map(draw)
        .join("\n\n================\n\n");
    insta::assert_snapshot!("tree", drawn);
}

#[test]
fn paints_without_moving_anything() {
    let view = view(analyzing(), None);
    let plain = tree::tree(&view, Stopped.now(), Paint { on: false });
    let painted = tree::tree(&view, Stopped.now(), Paint { on: true });
    assert!(painted.contains("\x1b[33m◌ Progressing\x1b[0m"));
    let mut stripped = painted;
    for code in ["\x1b[0m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
        stripped = stripped.replace(code, "");
    }
    assert_eq!(stripped, plain);
}

#[test]
fn says_how_it_ended_and_what_to_do() {
    let cause = |cause| Phase::RolledBack { cause };
    let views = [
        view(analyzing(), None),
        view(Phase::Promoted, None),
        view(
            cause(Cause::Evidence {
                signal: "latency".into(),
            }),
            None,
        ),
        view(
            cause(Cause::Person {
                by: "ann".into(),
                reason: Some("wrong branch".into()),
            }),
            None,
        ),
        view(
            cause(Cause::Superseded {
                by: rollout::RolloutId::from_text("tweets-worker-4"),
            }),
            None,
        ),
        view(cause(Cause::InsufficientEvidence), None),
        view(
            cause(Cause::NotReady {
                trouble: Some("exit code 1".into()),
            }),
            None,
        ),
    ];
    let said = views.map(|view| rollouts::outcome(&view, Paint { on: false }));
    insta::assert_snapshot!("outcomes", said.join("\n\n"));
}

#[test]
fn gives_every_failure_its_exit_code() {
    let code = |error: anyhow::Error| exit_code(&error);
    assert_eq!(code(Usage("x".into()).into()), 2);
    assert_eq!(code(Wrong(vec![]).into()), 20);
    assert_eq!(code(Refusal("x".into()).into()), 20);
    assert_eq!(code(GivenUp("x".into()).into()), 1);
    assert_eq!(code(std::io::Error::from(ErrorKind::BrokenPipe).into()), 0);
    assert_eq!(code(anyhow::anyhow!("a defect")), 1);
}

#[test]
fn completes_in_every_shell() {
    for shell in [
        clap_complete::Shell::Bash,
        clap_complete::Shell::Zsh,
        clap_complete::Shell::Fish,
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "friday", &mut script);
        assert!(
            String::from_utf8(script)
                .unwrap()
                .contains("unreachable-timeout"),
            "{shell}"
        );
    }
}

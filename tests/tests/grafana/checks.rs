//! The pipeline's own figures as checks of a release: what the sink counts, by way of a real Prometheus, promotes a release and
//! takes the next one back.

use friday::api::types::CheckState;
use rollout::Ending;
use system_tests::{SPEC, free_address};

use crate::RELEASE_MAX;
use crate::demo::{Demo, MANY_TWEETS};
use crate::monitoring::{NOBODY, Prometheus};

/// What a handbook of the pipeline advises.
const HANDBOOK: &str = include_str!("../../../pipeline-demo/STORAGE.md");

/// One check more: every tweet of this demo loves something.
const NEGATIVE: &str = r#"    - name: negative share
      prometheus: '(sum(rate(pipeline_results_total{release="$release",sentiment="negative"}[5s])) or vector(0)) / sum(rate(pipeline_results_total{release="$release"}[5s]))'
      max: 0.5
"#;

/// One step, the handbook's shares and [`NEGATIVE`], and no look at the answers themselves. Shares are those of five seconds instead
/// of a minute, and asked for as often as may be, since each step waits for a sample that is wholly its own.
fn spec() -> String {
    let shares = HANDBOOK
        .split_once("  checks:\n")
        .and_then(|(_, rest)| rest.split_once("    - name: lateness\n"))
        .map(|(shares, _)| shares)
        .expect("the handbook has them in this order");
    let kept = |line: &&str| !line.contains("weight: 25%") && !line.contains("weight: 50%");
    let plan: Vec<&str> = SPEC.lines().filter(kept).collect();
    let plan = plan.join("\n");
    let (before, after) = plan
        .split_once("guard: { alpha: 0.01% }")
        .expect("a scene has a guard");
    let checks = format!("{shares}{NEGATIVE}")
        .replace("[1m]", "[5s]")
        .replace("      max:", "      every: 10s\n      lag: 2s\n      max:");
    format!("{before}{after}\nguard:\n  alpha: 0.01%\n  checks:\n{checks}")
}

#[tokio::test]
async fn a_release_whose_data_is_wrong_is_rolled_back_by_a_check_of_the_data() {
    // Known to the controller before it is there.
    let at = free_address();
    let demo = Demo::start(
        MANY_TWEETS,
        &[],
        &[("FRIDAY_PROMETHEUS", &format!("http://{at}"))],
    )
    .await;
    let _prometheus = Prometheus::start_at(at, demo.dir(), &demo.targets(), NOBODY).await;

    let spec = spec();
    let id = demo.deploy_by(&spec, "worker:good").await;
    let good = demo.release("worker:good", RELEASE_MAX, Some(&id)).await;
    assert_eq!(good.ending, Some(Ending::Promoted), "{}", good.message);
    println!("{:#?}", good.checks);
    assert_eq!(good.checks.len(), 3);
    assert!(
        good.checks
            .iter()
            .all(|check| check.state == CheckState::Kept)
    );

    let id = demo.deploy_by(&spec, "worker:wrong").await;
    let wrong = demo.release("worker:wrong", RELEASE_MAX, Some(&id)).await;
    println!("wrong: {}", wrong.message);
    assert_eq!(wrong.ending, Some(Ending::RolledBack), "{}", wrong.message);
    assert!(
        wrong.message.contains("check \"negative share\""),
        "{}",
        wrong.message
    );
    demo.end().await;
}

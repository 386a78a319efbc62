//! The pipeline's own figures as checks of a release: what the sink counts, by way of a real Prometheus, promotes a release and
//! takes the next one back.

use friday::api::types::CheckState;
use rollout::Ending;
use system_tests::{SPEC, free_address};

use crate::RELEASE_MAX;
use crate::demo::Demo;
use crate::monitoring::{NOBODY, Prometheus};

/// What a handbook of the pipeline advises.
const HANDBOOK: &str = include_str!("../../../pipeline-demo/STORAGE.md");

/// One check more: every tweet of this demo loves something.
const NEGATIVE: &str = "\
    - name: negative share
      prometheus: '(sum(rate(pipeline_results_total{release=\"$release\",sentiment=\"negative\"}[10s])) or vector(0)) / sum(rate(pipeline_results_total{release=\"$release\"}[10s]))'
      max: 0.5
";

/// The plan of the scenes with the handbook's shares and [`NEGATIVE`], and without a look at the answers themselves.
fn spec() -> String {
    let shares = HANDBOOK
        .split_once("  checks:\n")
        .and_then(|(_, rest)| rest.split_once("    - name: lateness\n"))
        .map(|(shares, _)| shares)
        .expect("the handbook has them in this order");
    let (before, after) = SPEC
        .split_once("guard: { alpha: 0.01% }\n")
        .expect("a scene has a guard");
    format!("{before}{after}guard:\n  alpha: 0.01%\n  checks:\n{shares}{NEGATIVE}")
}

#[tokio::test]
async fn a_release_whose_data_is_wrong_is_rolled_back_by_a_check_of_the_data() {
    // Known to the controller before it is there.
    let at = free_address();
    let demo = Demo::start(&[], &[("FRIDAY_PROMETHEUS", &format!("http://{at}"))]).await;
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

//! Commits, good and bad, and what becomes of them.

use std::fs;

use rollout::Ending;

use crate::site::{PRODUCTION, STAGING, Site, commit, git};

#[tokio::test(flavor = "multi_thread")]
async fn a_good_commit_goes_to_staging_is_approved_and_goes_to_production_and_a_button_takes_it_back()
 {
    let site = Site::start().await;
    let pushed = site.run("push", &[]).await;
    assert_eq!(pushed.code, 0, "{}", pushed.text);
    let staged = site.client.rollout(STAGING).await.unwrap();
    assert_eq!(staged.ending, Some(Ending::Promoted), "{}", pushed.text);
    assert_eq!(staged.environment, "staging");
    let origin = staged.origin.expect("a job asked for it");
    assert_eq!(origin.job_name, "canary: web-staging in staging");
    assert_eq!(origin.project_path, "shop/web");
    assert_eq!(site.count(PRODUCTION).await, 0, "nobody said so yet");
    assert!(
        site.report(STAGING, "friday.env")
            .contains("FRIDAY_OUTCOME=promoted\n"),
        "{}",
        pushed.text
    );
    assert!(
        !site.report(STAGING, "junit.xml").contains("<failure"),
        "{}",
        pushed.text
    );
    assert!(
        site.report(STAGING, "metrics.txt")
            .contains("friday_promoted 1\n")
    );

    let pressed = site.pipeline("production", &["canary: web in production"]);
    site.until(PRODUCTION, "the release waits at its gate", |view| {
        view.phase.name() == "gated"
    })
    .await;
    let approved = site.run("approve", &["approve: web in production"]).await;
    assert_eq!(approved.code, 0, "{}", approved.text);
    let pressed = pressed.end().await;
    assert_eq!(pressed.code, 0, "{}", pressed.text);
    let released = site.client.rollout(PRODUCTION).await.unwrap();
    assert_eq!(released.ending, Some(Ending::Promoted), "{}", pressed.text);
    assert_eq!(
        released.canary.release.id, staged.canary.release.id,
        "the same image"
    );

    let back = site.run("rollback", &["rollback: web in production"]).await;
    assert_eq!(back.code, 0, "{}", back.text);
    let services = site.client.services().await.unwrap();
    let stable = |name: &str| {
        let found = services.iter().find(|view| view.service == name);
        found.expect("it is served").stable.release.image.clone()
    };
    assert_eq!(stable(PRODUCTION), "web:v1", "{}", back.text);
    assert_eq!(
        stable(STAGING),
        staged.canary.release.image,
        "{}",
        back.text
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_commit_is_rolled_back_turns_the_pipeline_red_and_never_touches_production() {
    let site = Site::start().await;
    fs::write(site.project().join("fault"), "errors\n").unwrap();
    commit(&site.project(), "one call in five fails");
    let pushed = site.run("push", &[]).await;
    assert_ne!(pushed.code, 0, "{}", pushed.text);
    assert!(pushed.text.contains("FAIL 10"), "{}", pushed.text);
    let staged = site.client.rollout(STAGING).await.unwrap();
    assert_eq!(staged.ending, Some(Ending::RolledBack), "{}", pushed.text);
    assert_eq!(site.count(PRODUCTION).await, 0, "{}", pushed.text);
    let junit = site.report(STAGING, "junit.xml");
    assert!(junit.contains("<failure type=\"rolled_back\""), "{junit}");
    assert!(
        site.report(STAGING, "friday.env")
            .contains("FRIDAY_EXIT_CODE=10\n")
    );
    // The same pipeline again changes nothing of that: what was rolled back does not start by itself (F31).
    let again = site.run("again", &["canary: web-staging in staging"]).await;
    assert!(again.text.contains("FAIL 20"), "{}", again.text);
    assert_eq!(site.count(STAGING).await, 1, "{}", again.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_commit_takes_over_from_the_first_that_is_on_trial() {
    let site = Site::start().await;
    let checkout = site.project().with_file_name("second");
    let from = site.project().display().to_string();
    let to = checkout.display().to_string();
    git(&site.project(), &["clone", "--quiet", &from, &to]);
    git(
        &checkout,
        &[
            "remote",
            "set-url",
            "origin",
            "git@gitlab.example.com:shop/web.git",
        ],
    );
    let first = site.pipeline("first", &[]);
    let trial = site
        .until(STAGING, "the first is on trial", |view| {
            view.phase.name() == "analyzing"
        })
        .await;
    commit(&checkout, "the second commit");
    let second = site.pipeline_in(&checkout, "second", &[]).end().await;
    let first = first.end().await;
    assert!(first.text.contains("FAIL 12"), "{}", first.text);
    assert_eq!(second.code, 0, "{}", second.text);
    let old = site.client.rollout(&trial.id).await.unwrap();
    assert_eq!(old.ending, Some(Ending::Superseded), "{}", first.text);
    let new = site.client.rollout(STAGING).await.unwrap();
    assert_eq!(new.ending, Some(Ending::Promoted), "{}", second.text);
    assert_ne!(new.id, old.id);
}

//! Jobs that are cancelled, and machines that vanish (F38).

use rollout::{Cause, Ending, Phase};

use crate::site::{STAGING, Site, signal};
use nix::sys::signal::Signal;

#[tokio::test(flavor = "multi_thread")]
async fn f38_a_job_that_is_cancelled_or_vanishes_takes_its_release_back() {
    let site = Site::start().await;
    // The runner's machine is gone: nobody says anything any more.
    let vanished = site.pipeline("vanished", &[]);
    let on_trial =
        |what: &'static str| site.until(STAGING, what, |view| view.phase.name() == "analyzing");
    let first = on_trial("the first is on trial").await;
    vanished.vanish();
    // What runs a job may be a group of its own.
    for pid in site.waiting() {
        signal(pid, Signal::SIGKILL);
    }
    let ended = site
        .until(STAGING, "its lease is lost, and it goes back", |view| {
            view.ending.is_some()
        })
        .await;
    assert_eq!(
        (&ended.id, ended.ending),
        (&first.id, Some(Ending::Aborted))
    );
    let said = format!("{:?}", ended.phase);
    assert!(
        matches!(&ended.phase, Phase::RolledBack { cause: Cause::Person { by, .. } } if by == "lease"),
        "{said}"
    );
    assert!(said.contains("was silent for 6 s"), "{said}");
    drop(vanished);

    // Somebody cancels the job: it is told to stop, and has a word left.
    let cancelled = site.pipeline("cancelled", &[]);
    let second = site
        .until(STAGING, "the second is on trial", |view| {
            view.id != first.id && view.phase.name() == "analyzing"
        })
        .await;
    let waiting = site.waiting();
    assert_eq!(waiting.len(), 1, "one command waits: {waiting:?}");
    // What GitLab's runner sends to the processes of a job that is cancelled.
    signal(waiting[0], Signal::SIGTERM);
    let log = cancelled.end().await;
    assert!(log.text.contains("FAIL 11"), "{}", log.text);
    let ended = site
        .until(STAGING, "it goes back at once", |view| {
            view.ending.is_some()
        })
        .await;
    assert_eq!(
        (&ended.id, ended.ending),
        (&second.id, Some(Ending::Aborted)),
        "{}",
        log.text
    );
    let said = format!("{:?}", ended.phase);
    assert!(said.contains("its job was told to stop"), "{said}");
    let variables = site.report(STAGING, "friday.env");
    assert!(
        variables.contains("FRIDAY_OUTCOME=aborted\n"),
        "{variables}"
    );
}

//! The log of a job is never silent for long, on paused time.

use rollout::Phase;

use super::*;
use crate::cli::output::Heard;
use crate::client::transport::TransportError;
use crate::words::samples;

/// Longest silence that is promised.
const PROMISED: Duration = Duration::from_secs(30);

/// For how long the rollout is waited for here: many heartbeats.
const WAIT: Duration = Duration::from_secs(600);

const SECOND: Duration = Duration::from_secs(1);

fn running(percent: f64) -> RolloutView {
    let elapsed = Duration::ZERO;
    let mut view = samples::view(Phase::Analyzing { step: 1, elapsed }, None);
    view.weight.set_percent = percent;
    view
}

fn no_answer() -> ClientError {
    ClientError::Unreachable {
        action: "read the rollout".to_owned(),
        url: "http://127.0.0.1:7070".to_owned(),
        source: TransportError::Late(SECOND),
    }
}

/// What a job's log says while it waits for at most [`WAIT`]: each line, and the silence before it.
async fn log(
    format: Format,
    look: impl AsyncFnMut() -> Result<RolloutView, ClientError>,
) -> Vec<(Duration, String)> {
    let heard = Heard::default();
    let context = Context {
        is_terminal: false,
        has_colours: false,
        in_gitlab: true,
        in_ci: true,
        heard: Some(heard.clone()),
        ..Context::of_process(format)
    };
    let patience = Patience {
        timeout: Some(WAIT),
        unreachable_timeout: 2 * WAIT,
    };
    let start = Instant::now();
    let mut screen = Screen::of_wait(&context);
    let waited = until_seen_ended("web-3", look, &patience, &mut screen).await;
    waited.unwrap_err().downcast::<GivenUp>().unwrap();
    let mut before = start;
    let mut said = heard.lock().unwrap().clone();
    said.push((Instant::now(), "its end".to_owned()));
    let mut lines = Vec::new();
    for (at, text) in said {
        lines.push((at - before, text));
        before = at;
    }
    lines
}

fn never_silent(about: &str, lines: &[(Duration, String)]) {
    for (silence, text) in lines {
        assert!(
            *silence < PROMISED,
            "{about}: silent for {silence:?} before {text:?}"
        );
    }
    assert!(
        lines.len() >= 20,
        "{about}: {} lines in {WAIT:?}",
        lines.len()
    );
}

#[tokio::test(start_paused = true)]
async fn a_jobs_log_has_a_sign_of_life_at_least_every_thirty_seconds() {
    for format in [Format::Text, Format::Json] {
        // Nothing changes, however often it is looked at.
        for pause in [1_u32, 15, 19, 20, 21, 29, 31, 3_600] {
            let mut is_first = true;
            let lines = log(format, async || {
                if !std::mem::take(&mut is_first) {
                    tokio::time::sleep(pause * SECOND).await;
                }
                Ok(running(10.0))
            });
            let lines = lines.await;
            never_silent(&format!("a look every {pause} s"), &lines);
            let beats = lines.iter().filter(|(_, text)| text.contains("no change"));
            assert!(beats.count() >= 28, "{pause} s: {lines:?}");
        }
        // It changes just before and just after a sign of life was due.
        for pause in [19_u32, 20, 21, 29] {
            let mut percent = 0.0;
            let lines = log(format, async || {
                tokio::time::sleep(pause * SECOND).await;
                percent += 1.0;
                Ok(running(percent))
            });
            never_silent(&format!("a change every {pause} s"), &lines.await);
        }
        // Nobody answers: at all, or each time with an error.
        let lines = log(format, async || std::future::pending().await);
        never_silent("no answer", &lines.await);
        let lines = log(format, async || {
            tokio::time::sleep(2 * SECOND).await;
            Err(no_answer())
        });
        never_silent("errors", &lines.await);
        // It answers once, and then no more.
        let mut is_first = true;
        let lines = log(format, async || {
            if std::mem::take(&mut is_first) {
                return Ok(running(10.0));
            }
            tokio::time::sleep(5 * SECOND).await;
            Err(no_answer())
        });
        never_silent("lost", &lines.await);
    }
}

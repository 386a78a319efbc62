//! Waiting for a rollout to end: over restarts of the controller, with a sign of life for whoever watches.

use std::io::Write as _;

use rollout::Duration;
use tokio::time::Instant;

use super::output::{Context, Format, plain};
use super::{GivenUp, tree};
use crate::api::types::RolloutView;
use crate::client::{Changes, Client, ClientError, pause};
use crate::words;

#[cfg(test)]
mod tests;

/// Longest silence in a log that is only added to. CI systems and people take a job for dead after some; GitLab's
/// runner shows nothing in between. Below 30 s, which is our promise.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// Without a change for this long the rollout is asked for by itself, so that a stream that lost one delays no ending.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// The pause after a stream that ended at once.
const RETRY: Duration = Duration::from_millis(250);

/// For how long to wait, and for how long without an answer.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Patience {
    /// Stop waiting after this time, with exit code 1; the rollout goes on
    #[arg(long, value_parser = super::duration, value_name = "TIME")]
    pub(super) timeout: Option<Duration>,
    /// Keep trying for this long while the controller is out of reach, then exit with 30
    #[arg(long, value_parser = super::duration, default_value = "60s", value_name = "TIME")]
    pub(super) unreachable_timeout: Duration,
}

/// Waits for the rollout `id` to end, and shows on the way what changes.
pub(super) async fn until_ended(
    id: &str,
    client: &Client,
    patience: &Patience,
    screen: &mut Screen<'_>,
) -> anyhow::Result<RolloutView> {
    let mut follower = Follower::of(id, client);
    until_seen_ended(id, async || follower.next().await, patience, screen).await
}

/// The same by whatever looks at it.
async fn until_seen_ended(
    id: &str,
    mut look: impl AsyncFnMut() -> Result<RolloutView, ClientError>,
    patience: &Patience,
    screen: &mut Screen<'_>,
) -> anyhow::Result<RolloutView> {
    let start = Instant::now();
    let mut reached = start;
    let mut last: Option<RolloutView> = None;
    let mut heartbeat = tokio::time::interval_at(start + HEARTBEAT, HEARTBEAT);
    loop {
        let next = look();
        tokio::pin!(next);
        let next = loop {
            tokio::select! {
                next = &mut next => break next,
                _ = heartbeat.tick() => screen.beat(last.as_ref())?,
                () = until(start, patience.timeout) => {
                    let where_it_is = last.map(|view| format!(": {}", plain(&view.message))).unwrap_or_default();
                    let waited = words::rounded(start.elapsed());
                    screen.close()?;
                    anyhow::bail!(GivenUp(format!(
                        "gave up after {waited} (--timeout); {id} goes on without us{where_it_is}; \
                         `friday status {id}` waits again"
                    )));
                }
            }
        };
        match next {
            Ok(view) => {
                reached = Instant::now();
                if screen.show(&view)? {
                    heartbeat.reset();
                }
                if view.ending.is_some() {
                    screen.close()?;
                    return Ok(view);
                }
                last = Some(view);
            }
            Err(error)
                if error.is_transient() && reached.elapsed() < patience.unreachable_timeout =>
            {
                screen.lost(&error, patience.unreachable_timeout)?;
            }
            Err(error) => {
                screen.close()?;
                return Err(error.into());
            }
        }
    }
}

/// Says on standard error that there is no answer, and for how long it is asked again.
pub(super) fn say_lost(error: &ClientError, limit: Duration) {
    let limit = words::rounded(limit);
    // There is nowhere left to say that standard error is gone.
    drop(writeln!(
        std::io::stderr(),
        "friday: {error}; trying again for {limit}"
    ));
}

async fn until(start: Instant, timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep_until(start + timeout).await,
        None => std::future::pending().await,
    }
}

/// One rollout, looked at again and again.
pub(super) struct Follower<'a> {
    id: &'a str,
    client: &'a Client,
    changes: Option<Changes>,
    failures: u32,
}

impl<'a> Follower<'a> {
    /// Whoever looks at the rollout `id`, which was not looked at yet.
    pub(super) fn of(id: &'a str, client: &'a Client) -> Self {
        Self {
            id,
            client,
            changes: None,
            failures: 0,
        }
    }

    /// The rollout as it is once it changed, or after a while.
    pub(super) async fn next(&mut self) -> Result<RolloutView, ClientError> {
        if self.failures > 0 {
            tokio::time::sleep(pause(self.failures)).await;
        }
        let next = self.look().await;
        self.failures = if next.is_ok() { 0 } else { self.failures + 1 };
        if next.is_err() {
            self.changes = None;
        }
        next
    }

    async fn look(&mut self) -> Result<RolloutView, ClientError> {
        let Some(changes) = &mut self.changes else {
            // First the stream, then the present: nothing that happens in between is missed.
            self.changes = Some(self.client.watch(self.id).await?);
            return self.client.rollout(self.id).await;
        };
        match tokio::time::timeout(LOOK_AGAIN, changes.next()).await {
            Ok(Some(view)) => Ok(view),
            Ok(None) => {
                self.changes = None;
                // A server that ends each stream at once is not asked without end.
                tokio::time::sleep(RETRY).await;
                self.client.rollout(self.id).await
            }
            Err(_) => self.client.rollout(self.id).await,
        }
    }
}

/// Where progress is shown, and what of it was.
#[derive(Debug)]
pub(super) struct Screen<'a> {
    context: &'a Context,
    kind: Kind,
    /// What the last line was about.
    shown: Option<(String, String)>,
    /// The section of a GitLab log that is open.
    section: Option<String>,
    is_lost: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The tree, drawn anew.
    Tree,
    /// A line for each change.
    Lines,
    /// A JSON document on a line for each change.
    Documents,
}

impl<'a> Screen<'a> {
    /// For a command whose result follows at the end: JSON has standard output for itself then, and the lines go to
    /// standard error.
    pub(super) fn of_wait(context: &'a Context) -> Self {
        let kind = match context.format {
            Format::Json => Kind::Lines,
            Format::Text if context.is_terminal => Kind::Tree,
            Format::Text => Kind::Lines,
        };
        Self::new(context, kind)
    }

    /// For a command whose result is what happens.
    pub(super) fn of_watch(context: &'a Context) -> Self {
        let kind = match context.format {
            Format::Json => Kind::Documents,
            Format::Text if context.is_terminal => Kind::Tree,
            Format::Text => Kind::Lines,
        };
        Self::new(context, kind)
    }

    fn new(context: &'a Context, kind: Kind) -> Self {
        Self {
            context,
            kind,
            shown: None,
            section: None,
            is_lost: false,
        }
    }

    /// Shows the rollout as it is now; whether there was anything to show.
    fn show(&mut self, view: &RolloutView) -> anyhow::Result<bool> {
        if std::mem::take(&mut self.is_lost) && self.kind == Kind::Lines {
            self.line("the controller answers again")?;
        }
        match self.kind {
            Kind::Documents => self.context.say(&serde_json::to_string(view)?)?,
            Kind::Tree => {
                let tree = tree::tree(view, self.context.clock.now(), self.context.paint());
                // Home, the picture line by line with the rest of each line cleared, and nothing below: no flicker.
                let clear = if self.shown.is_none() { "\x1b[2J" } else { "" };
                let picture = tree.replace('\n', "\x1b[K\n");
                self.context
                    .say(&format!("{clear}\x1b[H{picture}\x1b[K\n\x1b[J"))?;
                self.shown = Some((String::new(), String::new()));
            }
            Kind::Lines => return self.show_change(view),
        }
        Ok(true)
    }

    /// Adds a line if the rollout moved, changed its weight, or is judged otherwise. Time alone is no change.
    fn show_change(&mut self, view: &RolloutView) -> anyhow::Result<bool> {
        let phase = serde_json::to_string(&view.phase.at_start())?;
        let decision = view
            .verdict
            .as_ref()
            .map(|verdict| std::mem::discriminant(&verdict.decision));
        let state = format!(
            "{} {:?} {decision:?}",
            view.weight.set_percent, view.weight.seen_percent
        );
        let is_new_phase = self
            .shown
            .as_ref()
            .is_none_or(|(before, _)| *before != phase);
        if self
            .shown
            .as_ref()
            .is_some_and(|(_, before)| *before == state)
            && !is_new_phase
        {
            return Ok(false);
        }
        self.shown = Some((phase, state));
        if is_new_phase && self.context.in_gitlab {
            self.open_section(view)?;
        }
        self.line(&format!(
            "{} {}: {}",
            view.id,
            weight(view),
            plain(&view.message)
        ))?;
        Ok(true)
    }

    /// A sign of life where nothing changed.
    fn beat(&mut self, last: Option<&RolloutView>) -> anyhow::Result<()> {
        match (self.kind, last) {
            (Kind::Lines, Some(view)) if !self.is_lost => self.line(&format!(
                "{} {}, no change: {}",
                view.id,
                weight(view),
                plain(&view.message)
            )),
            (Kind::Lines, _) => self.line("still waiting for an answer of the controller"),
            (Kind::Tree, Some(view)) if !self.is_lost => self.show(view).map(drop),
            (Kind::Tree | Kind::Documents, _) => Ok(()),
        }
    }

    /// The controller does not answer; said once.
    fn lost(&mut self, error: &ClientError, patience: Duration) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.is_lost, true) || self.kind == Kind::Documents {
            return Ok(());
        }
        self.line(&format!(
            "{error}; trying again for {}",
            words::rounded(patience)
        ))
    }

    fn line(&self, text: &str) -> anyhow::Result<()> {
        let time = self.context.clock.now().strftime("%H:%M:%S");
        self.put(&format!("{time}Z {text}"))
    }

    /// Adds to the log, wherever that is.
    fn put(&self, text: &str) -> anyhow::Result<()> {
        match self.context.format {
            Format::Text => self.context.say(text),
            Format::Json => self.context.note(text),
        }
    }

    /// Begins a section that GitLab's log can fold, in place of the one before.
    fn open_section(&mut self, view: &RolloutView) -> anyhow::Result<()> {
        self.close()?;
        let name = format!(
            "friday_{}_{}",
            view.phase.name(),
            view.steps.iter().position(is_current).unwrap_or_default()
        );
        let seconds = self.context.clock.now().as_second();
        let title = format!("{} {}", view.id, view.phase.name().replace('_', " "));
        self.put(&format!(
            "\x1b[0Ksection_start:{seconds}:{name}\r\x1b[0K{title}"
        ))?;
        self.section = Some(name);
        Ok(())
    }

    /// Ends what is still open.
    fn close(&mut self) -> anyhow::Result<()> {
        let Some(name) = self.section.take() else {
            return Ok(());
        };
        let seconds = self.context.clock.now().as_second();
        self.put(&format!("\x1b[0Ksection_end:{seconds}:{name}\r\x1b[0K"))
    }
}

fn is_current(step: &crate::api::types::StepView) -> bool {
    step.state == crate::api::types::StepState::Current
}

fn weight(view: &RolloutView) -> String {
    let set = view.weight.set_percent;
    match view.weight.seen_percent {
        Some(seen) if (seen - set).abs() < 0.005 => format!("at {set}%"),
        Some(seen) => format!("at {seen}%, set to {set}%"),
        None => format!("set to {set}%"),
    }
}

//! Where a command's words go: text or JSON, colours or none, a terminal or a job's log.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use serde::Serialize;

use super::Wrong;
use crate::api::types::Problem;
use crate::client::ClientError;
use crate::clock::{Clock, SystemClock};

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Format {
    // For people, and for programs. No doc comments: they would make every help text twice as long.
    #[default]
    Text,
    Json,
}

/// What a command knows of its surroundings.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four facts about where output goes, none of which follows from another"
)]
pub(super) struct Context {
    pub(super) format: Format,
    /// Whether standard output is a screen that can be drawn anew.
    pub(super) is_terminal: bool,
    /// Whether standard output understands colours and its owner wants them.
    pub(super) has_colours: bool,
    /// Whether standard output is the log of a GitLab job.
    pub(super) in_gitlab: bool,
    /// Whether it is a job of some CI system that asks, and nobody at a screen.
    pub(super) in_ci: bool,
    pub(super) clock: Arc<dyn Clock>,
    /// Where a test hears what would be printed.
    #[cfg(test)]
    pub(super) heard: Option<Heard>,
}

/// What would be printed, each with when.
#[cfg(test)]
pub(super) type Heard = Arc<std::sync::Mutex<Vec<(tokio::time::Instant, String)>>>;

impl Context {
    /// The surroundings of this process.
    pub(super) fn of_process(format: Format) -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        // Programs that run a pipeline without GitLab say `GITLAB_CI=false`.
        let is_on =
            |name| is_set(name) && std::env::var_os(name).is_none_or(|value| value != "false");
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let is_terminal = std::io::stdout().is_terminal() && !is_dumb;
        Self {
            format,
            is_terminal,
            has_colours: is_terminal && !is_set("NO_COLOR"),
            in_gitlab: is_on("GITLAB_CI") && !is_terminal,
            in_ci: (is_on("GITLAB_CI") || is_on("CI")) && !is_terminal,
            clock: SystemClock::new(),
            #[cfg(test)]
            heard: None,
        }
    }

    pub(super) fn paint(&self) -> Paint {
        Paint {
            on: self.has_colours,
        }
    }

    /// Prints text to standard output and sees it through.
    pub(super) fn say(&self, text: &str) -> anyhow::Result<()> {
        self.put(std::io::stdout().lock(), text)
    }

    /// Prints text to standard error, beside a result on standard output.
    pub(super) fn note(&self, text: &str) -> anyhow::Result<()> {
        self.put(std::io::stderr().lock(), text)
    }

    fn put(&self, out: impl Write, text: &str) -> anyhow::Result<()> {
        #[cfg(test)]
        if let Some(heard) = &self.heard {
            let now = tokio::time::Instant::now();
            heard
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push((now, text.to_owned()));
            return Ok(());
        }
        put(out, text)
    }

    /// Prints a document: as JSON, or as the text that `words` makes of it.
    pub(super) fn show<T: Serialize>(
        &self,
        document: &T,
        words: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        match self.format {
            Format::Text => self.say(&words(document)),
            Format::Json => self.say(&serde_json::to_string_pretty(document)?),
        }
    }

    /// Says on standard error why a command failed.
    pub(super) fn complain(&self, error: &anyhow::Error, code: u8) {
        let text = match self.format {
            // A finding begins with the place, as editors and CI systems look for it.
            Format::Text if error.is::<Wrong>() => format!("{error}"),
            Format::Text => format!("friday: {error:#}"),
            Format::Json => serde_json::to_string(&problem(error, code)).unwrap_or_default(),
        };
        // There is nowhere left to say that standard error is gone.
        drop(writeln!(std::io::stderr(), "{text}"));
    }
}

fn put(mut out: impl Write, text: &str) -> anyhow::Result<()> {
    out.write_all(text.as_bytes())?;
    if !text.ends_with(['\n', '\r']) {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

/// A failure as a problem document: the controller's own, or one of the same shape.
fn problem(error: &anyhow::Error, code: u8) -> Problem {
    let theirs = match error.downcast_ref() {
        Some(
            ClientError::Refused { problem, .. }
            | ClientError::Failed { problem, .. }
            | ClientError::Unavailable { problem, .. },
        ) => Some(Problem::clone(problem)),
        Some(
            ClientError::Address { .. }
            | ClientError::Authorities { .. }
            | ClientError::Unreachable { .. }
            | ClientError::Untrusted { .. }
            | ClientError::InTheClear { .. }
            | ClientError::Unwritable { .. }
            | ClientError::Alien { .. },
        )
        | None => None,
    };
    let (name, title) = match code {
        20 if error.is::<Wrong>() => ("invalid_spec", "The file is wrong"),
        2 => ("usage", "Wrong usage"),
        20 => ("refused", "Refused"),
        30 => ("unreachable", "The controller is out of reach"),
        _ => ("failed", "Failed"),
    };
    theirs.unwrap_or_else(|| Problem {
        code: name.to_owned(),
        status: 0,
        title: title.to_owned(),
        detail: format!("{error:#}"),
    })
}

/// Colours, where they are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    pub(super) on: bool,
}

impl Paint {
    fn with(self, code: u8, text: &str) -> String {
        if self.on {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(super) fn good(self, text: &str) -> String {
        self.with(32, text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.with(31, text)
    }

    pub(super) fn waiting(self, text: &str) -> String {
        self.with(33, text)
    }

    pub(super) fn quiet(self, text: &str) -> String {
        self.with(2, text)
    }
}

/// A table: a row of headings, then rows, each column as wide as its widest cell.
pub(super) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut text = vec![line(headings)];
    text.extend(
        rows.iter()
            .map(|row| line(row.each_ref().map(String::as_str))),
    );
    text.join("\n")
}

/// A text from outside on one line, without control characters: a name from a log must not move the cursor.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

//! The picture of `friday watch`: from what is known to the cells of a terminal. Pure; nothing is wider than the terminal,
//! and without colours everything can still be told apart.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::widgets::{Paragraph, Sparkline, Widget as _, Wrap};
use rollout::Timestamp;

use super::Watching;
use crate::api::types::{Order, SignalsView, StepState};
use crate::cli::output::plain;
use crate::cli::tree::Health;
use crate::words;

/// The keys that give orders: the key, the order, its word.
pub(super) const KEYS: [(char, Order, &str); 7] = [
    ('y', Order::Approve, "approve"),
    ('n', Order::Reject, "reject"),
    ('p', Order::Promote, "promote"),
    ('f', Order::PromoteFull, "promote fully"),
    ('h', Order::Pause, "pause"),
    ('r', Order::Resume, "resume"),
    ('a', Order::Abort, "abort"),
];

/// Columns before a bar or a sparkline, and the width of a value after it.
const LABEL: u16 = 20;
const VALUE: u16 = 12;

/// Rows of the rollout's message.
const MESSAGE: u16 = 2;

/// Draws all of it.
pub(super) fn draw(state: &Watching, now: Timestamp, area: Rect, buffer: &mut Buffer) {
    let mut page = Page {
        buffer,
        area,
        row: area.y,
        has_colours: state.has_colours,
    };
    page.heading(state, now);
    page.bars(state);
    page.steps(state);
    page.signals(state);
    page.log(state);
    page.last_line(state);
}

struct Page<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
    row: u16,
    has_colours: bool,
}

impl Page<'_> {
    fn colour(&self, colour: Color) -> Style {
        if self.has_colours {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    /// Writes on the present row from column `x` on, and leaves the last row to the keys.
    fn put(&mut self, x: u16, text: &str, style: Style) {
        if self.row + 1 < self.area.bottom() && x < self.area.width {
            self.put_at(self.row, x, text, style);
        }
    }

    fn put_at(&mut self, row: u16, x: u16, text: &str, style: Style) {
        let width = usize::from(self.area.width - x);
        self.buffer
            .set_stringn(self.area.x + x, row, plain(text), width, style);
    }

    fn heading(&mut self, state: &Watching, now: Timestamp) {
        let view = &state.view;
        let health = Health::of(&view.phase);
        let colour = match health {
            Health::Progressing | Health::Paused => Color::Yellow,
            Health::Healthy => Color::Green,
            Health::Degraded => Color::Red,
        };
        let style = self.colour(colour).add_modifier(Modifier::BOLD);
        let age = words::rounded(now.duration_since(view.created).unsigned_abs());
        self.put(0, &view.id, Style::new().add_modifier(Modifier::BOLD));
        let shown = health.shown();
        let after = u16::try_from(view.id.chars().count()).unwrap_or(u16::MAX);
        self.put(after.saturating_add(2), shown, style);
        let about = format!("{} · {age}", view.environment);
        let width = u16::try_from(about.chars().count()).unwrap_or(u16::MAX);
        let from = self.area.width.saturating_sub(width);
        if from > after.saturating_add(20) {
            self.put(from, &about, Style::new());
        }
        self.row += 1;
        let message = match &state.lost {
            Some(lost) => format!("{lost}; trying again"),
            None => view.message.clone(),
        };
        if self.row + MESSAGE < self.area.bottom() {
            let rows = Rect::new(self.area.x, self.row, self.area.width, MESSAGE);
            Paragraph::new(plain(&message))
                .wrap(Wrap { trim: true })
                .render(rows, self.buffer);
        }
        self.row += MESSAGE;
    }

    /// A bar of this share of the row between label and value; `mark` is a share too.
    fn bar(&mut self, label: &str, share: f64, mark: Option<f64>, value: &str, style: Style) {
        let width = self.area.width.saturating_sub(LABEL + VALUE + 12).max(5);
        let cells = f64::from(width);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a terminal's width"
        )]
        let at = |share: f64| (share.clamp(0.0, 1.0) * cells).round() as usize;
        let full = at(share);
        let mut bar: Vec<char> = (0..usize::from(width))
            .map(|cell| if cell < full { '█' } else { '░' })
            .collect();
        if let Some(mark) = mark
            && let Some(cell) = bar.get_mut(at(mark).saturating_sub(1))
        {
            *cell = '│';
        }
        self.put(0, label, Style::new());
        self.put(LABEL, &bar.into_iter().collect::<String>(), style);
        self.put(LABEL + width + 1, value, Style::new());
        self.row += 1;
    }

    fn bars(&mut self, state: &Watching) {
        self.row += 1;
        let weight = &state.view.weight;
        let seen = match weight.seen_percent {
            Some(seen) if (seen - weight.set_percent).abs() < 0.005 => String::new(),
            Some(seen) => format!(", {seen}% seen"),
            None => ", not seen".to_owned(),
        };
        let canary = self.colour(Color::Yellow);
        let value = format!("{}%{seen}", weight.set_percent);
        self.bar(
            "Canary's weight",
            weight.set_percent / 100.0,
            None,
            &value,
            canary,
        );
        let (share, value) = match &state.view.verdict {
            None => (0.0, "nothing judged".to_owned()),
            Some(verdict) => {
                let bound = verdict.rollback_at;
                let total = verdict.nearness() + bound;
                let share = total.max(0.0) / bound.max(f64::MIN_POSITIVE);
                (share * 0.8, words::odds(total))
            }
        };
        let bad = self.colour(Color::Red);
        self.bar("Evidence of harm", share, Some(0.8), &value, bad);
    }

    fn steps(&mut self, state: &Watching) {
        let step = |view: &crate::api::types::StepView| {
            let mark = match view.state {
                StepState::Done => "✔",
                StepState::Current => "▶",
                StepState::Pending => "·",
                StepState::Skipped => "-",
            };
            let percent = view.weight_percent.map(|percent| format!("{percent}%"));
            let what = match (view.kind.as_str(), percent) {
                ("weight", Some(percent)) => percent,
                (kind, Some(percent)) => format!("{kind} {percent}"),
                (kind, None) => kind.to_owned(),
            };
            format!("{mark} {what}")
        };
        let steps: Vec<String> = state.view.steps.iter().map(step).collect();
        self.put(0, "Steps", Style::new());
        self.put(LABEL, &steps.join("  "), Style::new());
        self.row += 2;
    }

    fn signals(&mut self, state: &Watching) {
        let milliseconds = |value: f64| format!("{:.1} ms", value * 1e3);
        let memory = |signals: &SignalsView| signals.memory_bytes.map(crate::api::views::as_f64);
        let rate = |value: f64| format!("{value:.1} /s");
        let mebibytes = |value: f64| format!("{:.0} MiB", value / 1_048_576.0);
        self.signal(
            state,
            "Latency p90",
            |s| s.latency_p90_seconds,
            milliseconds,
        );
        self.signal(state, "Traffic", |s| Some(s.requests_per_second), rate);
        self.signal(state, "Errors", |s| s.error_ratio, words::percent);
        self.signal(state, "Memory", memory, mebibytes);
        self.row += 1;
    }

    /// A signal on both sides, each a line over the last samples; the two share one scale, so that they can be compared.
    fn signal(
        &mut self,
        state: &Watching,
        name: &str,
        of: impl Fn(&SignalsView) -> Option<f64>,
        show: impl Fn(f64) -> String,
    ) {
        let width = self.area.width.saturating_sub(LABEL + VALUE + 12).max(5);
        let skipped = state.samples.len().saturating_sub(usize::from(width));
        let samples = || state.samples.iter().skip(skipped);
        let both = samples().flat_map(|(stable, canary)| [of(stable), of(canary)]);
        let top = both.flatten().fold(f64::MIN_POSITIVE, f64::max);
        let scaled = |value: Option<f64>| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "from 0 to 1000"
            )]
            value.map(|value| (value.max(0.0) / top * 1000.0) as u64)
        };
        for is_canary in [false, true] {
            let side = |(stable, canary): &(SignalsView, SignalsView)| {
                of(if is_canary { canary } else { stable })
            };
            let (label, style) = if is_canary {
                ("  canary".to_owned(), self.colour(Color::Yellow))
            } else {
                (format!("{name:<12}stable"), self.colour(Color::Blue))
            };
            let label = if is_canary {
                format!("{:>18}", label.trim())
            } else {
                label
            };
            self.put(0, &label, Style::new());
            if self.row + 1 < self.area.bottom() {
                let data: Vec<Option<u64>> = samples().map(|sample| scaled(side(sample))).collect();
                let line = Rect::new(self.area.x + LABEL, self.row, width, 1);
                Sparkline::default()
                    .data(data)
                    .max(1000)
                    .style(style)
                    .render(line.intersection(self.area), self.buffer);
            }
            let latest = state.samples.back().and_then(side);
            let value = latest.map_or_else(|| "–".to_owned(), &show);
            self.put(LABEL + width + 1, &value, style);
            self.row += 1;
        }
    }

    fn log(&mut self, state: &Watching) {
        let rows = usize::from(self.area.bottom().saturating_sub(self.row + 1));
        let story = &state.series.story;
        let end = story.len() - state.scrolled.min(story.len());
        for line in &story[end.saturating_sub(rows)..end] {
            let text = format!("{} {}", line.at.strftime("%H:%M:%SZ"), line.message);
            self.put(0, &text, Style::new());
            self.row += 1;
        }
    }

    /// The keys; or what was refused; or the order that waits for its yes.
    fn last_line(&mut self, state: &Watching) {
        if self.area.height == 0 {
            return;
        }
        let row = self.area.bottom() - 1;
        let bold = Style::new().add_modifier(Modifier::BOLD);
        if let Some(order) = state.asking {
            let text = format!("{} y: yes, any other key: no", consequence(state, order));
            return self.put_at(row, 0, &text, bold.add_modifier(Modifier::REVERSED));
        }
        if let Some(notice) = &state.notice {
            return self.put_at(row, 0, notice, self.colour(Color::Red).patch(bold));
        }
        let mut keys = vec!["q quit".to_owned(), "↑↓ log".to_owned()];
        let allowed = KEYS.iter().filter(|(_, order, _)| state.may(*order));
        keys.extend(allowed.map(|(key, _, word)| format!("{key} {word}")));
        self.put_at(row, 0, &keys.join("  "), bold);
    }
}

/// What an order would do, before it is given.
fn consequence(state: &Watching, order: Order) -> String {
    let view = &state.view;
    match order {
        Order::Promote => "Next step without further proof?".to_owned(),
        Order::PromoteFull => "All requests to the canary, without analysis?".to_owned(),
        Order::Pause => format!("Stay at {}%?", view.weight.set_percent),
        Order::Resume => "Go on?".to_owned(),
        Order::Abort => format!("All requests back to {}?", view.stable.release.image),
        Order::Approve if state.approvals_missing() > 0 => {
            "Approve the canary's first request?".to_owned()
        }
        Order::Approve => "Open the gate?".to_owned(),
        Order::Reject => format!("Refuse, and go back to {}?", view.stable.release.image),
    }
}

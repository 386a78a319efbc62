//! `friday watch`: a rollout on the whole terminal, as it goes, with the keys to move it. Where there is no terminal to
//! draw on it is `friday get -w`: lines that are only added to.
//!
//! `watch/picture.rs` draws, purely; this file listens, to the controller and to the keys.

mod picture;

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use rollout::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::follow::{Follower, Patience, Screen, until_ended};
use super::output::{Context, Format, plain};
use super::{AuthorArgs, name};
use crate::api::types::me::MeView;
use crate::api::types::series::{LINES_MAX, SeriesView};
use crate::api::types::{Order, OrderRequest, RolloutView, SignalsView};
use crate::client::{Client, ClientError};

/// How often the keys are looked at by the thread that waits for them: the longest that leaving takes.
const KEYS_LOOK: Duration = Duration::from_millis(100);

/// How often the picture is drawn though nothing happened: times go on.
const REDRAW: Duration = Duration::from_secs(1);

/// Shortest time between two questions for what is new of the series.
const SERIES_EVERY: Duration = Duration::from_secs(1);

/// Samples of the signals that are kept for the sparklines: as many as a wide terminal has columns for them.
const SAMPLES_MAX: usize = 200;

/// Messages that wait to be drawn; whoever sends more waits.
const NEWS_MAX: usize = 16;

/// Watches a rollout.
#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// A service, for its newest rollout, or a rollout
    #[arg(value_parser = name)]
    name: String,
    #[command(flatten)]
    author: AuthorArgs,
    #[command(flatten)]
    patience: Patience,
}

/// What is known, and what the person at the keys is about to do.
#[derive(Debug, Clone)]
struct Watching {
    view: RolloutView,
    series: SeriesView,
    /// Stable's signals and the canary's, oldest first.
    samples: VecDeque<(SignalsView, SignalsView)>,
    me: MeView,
    /// How many lines of the log are below the window.
    scrolled: usize,
    /// The order that waits for its yes.
    asking: Option<Order>,
    /// What is said in the last line in place of the keys.
    notice: Option<String>,
    /// Why nothing new comes.
    lost: Option<String>,
    has_colours: bool,
}

impl Watching {
    fn of(view: RolloutView, me: MeView, has_colours: bool) -> Self {
        let mut watching = Self {
            view: view.clone(),
            series: SeriesView::default(),
            samples: VecDeque::new(),
            me,
            scrolled: 0,
            asking: None,
            notice: None,
            lost: None,
            has_colours,
        };
        watching.see(view);
        watching
    }

    /// Takes in the rollout as it is now.
    fn see(&mut self, view: RolloutView) {
        if self.samples.len() >= SAMPLES_MAX {
            self.samples.pop_front();
        }
        let sample = (view.stable.signals.clone(), view.canary.signals.clone());
        self.samples.push_back(sample);
        self.view = view;
        self.lost = None;
    }

    /// Takes in what is new of its past.
    fn add(&mut self, more: SeriesView) {
        self.series.points.extend(more.points);
        let surplus = self.series.points.len().saturating_sub(SAMPLES_MAX);
        self.series.points.drain(..surplus);
        self.series.story.extend(more.story);
        let surplus = self.series.story.len().saturating_sub(LINES_MAX);
        self.series.story.drain(..surplus);
        self.series.next = more.next;
    }

    /// Whether a person may give this order now, and the rollout would heed it.
    fn may(&self, order: Order) -> bool {
        use rollout::Phase::{
            Analyzing, Baking, Deploying, Gated, Paused, Promoted, Promoting, RolledBack,
            RollingBack, Warm,
        };
        let phase = &self.view.phase;
        let is_over = matches!(phase, Promoted | RolledBack { .. } | RollingBack { .. });
        if is_over || !self.me.may_operate {
            return false;
        }
        let is_missed = self.approvals_missing() > 0;
        match order {
            Order::Promote => matches!(phase, Analyzing { .. } | Baking { .. } | Warm { .. }),
            Order::PromoteFull => !is_missed && !matches!(phase, Promoting { .. }),
            Order::Abort => true,
            Order::Pause => !matches!(phase, Paused { .. }),
            Order::Resume => matches!(phase, Paused { .. }),
            Order::Approve | Order::Reject => {
                let is_asked = matches!(phase, Gated { .. })
                    || (is_missed && matches!(phase, Deploying { .. }));
                self.me.may_approve && is_asked
            }
        }
    }

    /// How many people have yet to approve the canary's first request.
    fn approvals_missing(&self) -> u32 {
        let phase = &self.view.phase;
        let at = match phase {
            rollout::Phase::Paused { at } => at,
            phase => phase,
        };
        if matches!(at, rollout::Phase::Deploying { .. }) {
            self.view.admission.approvals_missing()
        } else {
            0
        }
    }
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Leave,
    Give(Order),
    Nothing,
}

impl Watching {
    /// What a key means now. An order is asked about first, and only `y` is a yes.
    fn press(&mut self, key: KeyEvent) -> Wish {
        self.notice = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Wish::Leave;
        }
        if let Some(order) = self.asking.take() {
            let is_yes = key.code == KeyCode::Char('y');
            return if is_yes {
                Wish::Give(order)
            } else {
                Wish::Nothing
            };
        }
        if matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
            return Wish::Leave;
        }
        if key.code == KeyCode::Up {
            self.scrolled = (self.scrolled + 1).min(self.series.story.len());
        } else if key.code == KeyCode::Down {
            self.scrolled = self.scrolled.saturating_sub(1);
        } else if let KeyCode::Char(pressed) = key.code {
            let known = picture::KEYS.iter().find(|(with, ..)| *with == pressed);
            let order = known.map(|(_, order, _)| *order);
            self.asking = order.filter(|order| self.may(*order));
        }
        Wish::Nothing
    }
}

/// What comes from the controller.
enum News {
    View(Box<RolloutView>),
    Series(SeriesView),
    Lost(ClientError),
}

pub(super) async fn watch(
    args: WatchArgs,
    context: &Context,
    client: &Client,
) -> anyhow::Result<u8> {
    let view = client.rollout(&args.name).await?;
    let can_draw = context.format == Format::Text && context.is_terminal;
    if !can_draw || !std::io::stdin().is_terminal() {
        let mut screen = Screen::of_watch(context);
        until_ended(&view.id, client, &args.patience, &mut screen).await?;
        return Ok(0);
    }
    // A controller of before has no such path; then there are no keys to give orders with.
    let me = client.me().await.unwrap_or(MeView {
        name: None,
        role: None,
        may_operate: false,
        may_approve: false,
        may_read_all: false,
    });
    let id = view.id.clone();
    let mut watching = Watching::of(view, me, context.has_colours);
    let (news, mut heard) = mpsc::channel(NEWS_MAX);
    let following = follow(&id, client, news);
    let mut following = std::pin::pin!(following);
    let mut terminated = signal(SignalKind::terminate())?;
    let (keys, mut pressed) = mpsc::channel(NEWS_MAX);
    let screen = WholeScreen::enter()?;
    let listening = Listening::start(keys);
    let mut terminal = Terminal::new(CrosstermBackend::new(std::io::stdout()))?;
    let mut tick = tokio::time::interval(REDRAW);
    let mut reached = Instant::now();
    let author = args.author.author();
    let result = loop {
        let now = context.clock.now();
        let drawn = terminal.draw(|frame| {
            let area = frame.area();
            picture::draw(&watching, now, area, frame.buffer_mut());
        });
        if let Err(error) = drawn {
            break Err(error.into());
        }
        tokio::select! {
            () = &mut following => {}
            Some(news) = heard.recv() => match news {
                News::View(view) => { reached = Instant::now(); watching.see(*view); }
                News::Series(more) => watching.add(more),
                News::Lost(error) => {
                    if !error.is_transient() || reached.elapsed() >= args.patience.unreachable_timeout {
                        break Err(error.into());
                    }
                    watching.lost = Some(error.to_string());
                }
            },
            Some(key) = pressed.recv() => match watching.press(key) {
                Wish::Leave => break Ok(0),
                Wish::Give(order) => give(order, &author, client, &mut watching).await,
                Wish::Nothing => {}
            },
            _ = terminated.recv() => break Ok(0),
            _ = tick.tick() => {}
        }
    };
    listening.stop().await;
    drop(screen);
    // What was on the screen is gone with it: how it stands remains in the terminal.
    let line = format!("{}: {}", watching.view.id, plain(&watching.view.message));
    context.say(&line)?;
    result
}

/// Follows a rollout, also over restarts of the controller, for ever.
async fn follow(id: &str, client: &Client, news: mpsc::Sender<News>) {
    let mut follower = Follower::of(id, client);
    let (mut next, mut asked) = (0, None::<Instant>);
    // Fails only when nobody listens any more; then this is dropped anyway.
    loop {
        let sent = match follower.next().await {
            Ok(view) => news.send(News::View(Box::new(view))).await,
            Err(error) => news.send(News::Lost(error)).await,
        };
        if sent.is_err() {
            return;
        }
        if asked.is_some_and(|asked| asked.elapsed() < SERIES_EVERY) {
            continue;
        }
        asked = Some(Instant::now());
        // Without it the log stands still, and comes with the next.
        if let Ok(series) = client.series(id, next).await {
            next = series.next;
            if news.send(News::Series(series)).await.is_err() {
                return;
            }
        }
    }
}

async fn give(order: Order, author: &str, client: &Client, watching: &mut Watching) {
    let request = OrderRequest {
        order,
        by: author.to_owned(),
        reason: None,
        emergency: None,
    };
    match client.order(&watching.view.id, &request).await {
        Ok(view) => watching.see(view),
        Err(error) => watching.notice = Some(format!("{:#}", anyhow::Error::from(error))),
    }
}

/// The terminal while it is drawn on: given back as it was, whatever happens.
struct WholeScreen;

impl WholeScreen {
    fn enter() -> anyhow::Result<Self> {
        enable_raw_mode()?;
        let screen = Self;
        execute!(std::io::stdout(), EnterAlternateScreen)?;
        Ok(screen)
    }
}

impl Drop for WholeScreen {
    fn drop(&mut self) {
        // There is nothing to be done about a terminal that is gone.
        drop(execute!(
            std::io::stdout(),
            LeaveAlternateScreen,
            ratatui::crossterm::cursor::Show
        ));
        drop(disable_raw_mode());
    }
}

/// The thread that waits for keys: reading a terminal blocks.
struct Listening {
    stop: Arc<AtomicBool>,
    thread: tokio::task::JoinHandle<()>,
}

impl Listening {
    fn start(keys: mpsc::Sender<KeyEvent>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = tokio::task::spawn_blocking(move || {
            while !told.load(Ordering::Relaxed) {
                match event::poll(KEYS_LOOK) {
                    Ok(false) => continue,
                    Ok(true) => {}
                    Err(_) => return,
                }
                match event::read() {
                    Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                        if keys.blocking_send(key).is_err() {
                            return;
                        }
                    }
                    // Another size is seen when the next picture is drawn.
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        Self { stop, thread }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.await);
    }
}

#[cfg(test)]
mod tests;

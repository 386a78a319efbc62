//! A rollout as a tree, as the users of Argo Rollouts know it: a block of headings, then service, releases, tasks.

use rollout::{Phase, Timestamp};

use super::output::{Paint, plain, table};
use crate::api::types::{ArmView, RolloutView, StepState, TaskView};
use crate::words;

/// How a rollout fares, in Argo's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Progressing,
    Paused,
    Healthy,
    Degraded,
}

impl Health {
    pub(super) fn of(phase: &Phase) -> Self {
        match phase {
            Phase::Deploying { .. }
            | Phase::Analyzing { .. }
            | Phase::Baking { .. }
            | Phase::Warm { .. }
            | Phase::Promoting { .. } => Self::Progressing,
            Phase::Gated { .. } | Phase::Paused { .. } => Self::Paused,
            Phase::Promoted => Self::Healthy,
            Phase::RollingBack { .. } | Phase::RolledBack { .. } => Self::Degraded,
        }
    }

    /// The symbol and the word.
    pub(super) fn shown(self) -> &'static str {
        match self {
            Self::Progressing => "◌ Progressing",
            Self::Paused => "॥ Paused",
            Self::Healthy => "✔ Healthy",
            Self::Degraded => "✖ Degraded",
        }
    }

    pub(super) fn painted(self, paint: Paint) -> String {
        match self {
            Self::Progressing | Self::Paused => paint.waiting(self.shown()),
            Self::Healthy => paint.good(self.shown()),
            Self::Degraded => paint.bad(self.shown()),
        }
    }
}

/// The whole picture of a rollout at `now`.
pub(super) fn tree(view: &RolloutView, now: Timestamp, paint: Paint) -> String {
    format!(
        "{}\n\n{}",
        headings(view, paint),
        branches(view, now, paint)
    )
}

fn headings(view: &RolloutView, paint: Paint) -> String {
    let passed = view
        .steps
        .iter()
        .filter(|step| matches!(step.state, StepState::Done | StepState::Skipped))
        .count();
    let seen = match view.weight.seen_percent {
        Some(seen) => format!("{seen}"),
        None => "unknown: the proxies differ, or none reports".to_owned(),
    };
    let mut lines = vec![
        ("Name:", view.id.clone()),
        ("Environment:", plain(&view.environment)),
        ("Status:", Health::of(&view.phase).painted(paint)),
        ("Message:", plain(&view.message)),
        ("Author:", plain(&view.author)),
        ("Strategy:", "Canary".to_owned()),
        ("  Step:", format!("{passed}/{}", view.steps.len())),
        ("  SetWeight:", format!("{}", view.weight.set_percent)),
        ("  ActualWeight:", seen),
    ];
    for (index, image) in images(view).into_iter().enumerate() {
        lines.push((if index == 0 { "Images:" } else { "" }, image));
    }
    let tasks = || view.stable.tasks.iter().chain(&view.canary.tasks);
    let updated = tasks()
        .filter(|task| task.release == view.canary.release.id.as_str())
        .count();
    lines.extend([
        ("Replicas:", String::new()),
        (
            "  Desired:",
            format!("{}", view.stable.replicas + view.canary.replicas),
        ),
        ("  Current:", format!("{}", tasks().count())),
        ("  Updated:", format!("{updated}")),
        (
            "  Ready:",
            format!("{}", tasks().filter(|task| task.ready).count()),
        ),
    ]);
    let line = |(key, value): &(&str, String)| format!("{key:<17}{value}").trim_end().to_owned();
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The images in use and what each is.
fn images(view: &RolloutView) -> Vec<String> {
    let (stable, canary) = (&view.stable.release, &view.canary.release);
    match view.phase {
        Phase::Promoted => vec![format!("{} (stable)", plain(&canary.image))],
        Phase::RolledBack { .. } => vec![format!("{} (stable)", plain(&stable.image))],
        Phase::Deploying { .. }
        | Phase::Analyzing { .. }
        | Phase::Gated { .. }
        | Phase::Baking { .. }
        | Phase::Warm { .. }
        | Phase::Paused { .. }
        | Phase::Promoting { .. }
        | Phase::RollingBack { .. } => {
            vec![
                format!("{} (stable)", plain(&stable.image)),
                format!("{} (canary)", plain(&canary.image)),
            ]
        }
    }
}

fn branches(view: &RolloutView, now: Timestamp, paint: Paint) -> String {
    let health = Health::of(&view.phase);
    let age = words::rounded(now.duration_since(view.created).unsigned_abs());
    let row = |name: String, kind: &str, status: &str, age: &str, info: String| {
        [
            name,
            kind.to_owned(),
            status.to_owned(),
            age.to_owned(),
            info,
        ]
    };
    let about = format!("#{} by {}", view.number, plain(&view.author));
    let mut rows = vec![row(
        format!("⟳ {}", view.service),
        "Service",
        health.shown(),
        &age,
        about,
    )];
    let branches = branches_of(view);
    let last_branch = branches.len() - 1;
    for (index, branch) in branches.iter().enumerate() {
        let (line, stem) = if index == last_branch {
            ("└──", "   ")
        } else {
            ("├──", "│  ")
        };
        rows.push(row(
            format!("{line}# {}", branch.title),
            "",
            "",
            "",
            String::new(),
        ));
        let name = format!("{stem}└──⧉ {}", branch.release);
        rows.push(row(
            name,
            "Release",
            branch.status(),
            "",
            branch.info.clone(),
        ));
        let last = branch.tasks.len().saturating_sub(1);
        for (index, task) in branch.tasks.iter().enumerate() {
            let line = if index == last {
                "└──"
            } else {
                "├──"
            };
            let status = if task.ready {
                "✔ Ready"
            } else {
                "◌ Starting"
            };
            let name = format!("{stem}   {line}□ {}", plain(&task.id));
            rows.push(row(
                name,
                "Task",
                status,
                "",
                task_info(task, branch.release),
            ));
        }
    }
    let text = table(["NAME", "KIND", "STATUS", "AGE", "INFO"], &rows);
    // Painted afterwards: colours have no width, but the table would count them.
    let mut text = text.replacen(health.shown(), &health.painted(paint), 1);
    for (status, painted) in [
        ("✔ Ready", paint.good("✔ Ready")),
        ("◌ Starting", paint.waiting("◌ Starting")),
        ("• Gone", paint.quiet("• Gone")),
    ] {
        text = text.replace(status, &painted);
    }
    text
}

/// One release in the tree, and its tasks.
struct Branch<'a> {
    title: String,
    release: &'a str,
    replicas: u32,
    restarts: u32,
    tasks: Vec<&'a TaskView>,
    info: String,
}

impl Branch<'_> {
    fn status(&self) -> &'static str {
        let ready = self
            .tasks
            .iter()
            .filter(|task| task.ready && task.release == self.release)
            .count();
        match (self.replicas, self.tasks.is_empty()) {
            (0, true) => "• Gone",
            (0, false) => "◌ Stopping",
            (replicas, _) if ready >= replicas as usize => "✔ Healthy",
            _ if self.restarts > 0 => "✖ Degraded",
            _ => "◌ Progressing",
        }
    }
}

/// The canary and stable; once it is promoted, the one release there is.
fn branches_of(view: &RolloutView) -> Vec<Branch<'_>> {
    let (canary, stable) = (&view.canary, &view.stable);
    let of_stable = Branch {
        title: "stable".to_owned(),
        release: stable.release.id.as_str(),
        replicas: stable.replicas,
        restarts: stable.restarts,
        tasks: stable.tasks.iter().collect(),
        info: format!("stable{}", signals(stable)),
    };
    let title = format!("revision:{}", view.number);
    let release = canary.release.id.as_str();
    if view.phase == Phase::Promoted {
        return vec![Branch {
            title,
            release,
            ..of_stable
        }];
    }
    let of_canary = Branch {
        title,
        release,
        replicas: canary.replicas,
        restarts: canary.restarts,
        tasks: canary.tasks.iter().collect(),
        info: if view.phase.is_ended() {
            "was canary".to_owned()
        } else {
            format!("canary{}", signals(canary))
        },
    };
    vec![of_canary, of_stable]
}

/// The golden signals of one arm on a few characters, and its troubles.
fn signals(arm: &ArmView) -> String {
    let signals = &arm.signals;
    let mut info = vec![format!(" {:.1} req/s", signals.requests_per_second)];
    if let Some(errors) = signals.error_ratio {
        info.push(format!("{} errors", words::percent(errors)));
    }
    if let (Some(p50), Some(p99)) = (signals.latency_p50_seconds, signals.latency_p99_seconds) {
        info.push(format!(
            "p50 {:.0} ms, p99 {:.0} ms",
            p50 * 1000.0,
            p99 * 1000.0
        ));
    }
    if arm.restarts > 0 {
        info.push(format!("{} restarts in 5m", arm.restarts));
    }
    if let Some(trouble) = &arm.trouble {
        info.push(plain(trouble));
    }
    info.join(", ")
}

fn task_info(task: &TaskView, release: &str) -> String {
    // While stable is brought to another release in place, its tasks are of both.
    let other = if task.release == release {
        String::new()
    } else {
        format!(" of release {}", plain(&task.release))
    };
    let memory = match (task.memory_bytes, task.memory_bytes_max) {
        (Some(used), Some(most)) => {
            format!(" memory:{} of {}", words::bytes(used), words::bytes(most))
        }
        (Some(used), None) => format!(" memory:{}", words::bytes(used)),
        (None, _) => String::new(),
    };
    format!(
        "ready:{}/1 at {} on {}{memory}{other}",
        u8::from(task.ready),
        plain(&task.endpoint),
        plain(&task.node)
    )
}

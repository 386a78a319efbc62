//! `friday plan`: what a rollout by a file is to expect, before there is one.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use rollout::judge::Margin;
use rollout::{Duration, Spec};

use super::output::{Context, Paint, table};
use super::rollouts::read_text;
use super::{Usage, Wrong};
use crate::simulate::{
    AtRate, Forecast, Percent, Positive, Question, Ratio, Regression, Spread, StepForecast, TooLow,
    Worse, forecast,
};
use crate::spec::{self, ReadOptions};
use crate::words;

/// Rates at once: more than fit on a screen.
const RATES_MAX: usize = 10;

/// Foretells a rollout.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// What would be released by
    #[arg(short, long, default_value = "friday.yml", value_name = "FILE")]
    file: PathBuf,
    /// Requests a second to the service, both releases together; several with commas between
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "5,50,500", value_parser = positive)]
    rps: Vec<Positive>,
    /// Share of stable's requests that fails
    #[arg(long, value_name = "PERCENT", default_value = "0.1%", value_parser = percent)]
    errors: Percent,
    /// A plan of the file's `plans`, in place of `plan`
    #[arg(long)]
    plan: Option<String>,
    /// Where it would be released; its entry in the file's `environments` may name a plan
    #[arg(long, env = "FRIDAY_ENVIRONMENT", hide_env_values = true)]
    environment: Option<String>,
    /// Simulated releases behind each number; as many as take some seconds, at most 100
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    reps: Option<u32>,
    /// Where chance begins: the same seed gives the same result
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
}

fn positive(text: &str) -> Result<Positive, String> {
    let expected = || "expected a number above 0, up to a million, such as 50".to_owned();
    let number: f64 = text.trim().parse().map_err(|_| expected())?;
    Positive::try_from(number).map_err(|_| expected())
}

fn percent(text: &str) -> Result<Percent, String> {
    Percent::try_from(text.to_owned()).map_err(|error| format!("expected {}", error.expected))
}

pub(super) fn plan(args: PlanArgs, context: &Context) -> anyhow::Result<u8> {
    if args.rps.len() > RATES_MAX {
        let count = args.rps.len();
        return Err(Usage(format!("{count} rates: expected at most {RATES_MAX}")).into());
    }
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (environment, plan) = (filled(args.environment), filled(args.plan));
    let options = ReadOptions {
        plan: plan.as_deref(),
        environment: environment.as_deref(),
    };
    let name = args.file.display().to_string();
    let spec = spec::read(&read_text(&args.file)?, &name, &options).map_err(Wrong)?;
    if context.is_terminal {
        // A word while one waits; there is nowhere left to say that standard error is gone.
        drop(writeln!(
            std::io::stderr(),
            "simulates releases, some seconds"
        ));
    }
    let question = Question {
        rates: args.rps,
        stable_errors: args.errors,
        releases: args.reps,
        seed: args.seed,
    };
    let forecast = forecast(&spec, &question);
    context.show(&forecast, |forecast| {
        text(&name, &spec, forecast, context.paint())
    })?;
    Ok(0)
}

/// The whole forecast.
fn text(name: &str, spec: &Spec, forecast: &Forecast, paint: Paint) -> String {
    let [median, p99] = forecast.stable_latency_seconds.map(|s| s * 1000.0);
    let mut parts = vec![
        format!(
            "{name}: {}, {} simulated releases for each number (seed {}, rules {}). Stable fails {} of its requests and \
             answers in {median:.0} ms (p99 {p99:.0} ms).\nMedians; in brackets what 95 % stay at or below.",
            forecast.service,
            forecast.releases,
            forecast.seed,
            forecast.rules,
            words::percent(forecast.stable_error_ratio),
        ),
        good(spec, forecast),
        bad(forecast),
        margins(forecast),
        steps(forecast, paint),
    ];
    let warnings: Vec<String> = forecast
        .rates
        .iter()
        .flat_map(|at| warnings(spec, at))
        .map(|warning| paint.waiting(&warning))
        .collect();
    if !warnings.is_empty() {
        parts.push(warnings.join("\n"));
    }
    parts.push(left_out(forecast));
    parts.join("\n\n")
}

fn good(spec: &Spec, forecast: &Forecast) -> String {
    let row = |at: &AtRate| {
        let begins = at.skipped.map_or(0, |skipped| skipped.steps);
        [
            rate(at),
            format!("step {} ({})", begins + 1, spec.plan.weight_at(begins)),
            share(at.good.promoted),
            seconds(at.good.seconds),
            share(at.good.rolled_back),
            share(at.good.undecided),
        ]
    };
    let rows: Vec<_> = forecast.rates.iter().map(row).collect();
    let headings = [
        "A GOOD RELEASE AT",
        "BEGINS WITH",
        "PROMOTED",
        "AFTER",
        "ROLLED BACK",
        "NO DECISION",
    ];
    table(headings, &rows)
}

fn bad(forecast: &Forecast) -> String {
    let row = |at: &AtRate, bad: &Regression| {
        let worse = match bad.worse {
            Worse::Errors(more) => format!("{} more fail", words::percent(more)),
            Worse::Latency(factor) => format!("{} slower", words::percent(factor - 1.0)),
        };
        [
            rate(at),
            worse,
            share(bad.caught),
            seconds(bad.seconds),
            count(bad.canary_requests),
            count(bad.failed),
        ]
    };
    let rows: Vec<_> = forecast
        .rates
        .iter()
        .flat_map(|at| at.regressions.iter().map(move |bad| row(at, bad)))
        .collect();
    let headings = [
        "A BAD RELEASE AT",
        "OF WHICH",
        "CAUGHT",
        "AFTER",
        "CANARY REQUESTS",
        "OF THEM FAILED",
    ];
    table(headings, &rows)
}

/// What each step asks for, whatever the traffic.
fn margins(forecast: &Forecast) -> String {
    let row = |step: &StepForecast| {
        let margins: Vec<String> = step.margins.iter().map(margin).collect();
        [
            (step.step + 1).to_string(),
            format!("{}%", step.weight_percent),
            format!("{}..{}", time(step.least_seconds), time(step.most_seconds)),
            margins.join(", "),
            format!("{:.0} canary requests", step.canary_requests.ceil()),
        ]
    };
    let steps = forecast.rates.first().map_or(&[][..], |at| &at.steps);
    let rows: Vec<_> = steps.iter().map(row).collect();
    let headings = ["STEP", "WEIGHT", "HOLD", "PROVES", "ERRORS TAKE"];
    format!(
        "{}\nERRORS TAKE so many for their proof, by formula: those of the steps before included, those of the warm-up not.",
        table(headings, &rows)
    )
}

/// How long each step takes at each rate.
fn steps(forecast: &Forecast, paint: Paint) -> String {
    let row = |at: &AtRate, step: &StepForecast| {
        let name = format!("{} ({}%)", step.step + 1, step.weight_percent);
        let (formula, simulated, note) = match step.without_proof.count {
            _ if step.is_skipped => {
                let note = "passed over: too small for this traffic".to_owned();
                ("-".to_owned(), "-".to_owned(), note)
            }
            without => {
                let note = match without {
                    0 => String::new(),
                    _ => paint.waiting(&format!("{} without proof", share(step.without_proof))),
                };
                (time(step.proof_seconds), seconds(step.seconds), note)
            }
        };
        [rate(at), name, formula, simulated, note]
    };
    let rows: Vec<_> = forecast
        .rates
        .iter()
        .flat_map(|at| at.steps.iter().map(move |step| row(at, step)))
        .collect();
    let headings = [
        "A STEP AT",
        "STEP",
        "ERRORS PROVEN AFTER",
        "A GOOD RELEASE TAKES",
        "",
    ];
    table(headings, &rows)
}

/// Where the traffic is too low for a proof, and what would do.
fn warnings(spec: &Spec, at: &AtRate) -> Vec<String> {
    let warning = |step: &StepForecast| {
        let too_low = step.too_low.as_ref()?;
        let TooLow {
            margin,
            canary_requests,
            seconds,
            requests_per_second,
            hold_seconds,
            errors_margin,
        } = too_low;
        let mut enough = vec![
            format!(
                "{} requests/s",
                words::rate(rounded_up(*requests_per_second))
            ),
            hold(spec, step, *hold_seconds),
        ];
        if let Some(margin) = errors_margin {
            enough.push(format!("guard.errors.margin: {}", words::percent(*margin)));
        }
        Some(format!(
            "At {}, step {} ({}%): your traffic is too low for this margin, expect a time-out. Proof that {} takes about {:.0} \
             canary requests, {} at this rate; the hold ends after {}. Enough for most releases: {}.",
            rate(at),
            step.step + 1,
            step.weight_percent,
            words::margin(margin),
            canary_requests.ceil(),
            time(*seconds),
            time(step.most_seconds),
            enough.join(", or "),
        ))
    };
    at.steps.iter().filter_map(warning).collect()
}

/// The hold that would do, as it stands in the file.
fn hold(spec: &Spec, step: &StepForecast, seconds: f64) -> String {
    let unit = if seconds <= 120.0 { 10.0 } else { 60.0 };
    let most = (seconds / unit).ceil() * unit;
    let hold = format!("hold: {}..{}", time(step.least_seconds), time(most));
    if most < spec.deadlines.evidence.as_secs_f64() {
        hold
    } else {
        format!("{hold} with a longer deadlines.evidence")
    }
}

fn left_out(forecast: &Forecast) -> String {
    let mut words = format!(
        "Not in these times: tasks that start, keep_warm ({}), the exchange of stable's tasks",
        time(forecast.keep_warm_seconds)
    );
    if forecast.gates > 0 {
        let gates = if forecast.gates == 1 { "gate" } else { "gates" };
        words.push_str(&format!(", the wait at {} {gates}", forecast.gates));
    }
    words.push_str(". Not simulated: memory and CPU, restarts, sticky clients");
    if forecast.checks > 0 {
        words.push_str(&format!(", guard.checks ({})", forecast.checks));
    }
    if forecast.answers {
        words.push_str(", guard.answers");
    }
    words.push('.');
    words
}

fn rate(at: &AtRate) -> String {
    format!("{} requests/s", words::rate(at.requests_per_second))
}

/// What is proven of a margin, in few characters.
fn margin(margin: &Margin) -> String {
    match margin {
        Margin::Errors { excess } => format!("errors < +{}", words::percent(*excess)),
        Margin::Latency { percentile, factor } => {
            format!("{} < x{factor:.2}", words::percentile_name(*percentile))
        }
    }
}

/// A number that is at least this, with two digits.
fn rounded_up(number: f64) -> f64 {
    let unit = 10_f64.powf(number.log10().floor() - 1.0);
    (number / unit).ceil() * unit
}

fn time(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or_else(|_| "never".to_owned(), words::rounded)
}

fn seconds(of: Option<Spread>) -> String {
    of.map_or_else(
        || "-".to_owned(),
        |of| format!("{} ({})", time(of.median), time(of.p95)),
    )
}

fn count(of: Option<Spread>) -> String {
    of.map_or_else(
        || "-".to_owned(),
        |of| format!("{:.0} ({:.0})", of.median, of.p95),
    )
}

fn share(share: Ratio) -> String {
    match share.count {
        0 => "-".to_owned(),
        _ => words::percent(share.ratio),
    }
}

//! `friday simulate`: what the judge would do to many releases of many kinds.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::output::{Context, Format, Paint, table};
use super::rollouts::read_text;
use super::{Refusal, Wrong};
use crate::simulate::{
    self, Comparison, Expect, Measure, Promise, Ratio, Row, SHIPPED, SHIPPED_NAME, Simulation,
    Spread,
};

/// Releases of each row. With 300, a release that was never rolled back is one that is with a chance of at most
/// 1 - 0.05^(1/300), which is just below the judge's alpha of 1 %.
const RELEASES: u32 = 300;

/// What stands in the columns.
const LEGEND: &str = "\
Medians, and in brackets what 95 % stay at or below.
FAILED: the canary's failed requests until the rollback. EXCESS: of these, what would not have failed on stable.";

/// Simulates releases.
#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// Scenarios to run in place of the shipped ones
    #[arg(long, value_name = "FILE")]
    scenarios: Option<PathBuf>,
    /// Run this scenario alone; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Releases of each scenario, at each of its rates
    #[arg(long, value_name = "N", default_value_t = RELEASES, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    reps: u32,
    /// Where chance begins: the same seed gives the same result
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// The same as -o json
    #[arg(long)]
    json: bool,
    /// Print the shipped scenarios, to be copied and changed
    #[arg(long, conflicts_with_all = ["scenarios", "only"])]
    print: bool,
}

pub(super) fn simulate(args: &SimulateArgs, context: &Context) -> anyhow::Result<u8> {
    if args.print {
        context.say(SHIPPED)?;
        return Ok(0);
    }
    let mut scenarios = match &args.scenarios {
        None => simulate::read(SHIPPED, SHIPPED_NAME),
        Some(file) => simulate::read(&read_text(file)?, &file.display().to_string()),
    }
    .map_err(Wrong)?;
    let names: Vec<&str> = scenarios
        .iter()
        .map(|scenario| scenario.name.as_str())
        .collect();
    if let Some(unknown) = args
        .only
        .iter()
        .find(|only| !names.contains(&only.as_str()))
    {
        return Err(Refusal(format!(
            "no scenario is called {unknown}: expected one of {}",
            names.join(", ")
        ))
        .into());
    }
    scenarios.retain(|scenario| {
        args.only.is_empty() || args.only.iter().any(|only| only == scenario.name.as_str())
    });

    let mut context = context.clone();
    if args.json {
        context.format = Format::Json;
    }
    let rows: usize = scenarios.iter().map(|scenario| scenario.rates.len()).sum();
    if context.is_terminal {
        // A word while one waits; there is nowhere left to say that standard error is gone.
        drop(writeln!(
            std::io::stderr(),
            "{} releases, about 150 a second for each core",
            rows * args.reps as usize
        ));
    }
    let simulation = simulate::run(&scenarios, args.reps, args.seed);
    context.show(&simulation, |simulation| text(simulation, context.paint()))?;
    Ok(0)
}

fn text(simulation: &Simulation, paint: Paint) -> String {
    let Simulation {
        rules,
        seed,
        releases,
        rows,
    } = simulation;
    let headings = [
        "SCENARIO",
        "REQ/S",
        "ROLLED BACK",
        "AFTER",
        "FAILED",
        "EXCESS",
        "PROMOTED",
        "AFTER",
        "RESULT",
    ];
    let cells = |row: &Row| {
        [
            row.scenario.clone(),
            row.rate.to_string(),
            share(row.rolled_back),
            seconds(row.seconds),
            spread(row.failed),
            spread(row.excess_failed),
            share(row.promoted),
            seconds(row.promoted_seconds),
            result(row, paint),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    let table = table(headings, &rows);
    format!("{table}\n\n{releases} releases a row, seed {seed}, rules {rules}. {LEGEND}")
}

/// What a row says of the judge.
fn result(row: &Row, paint: Paint) -> String {
    let mut words = Vec::new();
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let Ratio { low, high, .. } = row.rolled_back;
    match row.promise {
        Some(Promise::Kept) => {
            words.push(paint.good(&format!("false rollbacks at most {}", percent(high))))
        }
        Some(Promise::Open) => {
            words.push(paint.waiting(&format!(
                "false rollbacks {} to {}: more releases would tell",
                percent(low),
                percent(high)
            )));
        }
        Some(Promise::Broken) => {
            words.push(paint.bad(&format!("false rollbacks at least {}", percent(low))))
        }
        None => {}
    }
    let others = row.releases - row.rolled_back.count;
    if row.expect == Expect::RollBack && others > 0 {
        words.push(paint.bad(&format!("{others} of {} not rolled back", row.releases)));
    }
    let decided = row.releases - row.undecided.count;
    if row.expect == Expect::Neither {
        words.push(match decided {
            0 => paint.good("never decided, as it should be"),
            decided => paint.bad(&format!("decided {decided} times without evidence")),
        });
    }
    words.extend(row.comparisons.iter().map(|comparison| {
        let text = compared(comparison);
        if comparison.is_as_good {
            text
        } else {
            paint.bad(&text)
        }
    }));
    words.join("; ")
}

/// `published 286 s: as good`.
fn compared(comparison: &Comparison) -> String {
    let Comparison {
        of,
        published,
        measured,
        is_as_good,
    } = comparison;
    let published = match of {
        Measure::RolledBack => format!("{:.1} %", 100.0 * published),
        Measure::Seconds | Measure::PromotedSeconds => format!("{published} s"),
        Measure::Failed => format!("{published} failed"),
    };
    let verdict = match (is_as_good, measured) {
        (true, _) => "as good",
        (false, Some(_)) => "worse",
        (false, None) => "never came to that",
    };
    format!("published {published}: {verdict}")
}

fn share(share: Ratio) -> String {
    match share.ratio {
        0.0 => "-".to_owned(),
        1.0 => "100 %".to_owned(),
        ratio => format!("{:.1} %", 100.0 * ratio),
    }
}

fn seconds(of: Option<Spread>) -> String {
    of.map_or_else(
        || "-".to_owned(),
        |of| format!("{} s ({})", of.median, of.p95),
    )
}

fn spread(of: Option<Spread>) -> String {
    // Not -0, which a half below nothing is rounded to.
    let whole = |number: f64| number.round() + 0.0;
    of.map_or_else(
        || "-".to_owned(),
        |of| format!("{} ({})", whole(of.median), whole(of.p95)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_a_row_says_of_the_judge() {
        let file = "scenarios:\n\
            - { name: good, about: a, from: own, expect: promote, rates: [500], published: [{ rate: 500, promoted_seconds: 9 }] }\n\
            - { name: dead, about: b, from: own, expect: roll_back, rates: [500], canary: { errors: 100% }, \
                published: [{ rate: 500, seconds: 9 }] }\n\
            - { name: mild, about: c, from: own, expect: roll_back, rates: [500] }\n";
        let scenarios = simulate::read(file, "f").unwrap();
        let simulation = simulate::run(&scenarios, 1, 1);
        let results: Vec<_> = simulation
            .rows
            .iter()
            .map(|row| result(row, Paint { on: false }))
            .collect();
        assert_eq!(
            results,
            [
                "false rollbacks 0.0 % to 95.0 %: more releases would tell; published 9 s: worse",
                "published 9 s: as good",
                "1 of 1 not rolled back",
            ]
        );
        let text = text(&simulation, Paint { on: false });
        assert!(text.contains("dead      500    100 %"), "{text}");
    }
}

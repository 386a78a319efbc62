use super::scenario::SHIPPED;
use super::*;

fn shipped(name: &str) -> Scenario {
    let scenarios = read(SHIPPED, SHIPPED_NAME).unwrap();
    scenarios
        .into_iter()
        .find(|scenario| scenario.name.as_str() == name)
        .unwrap()
}

/// The row of one shipped scenario at one rate.
fn row(name: &str, rate: f64, releases: u32) -> Row {
    let mut scenario = shipped(name);
    scenario.rates.retain(|of| of.get() == rate);
    run(&[scenario], releases, 1).rows.remove(0)
}

#[test]
fn ships_scenarios_that_it_can_read() {
    let scenarios = read(SHIPPED, SHIPPED_NAME).unwrap_or_else(|findings| panic!("{findings:#?}"));
    let from = |source| {
        scenarios
            .iter()
            .filter(|scenario| scenario.from == source)
            .count()
    };
    assert_eq!(from(Source::Table), 8, "each row of the table");
    assert!(from(Source::Own) >= 4);
}

#[test]
fn gives_the_same_result_for_the_same_seed_on_any_number_of_threads() {
    let scenarios = [shipped("everything-fails"), shipped("storms-bad")];
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| run(&scenarios, 4, 7))
    };
    let alone = on(1);
    assert_eq!(alone, on(3));
    assert_ne!(alone.rows[1], run(&scenarios, 4, 8).rows[1], "another seed");
    assert_eq!(
        alone.rows[1],
        run(&scenarios[1..], 4, 7).rows[0],
        "whatever else is run"
    );
}

#[test]
fn promotes_a_good_release_as_soon_as_published() {
    let row = row("good", 500.0, 6);
    assert_eq!(
        (row.promoted.count, row.rolled_back.count),
        (6, 0),
        "{row:?}"
    );
    let seconds = row.promoted_seconds.unwrap().median;
    assert!((132.0..=144.0).contains(&seconds), "{seconds}");
    assert_eq!(
        row.promise,
        Some(Promise::Open),
        "six releases prove nothing"
    );
}

#[test]
fn rolls_back_what_always_fails_as_soon_as_published() {
    let row = row("everything-fails", 500.0, 20);
    assert_eq!(row.rolled_back.count, 20, "{row:?}");
    assert_eq!(row.rolled_back_by["warm_up"], 20);
    assert!(
        (2.0..=4.0).contains(&row.seconds.unwrap().median),
        "{row:?}"
    );
    assert!(
        (12.0..=20.0).contains(&row.failed.unwrap().median),
        "{row:?}"
    );
}

#[test]
fn finds_what_begins_once_the_canary_has_every_request_and_counts_from_there() {
    let dead = row("alone-dead", 500.0, 20);
    assert_eq!(dead.rolled_back_by["errors_alone"], 20, "{dead:?}");
    let seconds = dead.seconds.unwrap();
    assert!(seconds.median <= 6.0, "{seconds:?}");
    // All that failed since is its doing, but for the usual thousandth.
    let (failed, excess) = (dead.failed.unwrap(), dead.excess_failed.unwrap());
    assert!((2_000.0..=3_000.0).contains(&failed.median), "{failed:?}");
    assert!(failed.median - excess.median <= 5.0, "{excess:?}");

    let good = row("alone-good", 500.0, 6);
    assert_eq!(good.promoted.count, 6, "{good:?}");
    assert!(
        good.promoted_seconds.unwrap().median > 720.0,
        "ten minutes more"
    );
}

#[test]
fn neither_promotes_nor_rolls_back_without_requests_to_compare() {
    for name in ["silence", "silence-in-the-bake", "stable-only"] {
        assert_eq!(row(name, 500.0, 1).undecided.count, 1, "{name}");
    }
}

#[test]
fn says_where_a_file_is_wrong_and_what_was_expected() {
    let head = "scenarios:\n- name: mine\n  about: mine\n  from: own\n  expect: promote\n";
    for (wrong, words) in [
        (
            "  rates: [50]\n  stable: { errors: 0.1 }\n",
            "mine.yml:7:21: 0.1: expected a share such as 0.1%",
        ),
        (
            "  rates: [50]\n  canary:\n    slow_er: 2\n",
            "mine.yml:8:5: unknown field `slow_er`",
        ),
        (
            "  rates: [0]\n",
            "mine.yml:6:11: 0: expected a number above 0",
        ),
        (
            "  rates: []\n",
            "mine.yml:2:3: mine: expected at least one rate",
        ),
        (
            "  rates: [50]\n  plan: { hold: 10 }\n",
            "mine.yml:7:17: 10: expected a time such as 90s",
        ),
        (
            "  rates: [50]\n  plan: { weights: [5%, 5%] }\n",
            "mine.yml:7:9: step 2 has weight 5%",
        ),
        (
            "  rates: [50]\n  plan: { bake: 20% }\n",
            "mine.yml:7:9: step 6 has weight 20%",
        ),
        (
            "  rates: [50]\n  published: [{ rate: 5 }]\n",
            "mine.yml:7:15: 5: expected one of the scenario's `rates`",
        ),
        (
            "  rates: [50]\n- name: Mine\n",
            "mine.yml:7:9: Mine: expected 1 to 40 small letters",
        ),
    ] {
        let finding = read(&format!("{head}{wrong}"), "mine.yml").unwrap_err()[0].to_string();
        assert!(finding.starts_with(words), "{finding}\n{words}");
    }
    let twice = format!(
        "{head}  rates: [5]\n- {{ name: mine, about: again, from: own, expect: any, rates: [5] }}\n"
    );
    let finding = read(&twice, "mine.yml").unwrap_err()[0].to_string();
    assert!(
        finding.starts_with("mine.yml:7:3: mine: expected a name that no scenario above has"),
        "{finding}"
    );
}

/// The forecast of a file with this plan and guard at this rate.
fn forecast_of(more: &str, rate: f64) -> AtRate {
    let text = format!("service: web\nport: 80\n{more}\n");
    let spec =
        crate::spec::read(&text, "friday.yml", &crate::spec::ReadOptions::default()).unwrap();
    let question = Question {
        rates: vec![Positive::try_from(rate).unwrap()],
        stable_errors: Percent::try_from("0.1%".to_owned()).unwrap(),
        releases: Some(40),
        seed: 1,
    };
    forecast(&spec, &question).rates.remove(0)
}

#[test]
fn foretells_what_a_rollout_by_a_file_takes() {
    let at = forecast_of("", 500.0);
    assert_eq!((at.first_step, at.skipped), (0, None));
    assert_eq!(at.good.promoted.count, 40, "{:?}", at.good);
    let seconds = at.good.seconds.unwrap();
    // With the two minutes for which stable is kept warm.
    assert!((230.0..270.0).contains(&seconds.median), "{seconds:?}");
    let caught: Vec<_> = at.regressions.iter().map(|bad| bad.caught.count).collect();
    assert_eq!(caught, [40; 4]);
    let after: Vec<f64> = at.regressions[..3]
        .iter()
        .map(|bad| bad.seconds.unwrap().median)
        .collect();
    assert!(
        after.is_sorted_by(|a, b| a > b),
        "the worse, the sooner: {after:?}"
    );
    for bad in &at.regressions {
        assert!(bad.failed.unwrap().median < bad.canary_requests.unwrap().median);
    }
    for step in &at.steps {
        assert!(
            step.too_low.is_none() && step.without_proof.count == 0,
            "{step:?}"
        );
        assert_eq!(step.passed.count, 40);
    }
    // Each step proves more than the one before; and its formula agrees with what was simulated where errors take longest.
    assert!(
        at.steps
            .is_sorted_by(|a, b| a.canary_requests < b.canary_requests)
    );
    let first = &at.steps[0];
    let (formula, simulated) = (first.proof_seconds, first.seconds.unwrap().median);
    assert!((0.8..1.25).contains(&(formula / simulated)), "{first:?}");
}

#[test]
fn says_what_would_do_where_the_traffic_is_too_low_and_is_right() {
    let plan = |hold: &str| {
        format!("plan: [{{ weight: 10%, hold: 10s..{hold} }}, {{ weight: 50%, hold: 10s..20m }}]")
    };
    let at = forecast_of(&plan("5m"), 5.0);
    let step = &at.steps[0];
    assert!(
        step.without_proof.ratio > 0.9 && step.proof_seconds > 600.0,
        "{step:?}"
    );
    let too_low = step.too_low.clone().unwrap();
    let without_proof = |at: AtRate| at.steps[0].without_proof.ratio;
    assert!(without_proof(forecast_of(&plan("5m"), too_low.requests_per_second)) < 0.3);
    let hold = format!("{:.0}s", too_low.hold_seconds);
    assert!(
        without_proof(forecast_of(&plan(&hold), 5.0)) < 0.3,
        "{hold}"
    );
    let margin = format!(
        "{}\nguard: {{ errors: {{ margin: {}% }} }}",
        plan("5m"),
        too_low.errors_margin.unwrap() * 100.0
    );
    assert!(without_proof(forecast_of(&margin, 5.0)) < 0.3, "{margin}");
}

#[test]
fn foretells_with_the_steps_gates_and_deadlines_of_the_file() {
    let gated = "plan: [{ weight: 1% }, { weight: 10% }, { gate: all }, { weight: 50% }]";
    let at = forecast_of(gated, 5.0);
    assert_eq!(at.first_step, 1);
    let shown: Vec<_> = at
        .steps
        .iter()
        .map(|step| (step.step, step.is_skipped))
        .collect();
    assert_eq!(shown, [(0, true), (1, false), (3, false)]);
    assert_eq!(at.good.promoted.count, 40, "a gate is approved at once");
    let first = forecast_of(&format!("{gated}\nguard: {{ start: first }}"), 5.0);
    assert_eq!((first.first_step, first.skipped), (0, None));
    // A check has no data here, and would hold every release until its deadline.
    let check = "guard: { checks: [{ name: a, prometheus: up, max: 1 }] }";
    assert_eq!(forecast_of(check, 500.0).good.promoted.count, 40);
    // Nor does anybody say of what kind answers are.
    let answers = "sticky: none\nguard: { answers: { header: x-kind } }";
    assert_eq!(forecast_of(answers, 500.0).good.promoted.count, 40);
    let hurried =
        "deadlines: { evidence: 61s }\nplan: [{ weight: 1%, hold: 10s..60s }]\nbake: { for: 10s }";
    assert_eq!(forecast_of(hurried, 0.5).good.undecided.count, 40);
}

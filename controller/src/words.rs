//! What people read: phases, causes, endings and verdicts as sentences. Decisions carry numbers; only here do they
//! become text, so that the API, the command line and the log say the same.

use proxy_api::{KIND_OTHER, KINDS_MAX};
use rollout::judge::{
    CheckSeen, Counts, Decision, Gauge, Grounds, HoldReason, KindSeen, Margin, Missing, Percentile,
    Signal, Watched,
};
use rollout::policy::Emergency;
use rollout::rollout::{Promotion, Retreat};
use rollout::signals::KIND_NONE;
use rollout::{
    Bound, Cause, Duration, Ending, Phase, Placement, Plan, Rollout, Skipped, Step, Verdict,
};

use crate::api::types::CheckState;
use crate::spec::show_duration;

/// The exit code of `friday deploy --wait` and `friday status` for an ending. Contracts: pipelines branch on them.
#[must_use]
pub fn exit_code(ending: Ending) -> u8 {
    match ending {
        Ending::Promoted => 0,
        Ending::RolledBack => 10,
        Ending::Aborted => 11,
        Ending::Superseded => 12,
        Ending::InsufficientEvidence => 13,
        Ending::NotReady => 14,
    }
}

/// An ending in a word or two.
#[must_use]
pub fn ending(ending: Ending) -> &'static str {
    match ending {
        Ending::Promoted => "promoted",
        Ending::RolledBack => "rolled back",
        Ending::Aborted => "aborted",
        Ending::Superseded => "superseded",
        Ending::InsufficientEvidence => "not enough evidence",
        Ending::NotReady => "not ready",
    }
}

/// Why a rollout ended early, as the end of a sentence.
#[must_use]
pub fn cause(cause: &Cause) -> String {
    match cause {
        Cause::Evidence { signal } => match signal.as_str() {
            "errors" => "the canary fails more than stable".to_owned(),
            "latency" => "the canary is slower than stable".to_owned(),
            "answers" => "the canary answers other things than stable".to_owned(),
            "saturation" => "the canary uses more memory or CPU than stable".to_owned(),
            "warm_up" => "the canary fails more in its warm-up than a cold start may".to_owned(),
            "errors_alone" => {
                "with every request on it the canary fails more than stable did in the last hour".to_owned()
            }
            "latency_alone" => {
                "with every request on it the canary is more than twice as slow as stable was".to_owned()
            }
            "check" => "a check of the guard speaks against the canary".to_owned(),
            "restarts" => "the canary's tasks restart, stable's do not".to_owned(),
            other => format!("the canary is worse than stable ({other})"),
        },
        Cause::Person { by, reason } => format!("aborted by {by}{}", because(reason.as_deref())),
        Cause::Rejected { by, reason } => format!("rejected at the gate by {by}{}", because(reason.as_deref())),
        Cause::Superseded { by } => format!("superseded by {by}"),
        Cause::Overtaken { release } => format!("somebody deployed another release ({release}) to the service itself"),
        Cause::InsufficientEvidence => {
            "not enough evidence before the deadline (deadlines.evidence): too few canary requests, or no proof"
                .to_owned()
        }
        Cause::GateUnanswered => "nobody answered at the gate before the deadline (deadlines.rollout)".to_owned(),
        Cause::Deadline => "the rollout took longer than its deadline (deadlines.rollout)".to_owned(),
        Cause::NotReady { trouble } => {
            format!("the canary did not become ready in time (deadlines.ready){}", because(trouble.as_deref()))
        }
    }
}

fn because(reason: Option<&str>) -> String {
    reason
        .map(|reason| format!(": {reason}"))
        .unwrap_or_default()
}

/// One sentence for people: where a rollout is, and what it waits for or why it ended. `verdict` is the judge's last.
#[must_use]
pub fn message(rollout: &Rollout, verdict: Option<&Verdict>) -> String {
    let message = phase_message(rollout, &rollout.phase, verdict);
    let message = with_admission(rollout, message);
    match &rollout.skipped {
        Some(skipped) => format!("{message}; {}", self::skipped(&rollout.spec.plan, skipped)),
        None => message,
    }
}

/// The message, with what holds the rollout that is no evidence, or why nothing of that does.
fn with_admission(rollout: &Rollout, message: String) -> String {
    let admission = &rollout.admission;
    match (&admission.emergency, &admission.frozen) {
        (Some(Emergency { by, reason }), _) => {
            format!("{message}; no freeze holds it, by the emergency word of {by}: {reason:?}")
        }
        (None, Some(why)) if rollout.is_frozen() => format!(
            "frozen {why}: it gets no more requests until then, and can go back at any time; {message}"
        ),
        (None, Some(_) | None) => message,
    }
}

/// What a rollout waits for whose environment asks for approvals.
fn awaited(rollout: &Rollout) -> String {
    let (admission, id) = (&rollout.admission, &rollout.id);
    let so_far = if admission.approved_by.is_empty() {
        String::new()
    } else {
        format!("; approved by {}", admission.approved_by.join(", "))
    };
    format!(
        "ready, and waits for {} of {} approvals by others than {} before its first request: `friday approve {id}` or `friday reject {id}`{so_far}",
        admission.approvals_missing(),
        admission.approvals_min,
        rollout.author,
    )
}

/// With which step a rollout began, and why: `began with step 2 (10%): 1% of 5 requests/s would be fewer than 0.5/s`.
#[must_use]
pub fn skipped(plan: &Plan, skipped: &Skipped) -> String {
    let Skipped {
        steps,
        requests_per_second,
        canary_rate_min,
    } = skipped;
    let (first, last) = (
        plan.weight_at(*steps),
        plan.weight_at(steps.saturating_sub(1)),
    );
    format!(
        "began with step {} ({first}): {last} of {} requests/s would be fewer than {}/s for the canary",
        steps + 1,
        rate(*requests_per_second),
        rate(*canary_rate_min),
    )
}

/// Requests a second, with no more digits than tell something: `500`, `4.97`, `0.5`.
#[must_use]
pub fn rate(per_second: f64) -> String {
    if per_second >= 10.0 {
        format!("{per_second:.0}")
    } else {
        let shown = format!("{per_second:.2}");
        shown.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

fn phase_message(rollout: &Rollout, phase: &Phase, verdict: Option<&Verdict>) -> String {
    let (plan, id) = (&rollout.spec.plan, &rollout.id);
    let place = |step: usize| format!("step {} of {}", step + 1, plan.steps().len());
    match phase {
        Phase::Deploying { elapsed } => deploying(rollout, *elapsed),
        Phase::Analyzing { step, elapsed } => {
            let weight = plan.weight_at(*step);
            let judged = judged(rollout, verdict.filter(|verdict| verdict.step == *step));
            format!(
                "{}: {weight} on the canary for {}; {judged}",
                place(*step),
                rounded(*elapsed)
            )
        }
        Phase::Gated { step, elapsed } => {
            let approvers = match plan.steps().get(*step) {
                Some(Step::Gate { approvers }) => approvers.as_str(),
                Some(Step::Weight { .. }) | None => "somebody",
            };
            let (place, waited) = (place(*step), rounded(*elapsed));
            let others = if rollout.needs_other_eyes(&rollout.author) {
                format!(" (others than {})", rollout.author)
            } else {
                String::new()
            };
            format!(
                "{place}: waits for {approvers}{others} for {waited}: `friday approve {id}` or `friday reject {id}`"
            )
        }
        Phase::Baking { elapsed } => {
            let bake = &rollout.spec.bake;
            let judged = judged(
                rollout,
                verdict.filter(|verdict| verdict.step == plan.steps().len()),
            );
            let (passed, period) = (rounded(*elapsed), show_duration(bake.period));
            format!(
                "bake: {} on the canary for {passed} of at least {period}; {judged}",
                bake.weight
            )
        }
        Phase::Warm { elapsed } => {
            let left = rounded(rollout.spec.keep_warm.saturating_sub(*elapsed));
            let watched = verdict
                .filter(|verdict| verdict.step == plan.steps().len() + 1)
                .and_then(|verdict| verdict.watched.as_ref())
                .map(|watched| format!("; {}", watch(watched)))
                .unwrap_or_default();
            format!(
                "every request on the canary; stable stays up for {left} more, `friday abort {id}` goes back at once{watched}"
            )
        }
        Phase::Paused { at } => {
            format!(
                "paused; `friday resume {id}` goes on at: {}",
                phase_message(rollout, at, verdict)
            )
        }
        Phase::Promoting { stage, .. } => {
            let image = &rollout.canary.image;
            match stage {
                Promotion::Shifting => {
                    format!(
                        "promoting: moves every request to the canary{}",
                        unconfirmed(rollout)
                    )
                }
                Promotion::Updating => {
                    format!("promoting: updates stable, which serves nothing, to {image}")
                }
                Promotion::Returning => {
                    format!("promoting: moves requests back to stable, which now runs {image}")
                }
                Promotion::Removing => "promoting: removes the canary's tasks".to_owned(),
            }
        }
        Phase::RollingBack { cause, stage, .. } => {
            let doing = match stage {
                Retreat::Regaining { .. } => "gives stable back the tasks that somebody took away",
                Retreat::Yielding { .. } => {
                    "leaves the requests to what its owner deployed, as that gets ready"
                }
                Retreat::Restoring { .. } => "brings stable back to its release",
                Retreat::Leaving => "the canary gets nothing more, its last requests finish",
                Retreat::Removing => "removes the canary's tasks",
            };
            let unconfirmed = if matches!(stage, Retreat::Leaving) {
                unconfirmed(rollout)
            } else {
                ""
            };
            format!(
                "rolling back ({doing}{unconfirmed}): {}",
                why(cause, verdict)
            )
        }
        Phase::Promoted => format!("promoted: {} is the stable release", rollout.canary.image),
        Phase::RolledBack { cause } => {
            format!(
                "rolled back to {}: {}",
                rollout.stable.image,
                why(cause, verdict)
            )
        }
    }
}

fn deploying(rollout: &Rollout, elapsed: Duration) -> String {
    if rollout.awaits_approval() {
        return awaited(rollout);
    }
    let seen = &rollout.observed;
    let wanted = if let Placement::Run { replicas, .. } = rollout.desired().canary {
        replicas
    } else {
        0
    };
    let trouble = seen
        .trouble
        .as_ref()
        .map(|trouble| format!("; last trouble: {trouble}"))
        .unwrap_or_default();
    format!(
        "waits for the canary's tasks: {} of {wanted} ready after {}, gives up at {}{trouble}",
        seen.canary_ready,
        rounded(elapsed),
        show_duration(rollout.spec.deadlines.ready),
    )
}

fn judged(rollout: &Rollout, verdict: Option<&Verdict>) -> String {
    let nothing = || format!("nothing judged yet{}", unconfirmed(rollout));
    verdict.map_or_else(nothing, self::verdict)
}

/// A word on the proxies, where they keep the rollout waiting.
fn unconfirmed(rollout: &Rollout) -> &'static str {
    match rollout.observed.weight_seen {
        Some(_) => "",
        None => "; no friday-proxy reports, or they differ in their weights",
    }
}

/// The cause, with the judge's numbers where it was the judge.
fn why(why: &Cause, verdict: Option<&Verdict>) -> String {
    match (why, verdict) {
        (Cause::Evidence { .. }, Some(verdict))
            if matches!(verdict.decision, Decision::Fail { .. }) =>
        {
            self::verdict(verdict)
        }
        _ => cause(why),
    }
}

/// A verdict in one sentence.
#[must_use]
pub fn verdict(verdict: &Verdict) -> String {
    match &verdict.decision {
        Decision::Inconclusive { missing } => {
            if let Some(watched) = &verdict.watched {
                return watch(watched);
            }
            let needs: Vec<_> = missing.iter().map(self::missing).collect();
            format!("not yet known, needs {}", needs.join(" and "))
        }
        Decision::Hold { reason } => format!("holds: {}", hold_reason(reason)),
        Decision::Pass { by } => match by {
            Grounds::Proof => "passed: proven no worse than the margins".to_owned(),
            Grounds::TimeOut { bound: Some(bound) } => {
                format!(
                    "passed on time-out without proof; excess errors proven below {}",
                    percent(*bound)
                )
            }
            Grounds::TimeOut { bound: None } => "passed on time-out without proof".to_owned(),
            Grounds::Calm => {
                "passed: the bake is over and nothing spoke against the canary".to_owned()
            }
        },
        Decision::Fail { signal, sick_node } => {
            let node = sick_node.as_ref().map(|sick| {
                format!(
                    "; {} of the {} failures are on node {}, look there first",
                    sick.bad, sick.bad_of_all, sick.node
                )
            });
            format!(
                "{}{}",
                signal_words(signal, &verdict.in_step),
                node.unwrap_or_default()
            )
        }
    }
}

fn signal_words(signal: &Signal, counts: &Counts) -> String {
    let (canary, stable) = (&counts.canary, &counts.stable);
    match signal {
        Signal::Errors => format!(
            "the canary fails more than stable: {} of {} requests, against {} of {}",
            canary.bad, canary.requests, stable.bad, stable.requests
        ),
        Signal::WarmUp => "the canary fails more in its warm-up than a cold start may".to_owned(),
        Signal::Latency { percentile } => {
            let slow = *percentile as usize;
            format!(
                "the canary is slower than stable at {}: {} of {} answers are slow, against {} of {}",
                percentile_name(*percentile),
                canary.slow[slow],
                canary.timed,
                stable.slow[slow],
                stable.timed
            )
        }
        Signal::Saturation { gauge } => {
            format!("the canary uses more {} than stable", gauge_name(*gauge))
        }
        Signal::Limit { gauge, node, ratio } => {
            let use_of_limit = percent(*ratio);
            format!(
                "canary node {node} is at its limit of {}: {use_of_limit} in use",
                gauge_name(*gauge)
            )
        }
        Signal::Restarts { canary, stable } => {
            format!("the canary's tasks restarted {canary} times in 5m, stable's {stable} times")
        }
        Signal::ErrorsAlone { allowed } => format!(
            "with every request on it the canary fails {} of {} requests, and stable's last hour allows {}; stable had no \
             requests to compare with",
            canary.bad,
            canary.requests,
            percent(*allowed)
        ),
        Signal::LatencyAlone { percentile } => {
            let slow = *percentile as usize;
            format!(
                "with every request on it the canary is more than twice as slow as stable was at {}: {} of {} answers are \
                 slower than that; stable had no requests to compare with",
                percentile_name(*percentile),
                canary.slow[slow],
                canary.timed
            )
        }
        Signal::Answers {
            kind,
            canary,
            stable,
        } => format!(
            "the canary answers other things than stable: {} of its answers {}, {} of stable's",
            percent(*canary),
            of_kind(kind),
            percent(*stable)
        ),
        Signal::Check { name, value, limit } => {
            format!(
                "check {name:?}: the canary's value is {}, its limit {}",
                number(*value),
                number(*limit)
            )
        }
    }
}

/// The watch over a canary that has every request, in a line.
#[must_use]
pub fn watch(watched: &Watched) -> String {
    format!(
        "watched against stable's last hour, a weaker comparison: at most {} errors allowed, evidence of harm {}, rolled back at {}",
        percent(watched.errors_allowed),
        odds(watched.total),
        odds(watched.rollback_at)
    )
}

fn hold_reason(reason: &HoldReason) -> String {
    match reason {
        HoldReason::Silence => {
            "no requests on both sides to compare; does traffic go through friday-proxy?".to_owned()
        }
        HoldReason::StableInTrouble { rate, before } => {
            format!(
                "stable itself fails {} of its requests, {} before",
                percent(*rate),
                percent(*before)
            )
        }
        HoldReason::SplitMismatch { expected, seen } => format!(
            "requests are not split as the weight says: {seen} came to the canary, {expected:.0} were expected; are all \
             proxies on this controller?"
        ),
        HoldReason::MemoryTrend { seconds_to_limit } => {
            let left =
                Duration::try_from_secs_f64(seconds_to_limit.max(0.0)).unwrap_or(Duration::MAX);
            format!(
                "the canary's memory grows and reaches its limit in about {}",
                rounded(left)
            )
        }
    }
}

/// What a pass still needs, as a thing to wait for.
#[must_use]
pub fn missing(missing: &Missing) -> String {
    match missing {
        Missing::WarmUp { remaining } => {
            format!("{} more of warm-up with requests", rounded(*remaining))
        }
        Missing::Calm { log_e, below } => {
            format!(
                "calm: evidence of harm is {}, must be below {}",
                odds(*log_e),
                odds(*below)
            )
        }
        Missing::BothArms => "requests on both sides at the same time".to_owned(),
        Missing::Weight => "requests that were routed at this weight".to_owned(),
        Missing::Check {
            name,
            silent: Some(silent),
        } => {
            format!(
                "data for check {name:?}, which has had none for {}",
                rounded(silent.0)
            )
        }
        Missing::Check { name, silent: None } => {
            format!("a sample of check {name:?} that was taken wholly in this step")
        }
        Missing::Answers { header } => {
            format!("an answer of stable's that says of what kind it is, in {header}")
        }
        Missing::Gauges => "memory and CPU of the tasks, which are no longer reported".to_owned(),
        Missing::Time { remaining } => format!("{} more at this weight", rounded(*remaining)),
        Missing::CanaryRequests { have, needed } => {
            format!("more canary requests ({have} of {needed})")
        }
        Missing::Proof { margin } => format!("proof that {}", self::margin(margin)),
        Missing::Estimate { margin } => {
            format!("an estimate inside the margin: {}", self::margin(margin))
        }
    }
}

/// A margin, as what is to be shown of the canary.
#[must_use]
pub fn margin(margin: &Margin) -> String {
    match margin {
        Margin::Errors { excess } => {
            format!("errors exceed stable's by less than {}", percent(*excess))
        }
        Margin::Latency { percentile, factor } => {
            format!(
                "{} is below {factor:.2} times stable's",
                percentile_name(*percentile)
            )
        }
    }
}

/// `p50`, `p90`, `p99`.
#[must_use]
pub fn percentile_name(percentile: Percentile) -> &'static str {
    match percentile {
        Percentile::P50 => "p50",
        Percentile::P90 => "p90",
        Percentile::P99 => "p99",
    }
}

fn gauge_name(gauge: Gauge) -> &'static str {
    match gauge {
        Gauge::Memory => "memory",
        Gauge::Cpu => "CPU",
        Gauge::Queue => "queue",
        Gauge::Descriptors => "file descriptors",
    }
}

/// Evidence as odds: its natural logarithm 4.605 is `100 to 1`.
#[must_use]
pub fn odds(log_e: f64) -> String {
    let evidence = log_e.exp();
    match evidence {
        _ if log_e.is_nan() => "unknown".to_owned(),
        evidence if evidence >= 1e6 => format!("10^{:.0} to 1", log_e / std::f64::consts::LN_10),
        evidence if evidence >= 10.0 => format!("{evidence:.0} to 1"),
        evidence if evidence >= 1.0 => format!("{evidence:.1} to 1"),
        _ => "none".to_owned(),
    }
}

/// A share as percent, with no more digits than tell something.
#[must_use]
pub fn percent(ratio: f64) -> String {
    let percent = ratio * 100.0;
    let digits = match percent.abs() {
        size if size == 0.0 || size >= 10.0 => 0,
        size if size >= 1.0 => 1,
        _ => 2,
    };
    let shown = format!("{percent:.digits$}");
    let shown = if shown.contains('.') {
        shown.trim_end_matches('0').trim_end_matches('.')
    } else {
        &shown
    };
    format!("{shown}%")
}

/// A time as people count it: whole seconds.
#[must_use]
pub fn rounded(duration: Duration) -> String {
    let seconds = duration.as_secs() + u64::from(duration.subsec_millis() >= 500);
    show_duration(Duration::from_secs(seconds))
}

/// A value of the user's own measure, whose unit and size nobody knows: four digits.
#[must_use]
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || (1e-3..1e9).contains(&size) {
        let digits = if size >= 1000.0 {
            0
        } else if size >= 10.0 {
            1
        } else {
            4
        };
        let shown = format!("{value:.digits$}");
        return if shown.contains('.') {
            shown.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            shown
        };
    }
    format!("{value:.3e}")
}

/// What a check must keep: `at most 1000`.
#[must_use]
pub fn bound(bound: &Bound) -> String {
    match bound {
        Bound::Max(limit) => format!("at most {}", number(*limit)),
        Bound::Min(limit) => format!("at least {}", number(*limit)),
        Bound::AboveStable(more) => format!("at most {} above stable's", percent(*more)),
    }
}

/// How a check stands. Its data counts as missing once there has been none for `grace`; and a comparison without stable's
/// value has none.
#[must_use]
pub fn check_state(check: &CheckSeen, grace: Duration) -> CheckState {
    match (check.canary, check.bound.limit(check.stable)) {
        (Some(canary), Some(limit)) if check.silent <= grace => {
            if check.bound.is_broken(canary, limit) {
                CheckState::Beyond
            } else {
                CheckState::Kept
            }
        }
        _ => CheckState::NoData,
    }
}

/// How often a kind of answer was given, in a line: `answers that are "negative": 40 % of the canary's, 25 % of stable's; …`.
#[must_use]
pub fn kind(kind: &KindSeen) -> String {
    format!(
        "answers that {}: {} of the canary's, {} of stable's; evidence that the canary gives more of them: {}",
        of_kind(&kind.name),
        percent(kind.canary),
        percent(kind.stable),
        odds(kind.log_e)
    )
}

/// What is said of answers of this kind, as the end of "answers that …".
fn of_kind(name: &str) -> String {
    match name {
        KIND_NONE => "name no kind".to_owned(),
        KIND_OTHER => format!("are of none of the first {KINDS_MAX} kinds"),
        name => format!("are {name:?}"),
    }
}

/// What is known of a check, in a line: `check "lag": 1200 on the canary, to be at most 1000: beyond it 2 times in a row`.
#[must_use]
pub fn check(check: &CheckSeen) -> String {
    let name = &check.name;
    let values = match (check.canary, check.stable) {
        (None, _) => "no data yet".to_owned(),
        (Some(canary), None) => format!("{} on the canary", number(canary)),
        (Some(canary), Some(stable)) => format!(
            "{} on the canary, {} on stable",
            number(canary),
            number(stable)
        ),
    };
    let limit = check.bound.limit(check.stable);
    let compared = limit.filter(|_| check.bound.compares());
    let bound = match compared {
        Some(limit) => format!("{} ({})", bound(&check.bound), number(limit)),
        None => bound(&check.bound),
    };
    let state = match (check.canary, limit) {
        (Some(canary), Some(limit)) if check.bound.is_broken(canary, limit) => match check.broken {
            0 | 1 => ": beyond it".to_owned(),
            times => format!(": beyond it {times} times in a row"),
        },
        (Some(_), Some(_)) => ": kept".to_owned(),
        _ => String::new(),
    };
    let evidence = compared
        .map(|_| format!("; evidence that it is worse: {}", odds(check.log_e)))
        .unwrap_or_default();
    // Two samples of the usual ten seconds: shorter silence is the time between two questions.
    let is_silent = check.canary.is_some()
        && (check.trouble.is_some() || check.silent > Duration::from_secs(20));
    let silent = if is_silent {
        format!("; no data since {} ago", rounded(check.silent))
    } else {
        String::new()
    };
    let trouble = check
        .trouble
        .as_ref()
        .map(|trouble| format!(" ({trouble})"))
        .unwrap_or_default();
    format!("check {name:?}: {values}, to be {bound}{state}{evidence}{silent}{trouble}")
}

/// Bytes in the unit in which they are a small number: `12 MiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, size)| count >= *size) {
        #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
        Some((unit, size)) if count < 10 * size => {
            format!("{:.1} {unit}", count as f64 / *size as f64)
        }
        Some((unit, size)) => format!("{} {unit}", count / size),
        None => format!("{count} B"),
    }
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

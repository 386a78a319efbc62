//! The lease of a job that waits: renewed while it waits, given back when it is told to stop (F38).

use std::convert::Infallible;

use clap::Args;
use rollout::{Duration, Ending};

use super::output::{Context, plain};
use super::{GivenUp, Usage};
use crate::api::types::LeaseOrder;
use crate::client::Client;
use crate::lease::{OnLost, PERIOD, PERIOD_MAX, PERIOD_MIN, Terms};
use crate::origin::Origin;
use crate::words;

/// Renewals in one period: two may be lost on the way.
const RENEWALS: u32 = 3;

/// The pause before a renewal that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Longest time that giving back may take. Who cancels a job waits for it.
const GIVE_BACK_MAX: Duration = Duration::from_secs(8);

/// Whether somebody has to wait for the rollout, and what happens when nobody does.
#[derive(Debug, Args)]
pub(super) struct LeaseArgs {
    /// With --wait: what happens to the rollout (--on-lost) when this command is heard no more for this long, or is told
    /// to stop; `off` for nothing. In a CI job it is 90s where not given, elsewhere off
    #[arg(long, env = "FRIDAY_LEASE", hide_env_values = true, value_parser = lease, value_name = "TIME")]
    lease: Option<Asked>,
    /// What happens then
    #[arg(long, value_enum, default_value_t)]
    on_lost: OnLost,
}

/// What `--lease` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// What fits the surroundings: an empty variable says as much.
    Default,
    Off,
    For(Duration),
}

/// Reads a period, or `off`.
fn lease(text: &str) -> Result<Asked, String> {
    match text {
        "" => Ok(Asked::Default),
        "off" => Ok(Asked::Off),
        text => {
            let period = super::duration(text)?;
            if (PERIOD_MIN..=PERIOD_MAX).contains(&period) {
                Ok(Asked::For(period))
            } else {
                Err(format!(
                    "expected {} to {}, or off",
                    words::rounded(PERIOD_MIN),
                    words::rounded(PERIOD_MAX)
                ))
            }
        }
    }
}

impl LeaseArgs {
    /// The lease to ask for, if any.
    pub(super) fn terms(
        &self,
        waits: bool,
        in_ci: bool,
        origin: Option<&Origin>,
    ) -> Result<Option<Terms>, Usage> {
        let asked = self.lease.unwrap_or(Asked::Default);
        let period = match asked {
            Asked::For(_) if !waits => {
                return Err(Usage(
                    "--lease needs --wait: who does not wait cannot be missed".to_owned(),
                ));
            }
            Asked::For(period) => period,
            Asked::Default if waits && in_ci => PERIOD,
            Asked::Default | Asked::Off => return Ok(None),
        };
        Ok(Some(Terms {
            holder: holder(origin),
            period_ms: u64::try_from(period.as_millis()).unwrap_or(u64::MAX),
            on_lost: self.on_lost,
        }))
    }
}

/// What this process is called in the event log; no other one is called the same.
fn holder(origin: Option<&Origin>) -> String {
    let unique = rand::random::<u32>();
    match origin {
        Some(origin) => format!("job {} ({unique:08x})", origin.job_id),
        None => format!("process {} ({unique:08x})", std::process::id()),
    }
}

/// The lease of a rollout that this process waits for.
#[derive(Debug)]
pub(super) struct Held<'a> {
    id: &'a str,
    terms: &'a Terms,
    client: &'a Client,
    context: &'a Context,
}

impl<'a> Held<'a> {
    pub(super) fn new(
        id: &'a str,
        terms: &'a Terms,
        client: &'a Client,
        context: &'a Context,
    ) -> Self {
        Self {
            id,
            terms,
            client,
            context,
        }
    }

    /// Renews it for as long as this is waited for. Without end: one that is lost is said, and the wait goes on.
    pub(super) async fn keep(&self) -> Infallible {
        let pause = self.terms.period() / RENEWALS;
        loop {
            tokio::time::sleep(pause).await;
            let order = LeaseOrder::Renew {
                holder: self.terms.holder.clone(),
            };
            while let Err(error) = self.client.lease(self.id, &order).await {
                if !error.is_transient() {
                    // Ended, or somebody else's now. Whoever follows the rollout sees which.
                    drop(self.context.note(&format!("friday: {error}")));
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Gives it back: what was agreed upon happens at once. Whether the controller heard of it.
    async fn give_back(&self, reason: &str) -> bool {
        let order = LeaseOrder::GiveBack {
            holder: self.terms.holder.clone(),
            reason: Some(reason.to_owned()),
        };
        let given = tokio::time::timeout(GIVE_BACK_MAX, async {
            while let Err(error) = self.client.lease(self.id, &order).await {
                if !error.is_transient() {
                    return false;
                }
                tokio::time::sleep(RETRY).await;
            }
            true
        });
        given.await.unwrap_or(false)
    }

    /// Gives the lease back and says what becomes of the rollout; the exit code, or that the wait was given up.
    pub(super) async fn end(&self, why: &str) -> anyhow::Result<u8> {
        let heard = self.give_back(why).await;
        let words = self.words(why, heard);
        if heard && self.terms.on_lost == OnLost::Abort {
            self.context.note(&format!("friday: {words}"))?;
            return Ok(words::exit_code(Ending::Aborted));
        }
        Err(GivenUp(words).into())
    }

    fn words(&self, why: &str, heard: bool) -> String {
        let id = plain(self.id);
        let what = match self.terms.on_lost {
            OnLost::Hold => "stays at its weight until somebody comes back",
            OnLost::Abort => "goes back to stable",
        };
        let when = if heard {
            "now".to_owned()
        } else {
            format!(
                "within {}, by its lease; the controller did not answer",
                words::rounded(self.terms.period())
            )
        };
        format!("{why}: {id} {what} {when}; `friday status {id}` waits again")
    }
}

/// Waits until this process is told to stop. Only for one that has something to do then.
pub(super) async fn told_to_stop() {
    if crate::app::terminated().await.is_err() {
        // Signals cannot be waited for: then they end the process at once, and the lease ends by itself.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(text: Option<&str>, waits: bool, in_ci: bool) -> Result<Option<Terms>, Usage> {
        let args = LeaseArgs {
            lease: text.map(|text| lease(text).unwrap()),
            on_lost: OnLost::Hold,
        };
        args.terms(waits, in_ci, None)
    }

    #[test]
    fn f38_a_waiting_job_holds_a_lease_and_nobody_else_has_to() {
        let period = |text, waits, in_ci| {
            let terms = terms(text, waits, in_ci).unwrap();
            terms.map(|terms| terms.period().as_secs())
        };
        assert_eq!(period(None, true, true), Some(90));
        assert_eq!(period(Some(""), true, true), Some(90));
        assert_eq!(period(None, true, false), None);
        assert_eq!(period(None, false, true), None);
        assert_eq!(period(Some("off"), true, true), None);
        assert_eq!(period(Some("30s"), true, false), Some(30));
        assert!(terms(Some("30s"), false, true).is_err());
        assert!(
            terms(Some("30s"), true, true)
                .unwrap()
                .unwrap()
                .check()
                .is_ok()
        );
    }

    #[test]
    fn refuses_a_period_that_no_lease_can_have() {
        for text in ["1s", "2h", "soon", "-3s", "0"] {
            assert!(lease(text).is_err(), "{text}");
        }
        assert!(lease("1s").unwrap_err().contains("3"));
    }

    #[test]
    fn no_two_processes_are_called_the_same() {
        assert_ne!(holder(None), holder(None));
    }
}

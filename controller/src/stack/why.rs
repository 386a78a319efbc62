//! Why each rule is there, in the words of a finding: the same of a stack file and of a service that runs.

use rollout::Duration;

use crate::yaml::show_duration;

pub(super) const NO_TAG: &str =
    "it has no tag, which means latest: what runs tomorrow was never tried";

pub(super) const MOVED_TAG: &str =
    "this tag is moved with each build: what runs tomorrow was never tried";

pub(super) const NAME_A_VERSION: &str = "name a version or a commit, such as web:1.4.2 or web:$CI_COMMIT_SHA; friday \
                                         itself pins what it releases by digest";

pub(super) const NO_HEALTH_CHECK: &str = "nothing asks a task whether it can work: Swarm calls it running as soon as its \
                                          process is there";

pub(super) const FIXED_PORT: &str = "start-first and a fixed port of the node: the new task waits for the port that the \
                                     old one holds, and the update never ends";

pub(super) const STOP_FIRST: &str = "each update takes a task away before the next one runs (stop-first is Swarm's \
                                     default)";

pub(super) const VIP: &str = "a virtual address (vip is Swarm's default) keeps sending connections to tasks that stop, \
                              and hides which task answered";

pub(super) const ONE_REPLICA: &str = "with one task (Swarm's default) a node that dies takes the service along, and \
                                      nothing is left to compare with";

/// Of the limits that are missing, such as `cpus` and `memory`.
pub(super) fn no_limits(missing: &[&str]) -> String {
    format!(
        "no limit of {}: a release that leaks takes its node along, and its neighbours; and saturation is measured \
         against the limit",
        missing.join(" and ")
    )
}

/// Of an update that is watched for less time than the health check may take to fail.
pub(super) fn short_monitor(monitor: Duration, patience: Duration) -> String {
    format!(
        "an update is called good after {} (5s is Swarm's default), before the health check can have failed: its start \
         period and all its tries take {}",
        show_duration(monitor),
        show_duration(patience)
    )
}

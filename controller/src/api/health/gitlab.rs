//! What releases need to know of GitLab, and whether it can be asked.

use rollout::Duration;

use super::super::Api;
use super::super::types::health::{FreezePeriodsView, GitlabView, KeysView};
use crate::auth::Identities;

/// Longest wait for keys, when somebody asks how the controller is.
const KEYS_MAX: Duration = Duration::from_secs(5);

pub(super) async fn view(api: &Api) -> Option<GitlabView> {
    let identities = api.tokens.as_ref().and_then(|tokens| tokens.identities());
    let issuer = || identities.map(|identities| identities.issuer().to_owned());
    let url = api.gitlab.clone().or_else(issuer)?;
    let periods = api.freezes.of_gitlab(api.clock.elapsed());
    Some(GitlabView {
        url,
        freeze_periods: periods.map(|known| FreezePeriodsView {
            age_seconds: known.as_ref().ok().map(Duration::as_secs_f64),
            trouble: known.err(),
        }),
        keys: match identities {
            Some(identities) => Some(keys(identities).await),
            None => None,
        },
    })
}

async fn keys(identities: &Identities) -> KeysView {
    let state = identities.keys(KEYS_MAX).await;
    KeysView {
        is_there: state.is_there,
        trouble: state.trouble,
    }
}

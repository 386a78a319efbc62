//! Who asks: what a page needs to know before it shows a button.

use axum::{Extension, Json};

use super::reads::may_read_all;
use super::types::Problem;
use super::types::me::MeView;
use crate::auth::{Caller, Rule};

/// Who asks, and what is allowed to them. It answers whoever may read; where tokens are wanted, others get 401.
#[utoipa::path(get, path = "/api/v1/me", responses((status = 200, body = MeView), (status = 401, body = Problem)))]
pub async fn me(caller: Option<Extension<Caller>>) -> Json<MeView> {
    let may = |rule: Rule| {
        caller
            .as_ref()
            .is_none_or(|Extension(caller)| rule.takes(caller.role))
    };
    Json(MeView {
        name: caller.as_ref().map(|Extension(caller)| caller.name.clone()),
        role: caller
            .as_ref()
            .map(|Extension(caller)| caller.role.to_string()),
        may_operate: may(Rule::Operate),
        may_approve: may(Rule::Approve),
        may_read_all: may_read_all(caller.as_ref()),
    })
}

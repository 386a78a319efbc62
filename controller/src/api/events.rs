//! Server-sent events: a rollout whenever it changed, until whoever watches goes away.

use std::convert::Infallible;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures::stream::{self, Stream};
use rollout::Duration;
use serde::Deserialize;

use super::Api;
use super::error::ApiError;
use super::reads::{find_for, may_read};
use super::rollouts::find;
use super::views;
use crate::auth::Caller;

/// How often a watched rollout is looked at. People see no more than a few changes in a second.
const LOOK: Duration = Duration::from_millis(250);

/// How often a line goes out though nothing changed, so that no one in between takes the stream for dead.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// After so long a stream ends, and whoever watches comes again: then it is asked anew who they are. A token may have been
/// taken from the file since, a session may be over.
const WATCH_MAX: Duration = Duration::from_secs(15 * 60);

/// What is watched.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct StreamQuery {
    /// A rollout, or a service for its newest.
    rollout: String,
}

/// Events named `rollout`, each with the whole rollout as JSON: one at once, then one at each change. Ends after 15 minutes.
#[utoipa::path(get, path = "/api/v1/stream", params(StreamQuery), responses((status = 200, content_type = "text/event-stream", body = String)))]
pub async fn stream(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    query: Result<Query<StreamQuery>, QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let Query(query) = query?;
    find_for(&api, caller.as_ref(), &query.rollout).await?;
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let until = api.clock.elapsed() + WATCH_MAX;
    let state = (api, caller, query.rollout, look, String::new());
    let events = stream::unfold(
        state,
        move |(api, caller, name, mut look, before)| async move {
            let mut stopping = api.stopping.clone();
            loop {
                tokio::select! {
                    _ = stopping.wait_for(|stopping| *stopping) => return None,
                    _ = look.tick() => {}
                }
                if api.clock.elapsed() >= until {
                    return None;
                }
                let Ok(saved) = find(&api, &name).await else {
                    continue;
                };
                // The newest of a service may be one for elsewhere.
                if !may_read(caller.as_ref(), &saved) {
                    continue;
                }
                let snapshot = api.handle.snapshot.borrow().clone();
                let view =
                    views::rollout(&api, &saved, snapshot.services.get(&saved.rollout.service));
                let Ok(text) = serde_json::to_string(&view) else {
                    continue;
                };
                if text != before {
                    let event = Event::default().event("rollout").data(&text);
                    return Some((Ok(event), (api, caller, name, look, text)));
                }
            }
        },
    );
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)))
}

//! Counters of others: `POST /stats`.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::cache::unavailable;
use super::store::{Added, StatsStore};
use crate::request::{TokenHash, idempotency_key, unauthorized};
use crate::server::problem;

/// Counters in one post.
pub(super) const POSTED_MAX: usize = 100;

/// Names with their labels that are kept. What comes beyond is refused.
pub(super) const SERIES_MAX: i64 = 10_000;

/// Labels of one counter.
const LABELS_MAX: usize = 8;

/// Longest name of a counter or label.
const NAME_BYTES_MAX: usize = 64;

/// Longest value of a label.
const LABEL_BYTES_MAX: usize = 128;

/// What may be added at once: a million of these still fit.
const VALUE_MAX: u64 = 1_000_000_000_000;

/// Counters to add to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CounterPost {
    /// 1 to 100.
    pub counters: Vec<NewCounter>,
}

/// What to add to a counter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCounter {
    /// As Prometheus has names: letters, digits, `_`; at most 64.
    pub name: String,
    /// What it grew by, at most 10^12.
    pub value: u64,
    /// At most 8; names as above, values of at most 128 bytes.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Adds what was posted, once for each idempotency key.
pub(super) async fn add(
    store: &dyn StatsStore,
    token: Option<&TokenHash>,
    headers: &HeaderMap,
    body: &[u8],
    now_ms: i64,
) -> Response {
    let Some(token) = token else {
        let detail = "no counters are taken; start pipeline-demo stats with --token-file";
        return problem(StatusCode::FORBIDDEN, "no_token", detail);
    };
    if !TokenHash::of_bearer(headers).is_some_and(|given| token.is(&given)) {
        let detail = "send the token as: Authorization: Bearer TOKEN";
        return unauthorized("wrong_token", detail);
    }
    let key = match idempotency_key(headers) {
        Ok(key) => key,
        Err(detail) => return problem(StatusCode::BAD_REQUEST, "bad_key", detail),
    };
    let counters = match read(body) {
        Ok(counters) => counters,
        Err(detail) => return problem(StatusCode::UNPROCESSABLE_ENTITY, "bad_counters", &detail),
    };
    match store.add(key, &counters, SERIES_MAX, now_ms).await {
        Ok(Added::Now) => {
            (StatusCode::OK, axum::Json(json!({"added": counters.len()}))).into_response()
        }
        Ok(Added::Before) => (StatusCode::OK, axum::Json(json!({"added": 0}))).into_response(),
        Ok(Added::Other) => {
            let detail = "other counters were posted under this Idempotency-Key; send these under a key of their own";
            problem(StatusCode::UNPROCESSABLE_ENTITY, "key_reused", detail)
        }
        Ok(Added::TooMany) => {
            let detail = format!(
                "there would be more than {SERIES_MAX} counters; use fewer names and labels"
            );
            problem(StatusCode::CONFLICT, "too_many_counters", &detail)
        }
        Err(error) => unavailable(&error),
    }
}

/// The counters of a post, each once, in order: name, labels as JSON, value.
fn read(body: &[u8]) -> Result<Vec<(String, String, i64)>, String> {
    let post: CounterPost = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if !(1..=POSTED_MAX).contains(&post.counters.len()) {
        return Err(format!(
            "counters: expected 1 to {POSTED_MAX}, got {}",
            post.counters.len()
        ));
    }
    let mut sums: BTreeMap<(String, String), u64> = BTreeMap::new();
    for NewCounter {
        name,
        value,
        labels,
    } in post.counters
    {
        if !is_name(&name) {
            return Err(format!(
                "name {name:?}: expected 1 to {NAME_BYTES_MAX} letters, digits and _"
            ));
        }
        if value > VALUE_MAX {
            return Err(format!("{name}: value {value} is above {VALUE_MAX}"));
        }
        if labels.len() > LABELS_MAX {
            return Err(format!(
                "{name}: {} labels; at most {LABELS_MAX}",
                labels.len()
            ));
        }
        for (label, text) in &labels {
            if !is_name(label) || text.len() > LABEL_BYTES_MAX || text.contains('\0') {
                return Err(format!(
                    "{name}: label {label:?}: expected letters, digits and _, and a value of at most {LABEL_BYTES_MAX} bytes"
                ));
            }
        }
        *sums.entry((name, json!(labels).to_string())).or_default() += value;
    }
    Ok(sums
        .into_iter()
        .map(|((name, labels), value)| (name, labels, value.cast_signed()))
        .collect())
}

fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.as_bytes()[0].is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_out_of_bounds_and_says_what_is_expected() {
        let many: Vec<String> = (0..101)
            .map(|n| format!(r#"{{"name":"a{n}","value":1}}"#))
            .collect();
        let many = format!(r#"{{"counters":[{}]}}"#, many.join(","));
        for (body, part) in [
            ("", "EOF"),
            (r#"{"counters":[]}"#, "1 to 100"),
            (many.as_str(), "101"),
            (r#"{"counters":[{"name":"9a","value":1}]}"#, "letters"),
            (r#"{"counters":[{"name":"a b","value":1}]}"#, "letters"),
            (r#"{"counters":[{"name":"a","value":-1}]}"#, "invalid value"),
            (
                r#"{"counters":[{"name":"a","value":2000000000000}]}"#,
                "above",
            ),
            (
                r#"{"counters":[{"name":"a","value":1,"labels":{"a-b":""}}]}"#,
                "label",
            ),
            (
                r#"{"counters":[{"name":"a","value":1,"extra":1}]}"#,
                "unknown field",
            ),
        ] {
            let error = read(body.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{body}: {error}");
        }
    }

    #[test]
    fn equal_counters_of_a_post_are_one() {
        let body = r#"{"counters":[{"name":"a","value":1,"labels":{"y":"2","x":"1"}},
            {"name":"a","value":2,"labels":{"x":"1","y":"2"}},{"name":"a","value":4}]}"#;
        let expected = vec![
            ("a".to_owned(), r#"{"x":"1","y":"2"}"#.to_owned(), 3),
            ("a".to_owned(), "{}".to_owned(), 4),
        ];
        assert_eq!(read(body.as_bytes()).unwrap(), expected);
    }
}

//! Prometheus' HTTP API, as far as it is needed: an instant query, and whether a metric exists.
//!
//! Two halves: pure functions that make a request's address and read an answer, and a few lines that send it. What
//! Thanos, Mimir and VictoriaMetrics answer is read too: it is the same API.

use async_trait::async_trait;
use futures::StreamExt;
use reqwest::{Client, Response, Url, redirect};
use rollout::{Duration, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use super::{MetricsError, MetricsSource};

/// Longest wait for a whole answer. Checks are asked each ten seconds; a server that takes five is not well.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Longest answer. One number is 200 bytes; a query that forgot to aggregate may return every series there is.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Longest list of metric names: 100,000 names of 160 bytes, which is more than a Prometheus of one team has.
const NAMES_BYTES_MAX: usize = 16 << 20;

/// Oldest sample that counts: five minutes, which is how long Prometheus itself calls a series alive that was not scraped.
const STALE_AFTER: Duration = Duration::from_secs(5 * 60);

/// How much later than it was asked for a sample may be. Servers round; none may look ahead (F8).
const ROUNDED_BY: Duration = Duration::from_secs(1);

/// Longest piece of an answer's words that is repeated, in characters.
const WORDS_MAX: usize = 300;

/// A Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    client: Client,
    base: Url,
    /// How messages name it: without user and password.
    name: String,
}

impl Prometheus {
    /// The Prometheus at this address; what comes before `/api/v1` may have a path. Nothing is asked yet.
    ///
    /// # Errors
    /// The address is none.
    pub fn at(url: &str) -> Result<Self, MetricsError> {
        let (base, name) = address(url)?;
        // A proxy from the environment is for the way out; this one is next door. A redirect would lead to a sign-in page.
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(ANSWER_MAX)
            .build();
        let client = client.map_err(|source| MetricsError::Unreachable {
            url: name.clone(),
            source,
        })?;
        Ok(Self { client, base, name })
    }

    /// Those of these metrics that it has never heard of.
    ///
    /// # Errors
    /// It cannot be asked.
    pub async fn unknown_of(&self, metrics: &[String]) -> Result<Vec<String>, MetricsError> {
        let mut unknown = Vec::new();
        for metric in metrics {
            let (status, body) = self.get(values_url(&self.base, metric)).await?;
            if read_names(status, &body, &self.name)?.is_empty() {
                unknown.push(metric.clone());
            }
        }
        Ok(unknown)
    }

    /// The names of all metrics that it knows, in its order.
    ///
    /// # Errors
    /// It cannot be asked, or the list is longer than 16 MiB.
    pub async fn names(&self) -> Result<Vec<String>, MetricsError> {
        let url = endpoint(&self.base, "label/__name__/values", &[]);
        let (status, body) = self.get_long(url, NAMES_BYTES_MAX).await?;
        read_names(status, &body, &self.name)
    }

    async fn get(&self, url: Url) -> Result<(u16, Vec<u8>), MetricsError> {
        self.get_long(url, BODY_BYTES_MAX).await
    }

    async fn get_long(&self, url: Url, bytes_max: usize) -> Result<(u16, Vec<u8>), MetricsError> {
        let unreachable = |source: reqwest::Error| MetricsError::Unreachable {
            url: self.name.clone(),
            source: source.without_url(),
        };
        let response = self.client.get(url).send().await.map_err(unreachable)?;
        let status = response.status().as_u16();
        Ok((status, self.body(response, bytes_max).await?))
    }

    async fn body(&self, response: Response, bytes_max: usize) -> Result<Vec<u8>, MetricsError> {
        let mut body = Vec::new();
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces.next().await {
            let unreachable = |source: reqwest::Error| MetricsError::Unreachable {
                url: self.name.clone(),
                source: source.without_url(),
            };
            body.extend_from_slice(&piece.map_err(unreachable)?);
            if body.len() > bytes_max {
                return Err(MetricsError::Shape {
                    got: format!("more than {} MiB", bytes_max >> 20),
                });
            }
        }
        Ok(body)
    }
}

#[async_trait]
impl MetricsSource for Prometheus {
    async fn ask(&self, query: &str, at: Timestamp) -> Result<Option<f64>, MetricsError> {
        let (status, body) = self.get(query_url(&self.base, query, at)).await?;
        read_value(status, &body, at, &self.name)
    }
}

/// The address of a Prometheus, and how to name it.
fn address(text: &str) -> Result<(Url, String), MetricsError> {
    let wrong = |reason: String| MetricsError::Address {
        url: text.to_owned(),
        reason,
    };
    let url: Url = text.parse().map_err(|error| wrong(format!("{error}")))?;
    if url.scheme() != "http" {
        return Err(wrong(format!(
            "only http:// is spoken, not {}://",
            url.scheme()
        )));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // The command line is no place for a password: every user of the machine can read it.
        let reason = "it holds a user or a password; let a proxy beside Friday add them".to_owned();
        return Err(MetricsError::Address {
            url: format!("http://…@{}", url.host_str().unwrap_or_default()),
            reason,
        });
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("expected no ? and no #".to_owned()));
    }
    let name = url.as_str().trim_end_matches('/').to_owned();
    Ok((url, name))
}

fn endpoint(base: &Url, path: &str, parameters: &[(&str, &str)]) -> Url {
    let mut url = base.clone();
    url.set_path(&format!(
        "{}/api/v1/{path}",
        base.path().trim_end_matches('/')
    ));
    url.query_pairs_mut().extend_pairs(parameters);
    url
}

/// The address of an instant query.
fn query_url(base: &Url, query: &str, at: Timestamp) -> Url {
    let millis = at.as_millisecond();
    let time = format!("{}.{:03}", millis.div_euclid(1000), millis.rem_euclid(1000));
    endpoint(base, "query", &[("query", query), ("time", &time)])
}

/// The address of the list of metrics that are called like this: itself, or nothing.
fn values_url(base: &Url, metric: &str) -> Url {
    endpoint(base, "label/__name__/values", &[("match[]", metric)])
}

/// An answer, whatever it is about.
#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    data: Value,
    #[serde(default, rename = "errorType")]
    kind: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    kind: String,
    result: Value,
}

/// A value of a series: its time in seconds, and a number as text. Histograms have another key.
#[derive(Deserialize)]
struct Series {
    value: Option<(f64, String)>,
}

/// What the answer is about, if it is one.
fn read_answer(status: u16, body: &[u8], url: &str) -> Result<Value, MetricsError> {
    let url = url.to_owned();
    let answer: Answer = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        Err(_) if !(200..300).contains(&status) => {
            return Err(MetricsError::Status { url, status });
        }
        Err(_) if body.is_empty() => {
            return Err(MetricsError::Alien {
                url,
                reason: "its answer is empty".to_owned(),
            });
        }
        Err(error) => {
            return Err(MetricsError::Alien {
                url,
                reason: format!("not its JSON: {error}"),
            });
        }
    };
    if answer.status != "success" {
        return Err(MetricsError::Refused {
            url,
            kind: words(&answer.kind),
            words: words(&answer.error),
        });
    }
    if !(200..300).contains(&status) {
        return Err(MetricsError::Status { url, status });
    }
    // Notes on how a query is written begin with PromQL; every other warning is of data that could not be read.
    if let Some(warning) = answer
        .warnings
        .iter()
        .find(|warning| !warning.starts_with("PromQL"))
    {
        return Err(MetricsError::Partial {
            url,
            words: words(warning),
        });
    }
    Ok(answer.data)
}

/// The one number of an answer to an instant query at `at`; none if it is empty, no number, infinite or too old (F2).
fn read_value(
    status: u16,
    body: &[u8],
    at: Timestamp,
    url: &str,
) -> Result<Option<f64>, MetricsError> {
    let alien = |error: serde_json::Error| MetricsError::Alien {
        url: url.to_owned(),
        reason: error.to_string(),
    };
    let data: Data = serde_json::from_value(read_answer(status, body, url)?).map_err(alien)?;
    let shape = |got: String| MetricsError::Shape { got };
    let value = match data.kind.as_str() {
        "scalar" => Some(serde_json::from_value(data.result).map_err(alien)?),
        "vector" => {
            let series: Vec<Series> = serde_json::from_value(data.result).map_err(alien)?;
            match series.len() {
                0 => None,
                1 => match series.into_iter().next().and_then(|series| series.value) {
                    Some(value) => Some(value),
                    None => return Err(shape("a histogram".to_owned())),
                },
                many => return Err(shape(format!("{many} series"))),
            }
        }
        "matrix" => return Err(shape("a range of values".to_owned())),
        other => return Err(shape(format!("a {}", words(other)))),
    };
    let Some((seconds, number)) = value else {
        return Ok(None);
    };
    let number: f64 = number.parse().map_err(|_| MetricsError::Alien {
        url: url.to_owned(),
        reason: format!("{:?} is no number", words(&number)),
    })?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "milliseconds since 1970 are exact far beyond our time"
    )]
    let asked = at.as_millisecond() as f64 / 1000.0;
    let is_of_time =
        seconds >= asked - STALE_AFTER.as_secs_f64() && seconds <= asked + ROUNDED_BY.as_secs_f64();
    Ok(Some(number).filter(|number| number.is_finite() && is_of_time))
}

/// The names in a list of names.
fn read_names(status: u16, body: &[u8], url: &str) -> Result<Vec<String>, MetricsError> {
    let data = read_answer(status, body, url)?;
    let alien = |error: serde_json::Error| MetricsError::Alien {
        url: url.to_owned(),
        reason: error.to_string(),
    };
    serde_json::from_value(data).map_err(alien)
}

/// Somebody else's words on one line, with an end.
fn words(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(WORDS_MAX)
        .collect()
}

#[cfg(test)]
mod tests;

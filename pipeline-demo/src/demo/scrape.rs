//! Reads what the parts say of themselves.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

/// Longest wait for an answer on loopback.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A client for the parts' own pages.
#[derive(Debug)]
pub(super) struct Scrape {
    client: reqwest::Client,
}

/// One sample of Prometheus' text format.
#[derive(Debug, PartialEq)]
pub(super) struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
}

impl Scrape {
    /// A client that asks no other host's proxy.
    pub(super) fn new() -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(ANSWER_MAX)
            .build();
        Ok(Self {
            client: client.context("no HTTP client")?,
        })
    }

    /// The body of a successful answer.
    pub(super) async fn get(&self, url: &str) -> anyhow::Result<String> {
        let answer = self
            .client
            .get(url)
            .send()
            .await
            .with_context(|| format!("{url} does not answer"))?;
        let status = answer.status();
        let body = answer
            .text()
            .await
            .with_context(|| format!("{url} broke off"))?;
        if !status.is_success() {
            bail!("{url} answered {status}: {body}");
        }
        Ok(body)
    }

    /// The same as JSON.
    pub(super) async fn json(&self, url: &str) -> anyhow::Result<Value> {
        serde_json::from_str(&self.get(url).await?)
            .with_context(|| format!("{url} answered no JSON"))
    }
}

/// The samples of a page; lines that are none are passed over.
pub(super) fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            Some(Sample {
                name,
                labels: labels.trim_end_matches('}'),
                value: value.parse().ok()?,
            })
        })
}

/// The sum over all series of `name` whose labels have all of `wanted` and none of `unwanted`, each `key="value"`.
pub(super) fn sum(text: &str, name: &str, wanted: &[&str], unwanted: &[&str]) -> u64 {
    let total: f64 = samples(text)
        .filter(|sample| sample.name == name)
        .filter(|sample| wanted.iter().all(|label| sample.labels.contains(label)))
        .filter(|sample| !unwanted.iter().any(|label| sample.labels.contains(label)))
        .map(|sample| sample.value)
        .sum();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters are whole and positive"
    )]
    let total = total as u64;
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_series_that_are_asked_for() {
        let page = "# HELP a_total x\na_total{arm=\"canary\",outcome=\"ok\"} 5\na_total{arm=\"canary\",outcome=\"reset\"} 2\n\
                    a_total{arm=\"stable\",outcome=\"reset\"} 1\nb_total 7\n";
        assert_eq!(sum(page, "a_total", &["arm=\"canary\""], &[]), 7);
        assert_eq!(
            sum(page, "a_total", &["arm=\"canary\""], &["outcome=\"ok\""]),
            2
        );
        assert_eq!(sum(page, "b_total", &[], &[]), 7);
        assert_eq!(sum(page, "c_total", &[], &[]), 0);
    }
}

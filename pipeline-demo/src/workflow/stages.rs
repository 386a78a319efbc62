//! The stages of a worker: features in an order in which each finds what it asks for.

use serde_json::{Map, Value};

use super::PARALLEL_DEFAULT;
use super::route::Route;
use crate::features::FEATURES;
use crate::tweet::Tweet;

/// A stage: a feature, and for which tweets it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Its place in [`FEATURES`].
    feature: usize,
    /// All of them must hold.
    when: Vec<Condition>,
}

/// Something that another stage found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Where it stands in the result: the feature's name, then keys.
    pub path: Vec<String>,
    /// The values with which it holds, as text.
    pub values: Vec<String>,
}

impl Condition {
    fn holds(&self, found: &Map<String, Value>) -> bool {
        let mut keys = self.path.iter();
        let first = keys.next().and_then(|key| found.get(key));
        let value = keys.fold(first, |value, key| value?.get(key));
        let is_among = |text: &str| self.values.iter().any(|value| value == text);
        match value {
            None | Some(Value::Null | Value::Object(_)) => false,
            Some(Value::String(text)) => is_among(text),
            Some(Value::Array(list)) => list.iter().any(|v| v.as_str().is_some_and(is_among)),
            Some(Value::Bool(truth)) => is_among(&truth.to_string()),
            // 0, 0.0 and 0e0 are one number.
            Some(Value::Number(number)) => {
                let same = |value: &String| value.parse().ok() == number.as_f64();
                self.values.iter().any(same)
            }
        }
    }
}

impl Stage {
    pub(super) const fn new(feature: usize, when: Vec<Condition>) -> Self {
        Self { feature, when }
    }

    /// The feature's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        FEATURES[self.feature].name()
    }
}

/// What a worker does with each tweet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workflow {
    /// In the order in which they run.
    stages: Vec<Stage>,
    /// A tweet takes the first that may be its own; where none may, or there is none, all stages.
    routes: Vec<Route>,
    parallel: usize,
}

impl Default for Workflow {
    /// Every feature for every tweet, in the order of [`FEATURES`].
    fn default() -> Self {
        Self {
            stages: (0..FEATURES.len())
                .map(|n| Stage::new(n, Vec::new()))
                .collect(),
            routes: Vec::new(),
            parallel: PARALLEL_DEFAULT,
        }
    }
}

impl Workflow {
    /// Stages in an order in which every stage comes after those that it asks about.
    pub(super) const fn new(stages: Vec<Stage>, routes: Vec<Route>, parallel: usize) -> Self {
        Self {
            stages,
            routes,
            parallel,
        }
    }

    /// The stages, in the order in which they run.
    #[must_use]
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The routes, in the order in which they are offered to a tweet.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Tasks that one worker takes at once; more are answered with 503.
    #[must_use]
    pub const fn parallel(&self) -> usize {
        self.parallel
    }

    /// What is found out about a tweet: a key for each stage of its route whose conditions hold.
    ///
    /// The stages of one tweet run one after the other. Each takes microseconds, less than handing it to another thread
    /// would; tweets run at once, up to [`parallel`](Self::parallel).
    #[must_use]
    pub fn run(&self, tweet: &Tweet) -> Map<String, Value> {
        let route = self.routes.iter().find(|route| route.takes(tweet));
        let mut found = Map::new();
        for (at, stage) in self.stages.iter().enumerate() {
            let is_on_route = route.is_none_or(|route| route.stages.contains(&at));
            if is_on_route && stage.when.iter().all(|condition| condition.holds(&found)) {
                let feature = FEATURES[stage.feature];
                found.insert(feature.name().to_owned(), feature.of(tweet));
            }
        }
        found
    }
}

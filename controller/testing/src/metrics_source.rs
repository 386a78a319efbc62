//! A source of metrics in memory.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use friday::metrics_source::{MetricsError, MetricsSource};
use rollout::Timestamp;

/// A source of metrics that answers as it is told.
#[derive(Debug, Default)]
pub struct FakeMetricsSource {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By a piece of the query; the newest that fits counts.
    answers: Vec<(String, Option<f64>)>,
    mood: Mood,
    asked: Vec<(String, Timestamp)>,
}

#[derive(Debug, Clone, Copy, Default)]
enum Mood {
    #[default]
    Well,
    Down,
    Stuck,
}

impl FakeMetricsSource {
    /// From now on, queries that hold this piece have this value, or none. All others have none.
    pub fn set(&self, piece: &str, value: Option<f64>) {
        self.state().answers.push((piece.to_owned(), value));
    }

    /// From now on every question fails.
    pub fn go_down(&self) {
        self.state().mood = Mood::Down;
    }

    /// From now on no question comes back.
    pub fn get_stuck(&self) {
        self.state().mood = Mood::Stuck;
    }

    /// It answers again. Who asked while it was stuck waits for ever.
    pub fn get_well(&self) {
        self.state().mood = Mood::Well;
    }

    /// Every question so far, and the time it asked for.
    pub fn asked(&self) -> Vec<(String, Timestamp)> {
        self.state().asked.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl MetricsSource for FakeMetricsSource {
    async fn ask(&self, query: &str, at: Timestamp) -> Result<Option<f64>, MetricsError> {
        let (mood, value) = {
            let mut state = self.state();
            state.asked.push((query.to_owned(), at));
            let value = state
                .answers
                .iter()
                .rev()
                .find(|(piece, _)| query.contains(piece.as_str()));
            (state.mood, value.and_then(|(_, value)| *value))
        };
        match mood {
            Mood::Well => Ok(value),
            Mood::Down => Err(MetricsError::Status {
                url: "http://prometheus:9090".to_owned(),
                status: 503,
            }),
            Mood::Stuck => std::future::pending().await,
        }
    }
}

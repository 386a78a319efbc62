//! PostgreSQL as the sink, the statistics and the jobs use it, on a server of a test's own.

use std::sync::Arc;

use pipeline_demo::sink::{PostgresConfig, PostgresStorage};
use sqlx::PgPool;

use crate::support::Server;

/// A server. Dropped, it is stopped and its folder removed.
pub(crate) struct Postgres(Server);

impl Postgres {
    pub(crate) async fn start() -> Self {
        Self(Server::start().await)
    }

    /// Starts the server that was stopped, and waits until it answers.
    pub(crate) async fn start_again(&mut self) {
        self.0.start_again().await;
    }

    /// Ends it at once, as a crash does: no transaction finishes, connections break.
    pub(crate) fn stop(&mut self) {
        self.0.stop();
    }

    pub(crate) fn url(&self) -> String {
        self.0.url()
    }

    pub(crate) fn config(&self) -> PostgresConfig {
        PostgresConfig::new(&self.url(), None).unwrap()
    }

    pub(crate) async fn storage(&self) -> Arc<PostgresStorage> {
        Arc::new(PostgresStorage::open(&self.config()).await.unwrap())
    }

    /// For a test's own questions.
    pub(crate) async fn pool(&self) -> PgPool {
        PgPool::connect(&self.url()).await.unwrap()
    }
}

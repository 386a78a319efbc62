//! PostgreSQL's own words for jobs, and the common ones for reading.

use async_trait::async_trait;
use sqlx::{PgConnection, Postgres, Transaction};

use super::{PostgresStorage, failed};
use crate::jobs::Lock;
use crate::jobs::store::REMOVED_MAX;
use crate::seeded::stable_hash;
use crate::sink::storage::StorageError;

reconcile_store!(PostgresStorage, PgConnection, failed);
job_store!(PostgresStorage, failed);
stats_store!(PostgresStorage, failed);

impl PostgresStorage {
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.pool.begin().await
    }

    async fn own_lock(
        &self,
        job: &str,
        _holder: &str,
        _now_ms: i64,
    ) -> Result<Option<Box<dyn Lock>>, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        let key = stable_hash(format!("pipeline-demo job {job}").as_bytes()).cast_signed();
        let taken: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(key)
            .fetch_one(&mut *connection)
            .await?;
        if !taken {
            return Ok(None);
        }
        // Out of the pool: if it is dropped it must be closed, because the lock is the connection's.
        let connection = connection.detach();
        Ok(Some(Box::new(AdvisoryLock { connection, key })))
    }

    /// One statement: what a sink adds meanwhile to a row that is folded away becomes a row of its own.
    async fn own_fold(&self, from_s: i64, to_s: i64, before_s: i64) -> Result<u64, sqlx::Error> {
        let folded: i64 = sqlx::query_scalar(
            "WITH gone AS (
                DELETE FROM aggregates WHERE width_s = $1 AND bucket_s + $1 <= $3 RETURNING *
             ), into_wider AS (
                INSERT INTO aggregates (kind, bucket_s, width_s, key, release, count, sentiment_micros)
                SELECT kind, bucket_s / $2 * $2, $2, key, release, sum(count), sum(sentiment_micros)
                FROM gone GROUP BY 1, 2, 3, 4, 5 HAVING sum(count) <> 0 OR sum(sentiment_micros) <> 0
                ON CONFLICT (kind, bucket_s, width_s, key, release) DO UPDATE SET
                    count = aggregates.count + excluded.count,
                    sentiment_micros = aggregates.sentiment_micros + excluded.sentiment_micros
             ) SELECT count(*) FROM gone",
        )
        .bind(from_s)
        .bind(to_s)
        .bind(before_s)
        .fetch_one(&self.pool)
        .await?;
        Ok(folded.cast_unsigned())
    }

    async fn own_remove_rows(&self, before_ms: i64) -> Result<u64, sqlx::Error> {
        let removed: i64 = sqlx::query_scalar(
            "WITH old_results AS (
                DELETE FROM results WHERE tweet_id IN (
                    SELECT tweet_id FROM results WHERE stored_ms < $1 AND NOT EXISTS (
                        SELECT FROM reconciled WHERE partition = origin_partition AND next_offset <= origin_offset)
                    LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING 1
             ), old_letters AS (
                DELETE FROM malformed WHERE (topic, partition, \"offset\") IN (
                    SELECT topic, partition, \"offset\" FROM malformed AS m WHERE stored_ms < $1 AND NOT EXISTS (
                        SELECT FROM reconciled AS r
                        WHERE r.partition = m.origin_partition AND r.next_offset <= m.origin_offset)
                    LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING 1
             ), old_duplicates AS (
                DELETE FROM duplicates WHERE (origin_partition, origin_offset) IN (
                    SELECT origin_partition, origin_offset FROM duplicates WHERE stored_ms < $1 AND NOT EXISTS (
                        SELECT FROM reconciled WHERE partition = origin_partition AND next_offset <= origin_offset)
                    LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING 1
             ) SELECT (SELECT count(*) FROM old_results) + (SELECT count(*) FROM old_letters)
                + (SELECT count(*) FROM old_duplicates)",
        )
        .bind(before_ms)
        .bind(REMOVED_MAX)
        .fetch_one(&self.pool)
        .await?;
        Ok(removed.cast_unsigned())
    }
}

/// A session's advisory lock. PostgreSQL frees it as soon as the connection is gone, however its holder ended.
struct AdvisoryLock {
    connection: PgConnection,
    key: i64,
}

#[async_trait]
impl Lock for AdvisoryLock {
    async fn held(&mut self, _now_ms: i64) -> Result<bool, StorageError> {
        // While the connection answers, the lock is ours.
        let answer: Result<i32, _> = sqlx::query_scalar("SELECT 1")
            .fetch_one(&mut self.connection)
            .await;
        Ok(answer.is_ok())
    }

    async fn release(mut self: Box<Self>) -> Result<(), StorageError> {
        let Self {
            mut connection,
            key,
        } = *self;
        sqlx::query("SELECT pg_advisory_unlock($1)")
            .bind(key)
            .execute(&mut connection)
            .await
            .map_err(|error| failed("unlock a job", error))?;
        sqlx::Connection::close(connection)
            .await
            .map_err(|error| failed("unlock a job", error))
    }
}

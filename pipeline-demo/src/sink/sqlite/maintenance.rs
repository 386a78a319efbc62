//! SQLite's own words for jobs, and the common ones for reading.

use async_trait::async_trait;
use sqlx::{Sqlite, SqliteConnection, SqlitePool, Transaction};

use super::{SqliteStorage, failed};
use crate::jobs::Lock;
use crate::jobs::store::{LEASE_MS, REMOVED_MAX};
use crate::sink::storage::StorageError;

reconcile_store!(SqliteStorage, SqliteConnection, failed);
job_store!(SqliteStorage, failed);
stats_store!(SqliteStorage, failed);

impl SqliteStorage {
    /// A transaction that writes from the beginning: one that reads first may find another writer before it.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.pool.begin_with("BEGIN IMMEDIATE").await
    }

    async fn own_lock(
        &self,
        job: &str,
        holder: &str,
        now_ms: i64,
    ) -> Result<Option<Box<dyn Lock>>, sqlx::Error> {
        let lease = Lease {
            pool: self.pool.clone(),
            job: job.to_owned(),
            holder: holder.to_owned(),
        };
        let taken = sqlx::query(
            "INSERT INTO job_leases (job, holder, until_ms) VALUES ($1, $2, $3)
             ON CONFLICT (job) DO UPDATE SET holder = excluded.holder, until_ms = excluded.until_ms
             WHERE job_leases.until_ms <= $4",
        )
        .bind(job)
        .bind(holder)
        .bind(now_ms + LEASE_MS)
        .bind(now_ms)
        .execute(&self.pool)
        .await?;
        Ok((taken.rows_affected() > 0).then(|| Box::new(lease) as Box<dyn Lock>))
    }

    async fn own_fold(&self, from_s: i64, to_s: i64, before_s: i64) -> Result<u64, sqlx::Error> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO aggregates (kind, bucket_s, width_s, key, release, count, sentiment_micros)
             SELECT kind, bucket_s / $2 * $2, $2, key, release, sum(count), sum(sentiment_micros)
             FROM aggregates WHERE width_s = $1 AND bucket_s + $1 <= $3
             GROUP BY 1, 2, 3, 4, 5 HAVING sum(count) <> 0 OR sum(sentiment_micros) <> 0
             ON CONFLICT (kind, bucket_s, width_s, key, release) DO UPDATE SET
                count = count + excluded.count, sentiment_micros = sentiment_micros + excluded.sentiment_micros",
        )
        .bind(from_s)
        .bind(to_s)
        .bind(before_s)
        .execute(&mut *transaction)
        .await?;
        let folded =
            sqlx::query("DELETE FROM aggregates WHERE width_s = $1 AND bucket_s + $1 <= $2")
                .bind(from_s)
                .bind(before_s)
                .execute(&mut *transaction)
                .await?;
        transaction.commit().await?;
        Ok(folded.rows_affected())
    }

    async fn own_remove_rows(&self, before_ms: i64) -> Result<u64, sqlx::Error> {
        let mut removed = 0;
        let mut transaction = self.begin().await?;
        for sql in [
            "DELETE FROM results WHERE tweet_id IN (
                SELECT tweet_id FROM results WHERE stored_ms < $1 AND NOT EXISTS (
                    SELECT 1 FROM reconciled WHERE partition = origin_partition AND next_offset <= origin_offset)
                LIMIT $2)",
            "DELETE FROM malformed WHERE (topic, partition, offset) IN (
                SELECT topic, partition, offset FROM malformed AS m WHERE stored_ms < $1 AND NOT EXISTS (
                    SELECT 1 FROM reconciled AS r
                    WHERE r.partition = m.origin_partition AND r.next_offset <= m.origin_offset)
                LIMIT $2)",
            "DELETE FROM duplicates WHERE (origin_partition, origin_offset) IN (
                SELECT origin_partition, origin_offset FROM duplicates WHERE stored_ms < $1 AND NOT EXISTS (
                    SELECT 1 FROM reconciled WHERE partition = origin_partition AND next_offset <= origin_offset)
                LIMIT $2)",
        ] {
            let gone = sqlx::query(sql)
                .bind(before_ms)
                .bind(REMOVED_MAX)
                .execute(&mut *transaction)
                .await?;
            removed += gone.rows_affected();
        }
        transaction.commit().await?;
        Ok(removed)
    }
}

/// A row with an end. Whoever holds it renews it in time; after its end anyone may take it.
struct Lease {
    pool: SqlitePool,
    job: String,
    holder: String,
}

#[async_trait]
impl Lock for Lease {
    async fn held(&mut self, now_ms: i64) -> Result<bool, StorageError> {
        let renewed = sqlx::query(
            "UPDATE job_leases SET until_ms = $3 WHERE job = $1 AND holder = $2 AND until_ms > $4",
        )
        .bind(&self.job)
        .bind(&self.holder)
        .bind(now_ms + LEASE_MS)
        .bind(now_ms)
        .execute(&self.pool)
        .await
        .map_err(|error| failed("renew a job's lease", error))?;
        Ok(renewed.rows_affected() > 0)
    }

    async fn release(self: Box<Self>) -> Result<(), StorageError> {
        sqlx::query("DELETE FROM job_leases WHERE job = $1 AND holder = $2")
            .bind(&self.job)
            .bind(&self.holder)
            .execute(&self.pool)
            .await
            .map_err(|error| failed("give a job's lease back", error))?;
        Ok(())
    }
}

//! The book of jobs.

/// [`crate::jobs::JobStore`] for a storage with a `pool`, a `begin()` and the `own_…` methods of its dialect.
macro_rules! job_store {
    ($storage:ty, $failed:path) => {
        #[async_trait::async_trait]
        impl crate::jobs::JobStore for $storage {
            async fn lock(
                &self,
                job: &str,
                holder: &str,
                now_ms: i64,
            ) -> Result<Option<Box<dyn crate::jobs::Lock>>, crate::sink::StorageError> {
                let lock = self.own_lock(job, holder, now_ms).await;
                lock.map_err(|error| $failed("lock a job", error))
            }

            async fn last_due(
                &self,
                job: &str,
                now_ms: i64,
            ) -> Result<i64, crate::sink::StorageError> {
                let last = async {
                    sqlx::query(
                        "INSERT INTO jobs (job, last_due_ms) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                    )
                    .bind(job)
                    .bind(now_ms)
                    .execute(&self.pool)
                    .await?;
                    sqlx::query_scalar("SELECT last_due_ms FROM jobs WHERE job = $1")
                        .bind(job)
                        .fetch_one(&self.pool)
                        .await
                };
                last.await
                    .map_err(|error| $failed("say when a job was due", error))
            }

            async fn attempts(
                &self,
                job: &str,
                due_ms: i64,
                now_ms: i64,
            ) -> Result<i64, crate::sink::StorageError> {
                let attempts = async {
                    sqlx::query(
                        "UPDATE job_runs SET ended_ms = $2, outcome = 'abandoned',
                            detail = 'its node did not end it' WHERE job = $1 AND ended_ms IS NULL",
                    )
                    .bind(job)
                    .bind(now_ms)
                    .execute(&self.pool)
                    .await?;
                    sqlx::query_scalar(
                        "SELECT coalesce(max(attempt), 0) FROM job_runs WHERE job = $1 AND due_ms = $2",
                    )
                    .bind(job)
                    .bind(due_ms)
                    .fetch_one(&self.pool)
                    .await
                };
                attempts
                    .await
                    .map_err(|error| $failed("look a job's runs up", error))
            }

            async fn begin(
                &self,
                run: &crate::jobs::Begun,
            ) -> Result<(), crate::sink::StorageError> {
                sqlx::query(
                    "INSERT INTO job_runs (job, due_ms, attempt, node, started_ms, outcome, detail)
                     VALUES ($1, $2, $3, $4, $5, 'running', '')",
                )
                .bind(&run.job)
                .bind(run.due_ms)
                .bind(run.attempt)
                .bind(&run.node)
                .bind(run.started_ms)
                .execute(&self.pool)
                .await
                .map_err(|error| $failed("write down a job's run", error))?;
                Ok(())
            }

            async fn end(
                &self,
                run: &crate::jobs::Begun,
                ended_ms: i64,
                outcome: crate::jobs::Outcome,
                detail: &str,
            ) -> Result<(), crate::sink::StorageError> {
                let ended = async {
                    let mut transaction = self.begin().await?;
                    // What another node wrote off stays so.
                    sqlx::query(
                        "UPDATE job_runs SET ended_ms = $4, outcome = $5, detail = $6
                         WHERE job = $1 AND due_ms = $2 AND attempt = $3 AND ended_ms IS NULL",
                    )
                    .bind(&run.job)
                    .bind(run.due_ms)
                    .bind(run.attempt)
                    .bind(ended_ms)
                    .bind(outcome.name())
                    .bind(detail)
                    .execute(&mut *transaction)
                    .await?;
                    if outcome.is_final() {
                        sqlx::query(
                            "UPDATE jobs SET last_due_ms = $2 WHERE job = $1 AND last_due_ms < $2",
                        )
                        .bind(&run.job)
                        .bind(run.due_ms)
                        .execute(&mut *transaction)
                        .await?;
                    }
                    transaction.commit().await
                };
                ended
                    .await
                    .map_err(|error: sqlx::Error| $failed("write down a job's end", error))
            }

            async fn runs(
                &self,
                job: Option<&str>,
                after: Option<&crate::jobs::RunPlace>,
                limit: i64,
            ) -> Result<Vec<crate::jobs::JobRun>, crate::sink::StorageError> {
                let rows: Vec<(String, i64, i64, String, i64, Option<i64>, String, String)> =
                    sqlx::query_as(
                        "SELECT job, due_ms, attempt, node, started_ms, ended_ms, outcome, detail FROM job_runs
                         WHERE (CAST($1 AS bigint) IS NULL OR (started_ms, job, due_ms, attempt) < ($1, $2, $3, $4))
                            AND (CAST($5 AS text) IS NULL OR job = $5)
                         ORDER BY started_ms DESC, job DESC, due_ms DESC, attempt DESC LIMIT $6",
                    )
                    .bind(after.map(|run| run.started_ms))
                    .bind(after.map(|run| run.job.as_str()))
                    .bind(after.map(|run| run.due_ms))
                    .bind(after.map(|run| run.attempt))
                    .bind(job)
                    .bind(limit)
                    .fetch_all(&self.pool)
                    .await
                    .map_err(|error| $failed("list the runs of jobs", error))?;
                Ok(rows
                    .into_iter()
                    .map(
                        |(job, due_ms, attempt, node, started_ms, ended_ms, outcome, detail)| {
                            crate::jobs::JobRun {
                                job,
                                due_ms,
                                attempt,
                                node,
                                started_ms,
                                ended_ms,
                                delay_ms: started_ms - due_ms,
                                outcome,
                                detail,
                            }
                        },
                    )
                    .collect())
            }

            async fn fold(
                &self,
                from_s: i64,
                to_s: i64,
                before_s: i64,
            ) -> Result<u64, crate::sink::StorageError> {
                let folded = self.own_fold(from_s, to_s, before_s).await;
                folded.map_err(|error| $failed("fold its counts", error))
            }

            async fn remove_rows(&self, before_ms: i64) -> Result<u64, crate::sink::StorageError> {
                let removed = self.own_remove_rows(before_ms).await;
                removed.map_err(|error| $failed("remove old rows", error))
            }

            async fn remove_records(
                &self,
                before_ms: i64,
            ) -> Result<u64, crate::sink::StorageError> {
                let removed = async {
                    let runs = sqlx::query(
                        "DELETE FROM job_runs WHERE ended_ms IS NOT NULL AND started_ms < $1",
                    )
                    .bind(before_ms)
                    .execute(&self.pool)
                    .await?;
                    let posts = sqlx::query("DELETE FROM counter_posts WHERE posted_ms < $1")
                        .bind(before_ms)
                        .execute(&self.pool)
                        .await?;
                    Ok(runs.rows_affected() + posts.rows_affected())
                };
                removed
                    .await
                    .map_err(|error: sqlx::Error| $failed("remove old records", error))
            }
        }
    };
}

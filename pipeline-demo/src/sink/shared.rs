//! What both engines do with the same words: comparing, reading counts, keeping book of jobs.
//!
//! The statements are the common part of both dialects (`$1`, `CAST`, no arrays); only the types of connections differ,
//! so the code is a macro that each engine expands once. What a dialect does better in its own words stands beside it.

/// [`super::ReconcileStore`] for a storage with a `pool` and a `begin()`.
macro_rules! reconcile_store {
    ($storage:ty, $connection:ty, $failed:path) => {
        #[async_trait::async_trait]
        impl crate::sink::ReconcileStore for $storage {
            async fn reconcile(
                &self,
                range: crate::sink::Range,
                now_ms: i64,
            ) -> Result<crate::sink::Reconciled, crate::sink::StorageError> {
                let reconciled = self.try_reconcile(range, now_ms).await;
                reconciled.map_err(|error| $failed("compare its rows with the bus", error))
            }

            async fn reconciled(
                &self,
            ) -> Result<Vec<crate::sink::Reconciled>, crate::sink::StorageError> {
                let rows: Vec<(i64, i64, i64, i64, i64, i64, i64, i64, i64)> = sqlx::query_as(
                    "SELECT partition, next_offset, expected, results, malformed, duplicates, doubled,
                        (SELECT CAST(coalesce(sum(m.next_offset - m.first_offset), 0) AS bigint) FROM missing AS m
                         WHERE m.partition = reconciled.partition), checked_ms
                     FROM reconciled ORDER BY partition",
                )
                .fetch_all(&self.pool)
                .await
                .map_err(|error| $failed("say how its rows compare with the bus", error))?;
                Ok(rows
                    .into_iter()
                    .map(|row| crate::sink::Reconciled {
                        partition: row.0,
                        next_offset: row.1,
                        expected: row.2,
                        results: row.3,
                        malformed: row.4,
                        duplicates: row.5,
                        doubled: row.6,
                        missing: row.7,
                        checked_ms: row.8,
                    })
                    .collect())
            }

            async fn holes(
                &self,
                limit: i64,
            ) -> Result<Vec<crate::sink::Hole>, crate::sink::StorageError> {
                let rows: Vec<(i64, i64, i64)> = sqlx::query_as(
                    "SELECT partition, first_offset, next_offset FROM missing
                     ORDER BY partition, first_offset LIMIT $1",
                )
                .bind(limit)
                .fetch_all(&self.pool)
                .await
                .map_err(|error| $failed("say what is missing", error))?;
                Ok(rows
                    .into_iter()
                    .map(|(partition, first_offset, next_offset)| crate::sink::Hole {
                        partition,
                        first_offset,
                        next_offset,
                    })
                    .collect())
            }
        }

        impl $storage {
            async fn try_reconcile(
                &self,
                range: crate::sink::Range,
                now_ms: i64,
            ) -> Result<crate::sink::Reconciled, sqlx::Error> {
                use crate::sink::reconcile::{HOLES_MAX, OFFSETS_MAX};
                let mut transaction = self.begin().await?;
                let partition = i64::from(range.partition);
                let before: Option<(i64, i64, i64, i64, i64, i64)> = sqlx::query_as(
                    "SELECT next_offset, expected, results, malformed, duplicates, doubled FROM reconciled
                     WHERE partition = $1",
                )
                .bind(partition)
                .fetch_optional(&mut *transaction)
                .await?;
                let from = match before {
                    // A topic that was made anew counts from 0 again.
                    Some((next, ..)) if next <= range.to => next,
                    Some(_) => range.oldest.min(range.to),
                    None => {
                        let known: Option<i64> = sqlx::query_scalar(
                            "SELECT min(o) FROM (
                                SELECT min(origin_offset) AS o FROM results WHERE origin_partition = $1
                                UNION ALL SELECT min(origin_offset) FROM duplicates WHERE origin_partition = $1
                                UNION ALL SELECT min(\"offset\") FROM malformed
                                    WHERE topic = 'tweets' AND partition = $1) AS k",
                        )
                        .bind(partition)
                        .fetch_one(&mut *transaction)
                        .await?;
                        known.unwrap_or(range.oldest).min(range.oldest).min(range.to)
                    }
                };
                let mut to = range.to.min(from + OFFSETS_MAX);
                // What was missing may have come.
                let old: Vec<(i64, i64)> = sqlx::query_as(
                    "DELETE FROM missing WHERE partition = $1 RETURNING first_offset, next_offset",
                )
                .bind(partition)
                .fetch_all(&mut *transaction)
                .await?;
                let mut holes = Vec::new();
                for (first, next) in old {
                    holes.extend(Self::find_holes(&mut *transaction, partition, first, next).await?);
                }
                let new = Self::find_holes(&mut *transaction, partition, from, to).await?;
                if new.len() as i64 == HOLES_MAX
                    && let Some((_, next)) = new.last()
                {
                    to = *next;
                }
                holes.extend(new);
                for (first, next) in holes {
                    sqlx::query(
                        "INSERT INTO missing (partition, first_offset, next_offset, found_ms)
                         VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
                    )
                    .bind(partition)
                    .bind(first)
                    .bind(next)
                    .bind(now_ms)
                    .execute(&mut *transaction)
                    .await?;
                }
                let (results, duplicates, malformed, found): (i64, i64, i64, i64) = sqlx::query_as(
                    "WITH r AS (SELECT origin_offset AS o FROM results
                            WHERE origin_partition = $1 AND origin_offset >= $2 AND origin_offset < $3),
                        d AS (SELECT origin_offset AS o FROM duplicates
                            WHERE origin_partition = $1 AND origin_offset >= $2 AND origin_offset < $3),
                        m AS (SELECT \"offset\" AS o FROM malformed
                            WHERE topic = 'tweets' AND partition = $1 AND \"offset\" >= $2 AND \"offset\" < $3)
                     SELECT (SELECT count(*) FROM r), (SELECT count(*) FROM d), (SELECT count(*) FROM m),
                        (SELECT count(*) FROM (SELECT o FROM r UNION SELECT o FROM d UNION SELECT o FROM m) AS u)",
                )
                .bind(partition)
                .bind(from)
                .bind(to)
                .fetch_one(&mut *transaction)
                .await?;
                let (_, b_expected, b_results, b_malformed, b_duplicates, b_doubled) =
                    before.unwrap_or_default();
                let mut reconciled = crate::sink::Reconciled {
                    partition,
                    next_offset: to,
                    expected: b_expected + to - from,
                    results: b_results + results,
                    malformed: b_malformed + malformed,
                    duplicates: b_duplicates + duplicates,
                    doubled: b_doubled + results + duplicates + malformed - found,
                    missing: 0,
                    checked_ms: now_ms,
                };
                sqlx::query(
                    "INSERT INTO reconciled (partition, next_offset, expected, results, malformed, duplicates, doubled,
                        checked_ms)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
                     ON CONFLICT (partition) DO UPDATE SET next_offset = excluded.next_offset,
                        expected = excluded.expected, results = excluded.results, malformed = excluded.malformed,
                        duplicates = excluded.duplicates, doubled = excluded.doubled, checked_ms = excluded.checked_ms",
                )
                .bind(partition)
                .bind(reconciled.next_offset)
                .bind(reconciled.expected)
                .bind(reconciled.results)
                .bind(reconciled.malformed)
                .bind(reconciled.duplicates)
                .bind(reconciled.doubled)
                .bind(now_ms)
                .execute(&mut *transaction)
                .await?;
                reconciled.missing = sqlx::query_scalar(
                    "SELECT CAST(coalesce(sum(next_offset - first_offset), 0) AS bigint) FROM missing
                     WHERE partition = $1",
                )
                .bind(partition)
                .fetch_one(&mut *transaction)
                .await?;
                transaction.commit().await?;
                Ok(reconciled)
            }

            /// Offsets from `from` to before `to` that are stored nowhere, as ranges in order.
            async fn find_holes(
                connection: &mut $connection,
                partition: i64,
                from: i64,
                to: i64,
            ) -> Result<Vec<(i64, i64)>, sqlx::Error> {
                // The offset before the first one stands for all that was compared before.
                sqlx::query_as(
                    "SELECT o + 1, after FROM (
                        SELECT o, lead(o, 1, CAST($3 AS bigint)) OVER (ORDER BY o) AS after FROM (
                            SELECT CAST($2 AS bigint) - 1 AS o
                            UNION SELECT origin_offset FROM results
                                WHERE origin_partition = $1 AND origin_offset >= $2 AND origin_offset < $3
                            UNION SELECT origin_offset FROM duplicates
                                WHERE origin_partition = $1 AND origin_offset >= $2 AND origin_offset < $3
                            UNION SELECT \"offset\" FROM malformed
                                WHERE topic = 'tweets' AND partition = $1 AND \"offset\" >= $2 AND \"offset\" < $3
                        ) AS found
                     ) AS gaps WHERE after > o + 1 ORDER BY o LIMIT $4",
                )
                .bind(partition)
                .bind(from)
                .bind(to)
                .bind(crate::sink::reconcile::HOLES_MAX)
                .fetch_all(connection)
                .await
            }
        }
    };
}

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
                before_ms: i64,
                limit: i64,
            ) -> Result<Vec<crate::jobs::JobRun>, crate::sink::StorageError> {
                let rows: Vec<(String, i64, i64, String, i64, Option<i64>, String, String)> =
                    sqlx::query_as(
                        "SELECT job, due_ms, attempt, node, started_ms, ended_ms, outcome, detail FROM job_runs
                         WHERE started_ms < $1 AND (CAST($2 AS text) IS NULL OR job = $2)
                         ORDER BY started_ms DESC, job, due_ms DESC, attempt DESC LIMIT $3",
                    )
                    .bind(before_ms)
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

/// [`crate::stats::StatsStore`] for a storage with a `pool` and a `begin()`.
macro_rules! stats_store {
    ($storage:ty, $failed:path) => {
        #[async_trait::async_trait]
        impl crate::stats::StatsStore for $storage {
            async fn totals(
                &self,
                window: &crate::stats::Window,
                limit: i64,
            ) -> Result<Vec<(String, String, i64, i64)>, crate::sink::StorageError> {
                sqlx::query_as(
                    "SELECT kind, release, CAST(sum(count) AS bigint), CAST(sum(sentiment_micros) AS bigint)
                     FROM aggregates WHERE kind IN ('total', 'late', 'malformed', 'duplicate')
                        AND bucket_s >= $1 AND bucket_s < $2 AND (CAST($3 AS text) IS NULL OR release = $3)
                     GROUP BY kind, release HAVING sum(count) <> 0 ORDER BY 3 DESC, 2 LIMIT $4",
                )
                .bind(window.from_s)
                .bind(window.to_s)
                .bind(&window.release)
                .bind(limit)
                .fetch_all(&self.pool)
                .await
                .map_err(|error| $failed("add its counts up", error))
            }

            async fn top(
                &self,
                kind: crate::sink::Kind,
                window: &crate::stats::Window,
                after: Option<(i64, String)>,
                limit: i64,
            ) -> Result<Vec<(String, i64, i64)>, crate::sink::StorageError> {
                let (count, key) = after.unzip();
                sqlx::query_as(
                    "SELECT key, total, micros FROM (
                        SELECT key, CAST(sum(count) AS bigint) AS total, CAST(sum(sentiment_micros) AS bigint) AS micros
                        FROM aggregates WHERE kind = $1
                            AND bucket_s >= $2 AND bucket_s < $3 AND (CAST($4 AS text) IS NULL OR release = $4)
                        GROUP BY key
                     ) AS t
                     WHERE total <> 0 AND (CAST($5 AS bigint) IS NULL OR total < $5 OR (total = $5 AND key > $6))
                     ORDER BY total DESC, key LIMIT $7",
                )
                .bind(kind.name())
                .bind(window.from_s)
                .bind(window.to_s)
                .bind(&window.release)
                .bind(count)
                .bind(key)
                .bind(limit)
                .fetch_all(&self.pool)
                .await
                .map_err(|error| $failed("list its counts", error))
            }

            async fn over_time(
                &self,
                kind: crate::sink::Kind,
                step_s: i64,
                window: &crate::stats::Window,
                limit: i64,
            ) -> Result<Vec<(i64, String, i64, i64)>, crate::sink::StorageError> {
                // The newest buckets first, whole ones: the caller goes on before the last one.
                sqlx::query_as(
                    "SELECT (bucket_s / $5) * $5 AS step, key, CAST(sum(count) AS bigint),
                        CAST(sum(sentiment_micros) AS bigint)
                     FROM aggregates WHERE kind = $1
                        AND bucket_s >= $2 AND bucket_s < $3 AND (CAST($4 AS text) IS NULL OR release = $4)
                        AND bucket_s >= (
                            SELECT coalesce(min(step), 0) FROM (
                                SELECT DISTINCT (bucket_s / $5) * $5 AS step FROM aggregates WHERE kind = $1
                                    AND bucket_s >= $2 AND bucket_s < $3
                                    AND (CAST($4 AS text) IS NULL OR release = $4)
                                ORDER BY 1 DESC LIMIT $6) AS steps)
                     GROUP BY 1, 2 HAVING sum(count) <> 0 ORDER BY 1 DESC, 2",
                )
                .bind(kind.name())
                .bind(window.from_s)
                .bind(window.to_s)
                .bind(&window.release)
                .bind(step_s)
                .bind(limit)
                .fetch_all(&self.pool)
                .await
                .map_err(|error| $failed("list its counts over time", error))
            }

            async fn counters(
                &self,
                after: Option<(String, String)>,
                limit: i64,
            ) -> Result<Vec<(String, String, i64, i64)>, crate::sink::StorageError> {
                let (name, labels) = after.unwrap_or_default();
                sqlx::query_as(
                    "SELECT name, labels, total, updated_ms FROM counters
                     WHERE name > $1 OR (name = $1 AND labels > $2) ORDER BY name, labels LIMIT $3",
                )
                .bind(name)
                .bind(labels)
                .bind(limit)
                .fetch_all(&self.pool)
                .await
                .map_err(|error| $failed("list the counters", error))
            }

            async fn add(
                &self,
                key: Option<&str>,
                counters: &[(String, String, i64)],
                series_max: i64,
                now_ms: i64,
            ) -> Result<crate::stats::Added, crate::sink::StorageError> {
                let added = async {
                    let mut transaction = self.begin().await?;
                    if let Some(key) = key {
                        let new = sqlx::query(
                            "INSERT INTO counter_posts (key, posted_ms) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                        )
                        .bind(key)
                        .bind(now_ms)
                        .execute(&mut *transaction)
                        .await?;
                        if new.rows_affected() == 0 {
                            return Ok(crate::stats::Added::Before);
                        }
                    }
                    for (name, labels, value) in counters {
                        sqlx::query(
                            "INSERT INTO counters (name, labels, total, updated_ms) VALUES ($1, $2, $3, $4)
                             ON CONFLICT (name, labels) DO UPDATE SET
                                total = counters.total + excluded.total, updated_ms = excluded.updated_ms",
                        )
                        .bind(name)
                        .bind(labels)
                        .bind(value)
                        .bind(now_ms)
                        .execute(&mut *transaction)
                        .await?;
                    }
                    let series: i64 = sqlx::query_scalar("SELECT count(*) FROM counters")
                        .fetch_one(&mut *transaction)
                        .await?;
                    if series > series_max {
                        transaction.rollback().await?;
                        return Ok(crate::stats::Added::TooMany);
                    }
                    transaction.commit().await?;
                    Ok(crate::stats::Added::Now)
                };
                added
                    .await
                    .map_err(|error: sqlx::Error| $failed("add to the counters", error))
            }
        }
    };
}

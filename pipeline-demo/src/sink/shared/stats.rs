//! Reading counts, and keeping those of others.

/// [`crate::stats::StatsStore`] for a storage with a `pool` and a `begin()`.
macro_rules! stats_store {
    ($storage:ty, $failed:path) => {
        impl $storage {
            /// How many rows there are.
            pub(crate) async fn count_rows(&self) -> Result<crate::sink::Stored, crate::sink::StorageError> {
                let (results, malformed): (i64, i64) = sqlx::query_as(
                    "SELECT (SELECT count(*) FROM results), (SELECT count(*) FROM malformed)",
                )
                .fetch_one(&self.pool)
                .await
                .map_err(|error| $failed("count its rows", error))?;
                Ok(crate::sink::Stored {
                    results: results.cast_unsigned(),
                    malformed: malformed.cast_unsigned(),
                })
            }
        }

        #[async_trait::async_trait]
        impl crate::stats::StatsStore for $storage {
            async fn sums(
                &self,
                window: &crate::stats::Window,
            ) -> Result<Vec<(String, i64, i64)>, crate::sink::StorageError> {
                sqlx::query_as(
                    "SELECT kind, CAST(sum(count) AS bigint), CAST(sum(sentiment_micros) AS bigint)
                     FROM aggregates WHERE kind IN ('total', 'late', 'malformed', 'duplicate')
                        AND bucket_s >= $1 AND bucket_s < $2 AND (CAST($3 AS text) IS NULL OR release = $3)
                     GROUP BY kind",
                )
                .bind(window.from_s)
                .bind(window.to_s)
                .bind(&window.release)
                .fetch_all(&self.pool)
                .await
                .map_err(|error| $failed("add its counts up", error))
            }

            async fn totals(
                &self,
                window: &crate::stats::Window,
                releases_max: i64,
            ) -> Result<Vec<(String, String, i64, i64)>, crate::sink::StorageError> {
                sqlx::query_as(
                    "WITH kinds AS (
                        SELECT kind, release, CAST(sum(count) AS bigint) AS total,
                            CAST(sum(sentiment_micros) AS bigint) AS micros
                        FROM aggregates WHERE kind IN ('total', 'late', 'malformed', 'duplicate')
                            AND bucket_s >= $1 AND bucket_s < $2 AND (CAST($3 AS text) IS NULL OR release = $3)
                        GROUP BY kind, release HAVING sum(count) <> 0
                     ), largest AS (
                        SELECT release FROM kinds GROUP BY release ORDER BY max(total) DESC, release LIMIT $4
                     )
                     SELECT kind, release, total, micros FROM kinds WHERE release IN (SELECT release FROM largest)
                     ORDER BY total DESC, release, kind",
                )
                .bind(window.from_s)
                .bind(window.to_s)
                .bind(&window.release)
                .bind(releases_max)
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
                        let digest = crate::stats::fingerprint(counters);
                        let new = sqlx::query(
                            "INSERT INTO counter_posts (key, posted_ms, digest) VALUES ($1, $2, $3)
                             ON CONFLICT DO NOTHING",
                        )
                        .bind(key)
                        .bind(now_ms)
                        .bind(&digest)
                        .execute(&mut *transaction)
                        .await?;
                        if new.rows_affected() == 0 {
                            let before: Option<String> =
                                sqlx::query_scalar("SELECT digest FROM counter_posts WHERE key = $1")
                                    .bind(key)
                                    .fetch_one(&mut *transaction)
                                    .await?;
                            // Of a post of an earlier version it is not known what it was.
                            return Ok(match before {
                                Some(before) if before != digest => crate::stats::Added::Other,
                                Some(_) | None => crate::stats::Added::Before,
                            });
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

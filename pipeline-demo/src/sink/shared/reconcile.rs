//! Comparing the rows with the bus.

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
                let rows: Vec<(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64)> = sqlx::query_as(
                    "SELECT partition, next_offset, expected, results, malformed, unreadable, duplicates, doubled,
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
                        unreadable: row.5,
                        duplicates: row.6,
                        doubled: row.7,
                        missing: row.8,
                        checked_ms: row.9,
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

            async fn unplaced(&self) -> Result<i64, crate::sink::StorageError> {
                sqlx::query_scalar("SELECT count(*) FROM malformed WHERE origin_partition IS NULL")
                    .fetch_one(&self.pool)
                    .await
                    .map_err(|error| $failed("count what it could not read", error))
            }

            async fn account_for(
                &self,
                origin: crate::bus::Position,
                tweet_id: &str,
            ) -> Result<bool, crate::sink::StorageError> {
                let (partition, offset) = crate::sink::rows::place(origin);
                let placed = sqlx::query(
                    "UPDATE malformed SET origin_partition = $1, origin_offset = $2
                     WHERE origin_partition IS NULL AND tweet_id = $3",
                )
                .bind(partition)
                .bind(offset)
                .bind(tweet_id)
                .execute(&self.pool)
                .await
                .map_err(|error| $failed("place what it could not read", error))?;
                Ok(placed.rows_affected() > 0)
            }
        }

        impl $storage {
            async fn try_reconcile(
                &self,
                range: crate::sink::Range,
                now_ms: i64,
            ) -> Result<crate::sink::Reconciled, sqlx::Error> {
                use crate::sink::reconcile::{Found, HOLES_MAX, OFFSETS_MAX};
                let mut transaction = self.begin().await?;
                let partition = i64::from(range.partition);
                let before: Option<(i64, i64, i64, i64, i64, i64, i64)> = sqlx::query_as(
                    "SELECT next_offset, expected, results, malformed, unreadable, duplicates, doubled FROM reconciled
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
                                UNION ALL SELECT min(origin_offset) FROM malformed WHERE origin_partition = $1) AS k",
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
                let mut found = Found::default();
                for (first, next) in old {
                    let still = Self::find_holes(&mut *transaction, partition, first, next).await?;
                    // The rest of it is looked at the next time.
                    let looked = match still.last() {
                        Some((_, end)) if still.len() as i64 == HOLES_MAX && *end < next => {
                            holes.push((*end, next));
                            *end
                        }
                        Some(_) | None => next,
                    };
                    found.add(Self::found(&mut *transaction, partition, first, looked).await?);
                    holes.extend(still);
                }
                let new = Self::find_holes(&mut *transaction, partition, from, to).await?;
                if new.len() as i64 == HOLES_MAX
                    && let Some((_, next)) = new.last()
                {
                    to = *next;
                }
                holes.extend(new);
                found.add(Self::found(&mut *transaction, partition, from, to).await?);
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
                let (_, expected, results, malformed, unreadable, duplicates, doubled) =
                    before.unwrap_or_default();
                let mut reconciled = crate::sink::Reconciled {
                    partition,
                    next_offset: to,
                    expected: expected + to - from,
                    results: results + found.results,
                    malformed: malformed + found.malformed,
                    unreadable: unreadable + found.unreadable,
                    duplicates: duplicates + found.duplicates,
                    doubled: doubled + found.doubled(),
                    missing: 0,
                    checked_ms: now_ms,
                };
                sqlx::query(
                    "INSERT INTO reconciled (partition, next_offset, expected, results, malformed, unreadable, duplicates,
                        doubled, checked_ms)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
                     ON CONFLICT (partition) DO UPDATE SET next_offset = excluded.next_offset,
                        expected = excluded.expected, results = excluded.results, malformed = excluded.malformed,
                        unreadable = excluded.unreadable, duplicates = excluded.duplicates, doubled = excluded.doubled,
                        checked_ms = excluded.checked_ms",
                )
                .bind(partition)
                .bind(reconciled.next_offset)
                .bind(reconciled.expected)
                .bind(reconciled.results)
                .bind(reconciled.malformed)
                .bind(reconciled.unreadable)
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

            /// As what the offsets from `from` to before `to` are stored. A record without a readable answer that was refused
            /// besides is malformed.
            async fn found(
                connection: &mut $connection,
                partition: i64,
                from: i64,
                to: i64,
            ) -> Result<crate::sink::reconcile::Found, sqlx::Error> {
                let (results, malformed, unreadable, duplicates, places) = sqlx::query_as(
                    "WITH r AS (SELECT origin_offset AS o FROM results
                            WHERE origin_partition = $1 AND origin_offset >= $2 AND origin_offset < $3),
                        d AS (SELECT origin_offset AS o FROM duplicates
                            WHERE origin_partition = $1 AND origin_offset >= $2 AND origin_offset < $3),
                        m AS (SELECT origin_offset AS o FROM malformed WHERE topic = 'tweets'
                            AND origin_partition = $1 AND origin_offset >= $2 AND origin_offset < $3),
                        u AS (SELECT DISTINCT origin_offset AS o FROM malformed WHERE topic <> 'tweets'
                            AND origin_partition = $1 AND origin_offset >= $2 AND origin_offset < $3
                            AND origin_offset NOT IN (SELECT o FROM m))
                     SELECT (SELECT count(*) FROM r), (SELECT count(*) FROM m), (SELECT count(*) FROM u),
                        (SELECT count(*) FROM d), (SELECT count(*) FROM (
                            SELECT o FROM r UNION SELECT o FROM d UNION SELECT o FROM m UNION SELECT o FROM u) AS places)",
                )
                .bind(partition)
                .bind(from)
                .bind(to)
                .fetch_one(connection)
                .await?;
                Ok(crate::sink::reconcile::Found {
                    results,
                    malformed,
                    unreadable,
                    duplicates,
                    places,
                })
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
                            UNION SELECT origin_offset FROM malformed
                                WHERE origin_partition = $1 AND origin_offset >= $2 AND origin_offset < $3
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

//! Locks, and where a release was promoted.

use rollout::{Release, ServiceName};
use sqlx::SqliteConnection;

use super::{Sqlite, json};
use crate::admission::LockKey;
use crate::admission::lock::Slot;
use crate::store::StoreError;

/// Writes a lock, or that there is none any more.
pub(super) async fn put(tx: &mut SqliteConnection, slot: &Slot) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO locks (service, environment, fence, body) VALUES (?, ?, ?, ?)
         ON CONFLICT (service, environment) DO UPDATE SET fence = excluded.fence, body = excluded.body",
    )
    .bind(slot.key.service.as_str())
    .bind(&slot.key.environment)
    .bind(i64::try_from(slot.fence).unwrap_or(i64::MAX))
    .bind(slot.lock.as_ref().map(json))
    .execute(tx)
    .await?;
    Ok(())
}

impl Sqlite {
    pub(super) async fn read_locks(&self) -> Result<Vec<Slot>, StoreError> {
        let rows: Vec<(String, String, i64, Option<String>)> = sqlx::query_as(
            "SELECT service, environment, fence, body FROM locks ORDER BY service, environment",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.failed("reading locks", error))?;
        rows.into_iter()
            .map(|(service, environment, fence, body)| {
                let corrupt = |reason: String| StoreError::Corrupt {
                    file: self.file.display().to_string(),
                    reason: format!("lock of {service} in {environment:?}: {reason}"),
                };
                let name = ServiceName::try_from(service.clone())
                    .map_err(|error| corrupt(error.to_string()))?;
                let lock = body
                    .map(|body| serde_json::from_str(&body))
                    .transpose()
                    .map_err(|error| corrupt(error.to_string()))?;
                Ok(Slot {
                    key: LockKey {
                        service: name,
                        environment,
                    },
                    fence: u64::try_from(fence).unwrap_or(0),
                    lock,
                })
            })
            .collect()
    }

    pub(super) async fn was_promoted_in(
        &self,
        service: Option<&ServiceName>,
        environment: &str,
        release: &Release,
    ) -> Result<bool, StoreError> {
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM rollouts WHERE (?1 IS NULL OR service = ?1) AND ending = ?2 AND canary = ?3
             AND json_extract(body, '$.environment') = ?4 AND json_extract(body, '$.canary.digest') = ?5)",
        )
        .bind(service.map(ServiceName::as_str))
        .bind(json(&rollout::Ending::Promoted))
        .bind(release.id.as_str())
        .bind(environment)
        .bind(&release.digest)
        .fetch_one(&self.pool)
        .await
        .map_err(|error| self.failed("looking for a promotion", error))
    }
}

//! The outbox in SQLite.

use std::str::FromStr as _;

use async_trait::async_trait;
use rollout::{RolloutId, Timestamp};
use sqlx::{Connection as _, SqliteConnection};

use super::Sqlite;
use crate::store::StoreError;
use crate::store::outbox::{
    DeadMessage, Destination, Message, NewMessage, Outbox, OutboxState, Settled, Waiting,
};

/// Most messages that wait for one destination. A rollout has at most a dozen at a time, so this is the releases of a year
/// that nobody could be told of; then the oldest is given up for each new one.
const WAITING_MAX: i64 = 10_000;

/// Most messages that were given up and are still shown.
const DEAD_MAX: i64 = 1_000;

/// Dead messages that are told with the state.
const DEAD_SHOWN_MAX: i64 = 100;

/// Things told whose ids are remembered: 8 for each of the last few thousand rollouts. One that is forgotten is looked for.
const TOLD_MAX: i64 = 50_000;

/// Longest error that is kept, in characters.
const ERROR_CHARS_MAX: usize = 500;

/// Writes new messages, in the transaction of their change.
pub(super) async fn write(
    tx: &mut SqliteConnection,
    now: Timestamp,
    messages: &[NewMessage],
) -> Result<(), sqlx::Error> {
    for message in messages {
        sqlx::query(
            "INSERT INTO outbox (rollout, destination, topic, body, at) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (rollout, destination, topic) DO UPDATE SET
                 body = excluded.body, version = version + 1, error = NULL,
                 at = CASE dead WHEN 1 THEN excluded.at ELSE at END,
                 attempts = CASE dead WHEN 1 THEN 0 ELSE attempts END, dead = 0",
        )
        .bind(message.rollout.as_str())
        .bind(message.destination.as_str())
        .bind(&message.topic)
        .bind(message.body.to_string())
        .bind(now.to_string())
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "UPDATE outbox SET dead = 1, error = 'too many messages wait' WHERE id IN (
                 SELECT id FROM outbox WHERE destination = ?1 AND dead = 0 ORDER BY id DESC LIMIT -1 OFFSET ?2)",
        )
        .bind(message.destination.as_str())
        .bind(WAITING_MAX)
        .execute(&mut *tx)
        .await?;
    }
    if !messages.is_empty() {
        sqlx::query(
            "DELETE FROM outbox WHERE id IN (
                 SELECT id FROM outbox WHERE dead = 1 ORDER BY id DESC LIMIT -1 OFFSET ?)",
        )
        .bind(DEAD_MAX)
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "DELETE FROM told WHERE rowid IN (SELECT rowid FROM told ORDER BY rowid DESC LIMIT -1 OFFSET ?)",
        )
        .bind(TOLD_MAX)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

type MessageRow = (i64, i64, String, String, String, String, i64);

impl Sqlite {
    fn message(&self, destination: Destination, row: MessageRow) -> Result<Message, StoreError> {
        let (id, version, rollout, topic, body, at, attempts) = row;
        let corrupt = |reason: String| StoreError::Corrupt {
            file: self.file.display().to_string(),
            reason: format!("message {id}: {reason}"),
        };
        Ok(Message {
            id,
            version,
            rollout: RolloutId::from_text(&rollout),
            destination,
            topic,
            body: serde_json::from_str(&body).map_err(|error| corrupt(error.to_string()))?,
            at: Timestamp::from_str(&at).map_err(|error| corrupt(error.to_string()))?,
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        })
    }

    fn time(&self, text: &str) -> Result<Timestamp, StoreError> {
        Timestamp::from_str(text).map_err(|error| StoreError::Corrupt {
            file: self.file.display().to_string(),
            reason: format!("a message's time: {error}"),
        })
    }

    async fn settle_in(
        &self,
        connection: &mut SqliteConnection,
        term: u64,
        message: &Message,
        settled: &Settled,
    ) -> Result<(), StoreError> {
        let failed = |error| self.failed("saving what was told", error);
        let mut tx = connection
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed)?;
        let theirs: i64 = sqlx::query_scalar("SELECT term FROM controller WHERE id = 1")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        let theirs = u64::try_from(theirs).unwrap_or(0);
        if theirs != term {
            return Err(StoreError::Fenced { ours: term, theirs });
        }
        match settled {
            Settled::Told { remote } => {
                sqlx::query("DELETE FROM outbox WHERE id = ? AND version = ?")
                    .bind(message.id)
                    .bind(message.version)
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
                if let Some(remote) = remote {
                    sqlx::query(
                        "INSERT OR REPLACE INTO told (rollout, topic, remote) VALUES (?, ?, ?)",
                    )
                    .bind(message.rollout.as_str())
                    .bind(&message.topic)
                    .bind(remote)
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
                }
            }
            Settled::Failed { error } | Settled::Dead { error } => {
                let error: String = error.chars().take(ERROR_CHARS_MAX).collect();
                let is_dead = matches!(settled, Settled::Dead { .. });
                sqlx::query(
                    "UPDATE outbox SET attempts = attempts + 1, dead = ?, error = ? WHERE id = ? AND version = ?",
                )
                .bind(i64::from(is_dead))
                .bind(error)
                .bind(message.id)
                .bind(message.version)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            }
        }
        tx.commit().await.map_err(failed)
    }
}

#[async_trait]
impl Outbox for Sqlite {
    async fn waiting(
        &self,
        destination: Destination,
        limit: u32,
    ) -> Result<Vec<Message>, StoreError> {
        let rows: Vec<MessageRow> = sqlx::query_as(
            "SELECT id, version, rollout, topic, body, at, attempts FROM outbox
             WHERE destination = ? AND dead = 0 ORDER BY id LIMIT ?",
        )
        .bind(destination.as_str())
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(|error| self.failed("reading what is to be told", error))?;
        let message = |row| self.message(destination, row);
        rows.into_iter().map(message).collect()
    }

    async fn settle(
        &self,
        term: u64,
        message: &Message,
        settled: &Settled,
    ) -> Result<(), StoreError> {
        let mut connection = self
            .pool
            .acquire()
            .await
            .map_err(|error| self.failed("saving what was told", error))?;
        let outcome = self
            .settle_in(&mut connection, term, message, settled)
            .await;
        if outcome.is_err() {
            // As when a change is saved: on a full disk such a connection is no good any more.
            drop(connection.close().await);
        }
        outcome
    }

    async fn told(&self, rollout: &RolloutId, topic: &str) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar("SELECT remote FROM told WHERE rollout = ? AND topic = ?")
            .bind(rollout.as_str())
            .bind(topic)
            .fetch_optional(&self.pool)
            .await
            .map_err(|error| self.failed("reading what was told", error))
    }

    async fn is_anothers(
        &self,
        rollout: &RolloutId,
        topic: &str,
        remote: &str,
    ) -> Result<bool, StoreError> {
        let count: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM told WHERE topic = ? AND remote = ? AND rollout <> ?",
        )
        .bind(topic)
        .bind(remote)
        .bind(rollout.as_str())
        .fetch_one(&self.pool)
        .await
        .map_err(|error| self.failed("reading what was told", error))?;
        Ok(count > 0)
    }

    async fn outbox_state(&self) -> Result<OutboxState, StoreError> {
        let failed = |error| self.failed("reading how the outbox is", error);
        // Beside MIN the other columns are those of the row that has it (https://www.sqlite.org/lang_select.html#bareagg).
        let rows: Vec<(String, i64, i64, String, Option<String>)> = sqlx::query_as(
            "SELECT destination, COUNT(*), MIN(id), at, error FROM outbox WHERE dead = 0 GROUP BY destination ORDER BY destination",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        let mut waiting = Vec::new();
        for (destination, count, _, at, error) in rows {
            waiting.push(Waiting {
                destination,
                count: u64::try_from(count).unwrap_or(0),
                oldest: self.time(&at)?,
                error,
            });
        }
        let rows: Vec<(String, String, String, String, Option<String>)> = sqlx::query_as(
            "SELECT rollout, destination, topic, at, error FROM outbox WHERE dead = 1 ORDER BY id DESC LIMIT ?",
        )
        .bind(DEAD_SHOWN_MAX)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        let mut dead = Vec::new();
        for (rollout, destination, topic, at, error) in rows {
            dead.push(DeadMessage {
                rollout: RolloutId::from_text(&rollout),
                destination,
                topic,
                at: self.time(&at)?,
                error: error.unwrap_or_default(),
            });
        }
        let dead_count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM outbox WHERE dead = 1")
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        Ok(OutboxState {
            waiting,
            dead,
            dead_count: u64::try_from(dead_count).unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::{Change, Store as _};

    fn now() -> Timestamp {
        "2026-11-20T16:00:00Z".parse().unwrap()
    }

    fn message(rollout: &str, topic: &str, body: i64) -> NewMessage {
        NewMessage {
            rollout: RolloutId::from_text(rollout),
            destination: Destination::Gitlab,
            topic: topic.into(),
            body: json!(body),
        }
    }

    async fn store(folder: &tempfile::TempDir) -> (Sqlite, u64) {
        let store = Sqlite::open(&folder.path().join("friday.db"))
            .await
            .unwrap();
        let term = store.take_over().await.unwrap();
        (store, term)
    }

    async fn save(store: &Sqlite, term: u64, messages: Vec<NewMessage>) {
        let change = Change {
            messages,
            ..Change::default()
        };
        store.save(term, now(), &change).await.unwrap();
    }

    async fn bodies(store: &Sqlite) -> Vec<String> {
        let waiting = store.waiting(Destination::Gitlab, 100).await.unwrap();
        let shown =
            |message: Message| format!("{} {} {}", message.rollout, message.topic, message.body);
        waiting.into_iter().map(shown).collect()
    }

    const TOLD: Settled = Settled::Told { remote: None };

    #[tokio::test]
    async fn a_newer_word_takes_the_place_of_one_that_waits() {
        let folder = tempfile::tempdir().unwrap();
        let (store, term) = store(&folder).await;
        save(
            &store,
            term,
            vec![message("web-1", "note", 1), message("web-1", "status", 1)],
        )
        .await;
        let in_flight = store
            .waiting(Destination::Gitlab, 1)
            .await
            .unwrap()
            .remove(0);
        save(
            &store,
            term,
            vec![message("web-1", "note", 2), message("web-2", "note", 1)],
        )
        .await;
        assert_eq!(
            bodies(&store).await,
            ["web-1 note 2", "web-1 status 1", "web-2 note 1"]
        );
        // What was on its way while the newer came was told; the newer was not.
        store.settle(term, &in_flight, &TOLD).await.unwrap();
        assert_eq!(
            bodies(&store).await,
            ["web-1 note 2", "web-1 status 1", "web-2 note 1"]
        );
        let newer = store
            .waiting(Destination::Gitlab, 1)
            .await
            .unwrap()
            .remove(0);
        store.settle(term, &newer, &TOLD).await.unwrap();
        assert_eq!(bodies(&store).await, ["web-1 status 1", "web-2 note 1"]);
    }

    #[tokio::test]
    async fn is_written_with_the_change_or_not_at_all_and_only_by_the_newest_controller() {
        let folder = tempfile::tempdir().unwrap();
        let (store, term) = store(&folder).await;
        let change = Change {
            messages: vec![message("web-1", "note", 1)],
            ..Change::default()
        };
        assert!(store.save(term + 1, now(), &change).await.is_err());
        assert!(bodies(&store).await.is_empty());
        save(&store, term, change.messages).await;
        let waiting = store
            .waiting(Destination::Gitlab, 1)
            .await
            .unwrap()
            .remove(0);
        store.take_over().await.unwrap();
        let refused = store.settle(term, &waiting, &TOLD).await;
        assert!(
            matches!(refused, Err(StoreError::Fenced { .. })),
            "{refused:?}"
        );
        assert_eq!(bodies(&store).await.len(), 1);
    }

    #[tokio::test]
    async fn remembers_what_it_became_and_shows_what_was_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let (store, term) = store(&folder).await;
        save(
            &store,
            term,
            vec![message("web-1", "note", 1), message("web-1", "status", 1)],
        )
        .await;
        let waiting = store.waiting(Destination::Gitlab, 9).await.unwrap();
        let remote = Some("7".to_owned());
        store
            .settle(term, &waiting[0], &Settled::Told { remote })
            .await
            .unwrap();
        let id = RolloutId::from_text("web-1");
        assert_eq!(store.told(&id, "note").await.unwrap().as_deref(), Some("7"));
        assert!(!store.is_anothers(&id, "note", "7").await.unwrap());
        let other = RolloutId::from_text("web-2");
        assert!(store.is_anothers(&other, "note", "7").await.unwrap());

        let error = "no".to_owned();
        store
            .settle(
                term,
                &waiting[1],
                &Settled::Failed {
                    error: error.clone(),
                },
            )
            .await
            .unwrap();
        let state = store.outbox_state().await.unwrap();
        assert_eq!(
            (state.waiting[0].count, state.waiting[0].error.as_deref()),
            (1, Some("no"))
        );
        store
            .settle(term, &waiting[1], &Settled::Dead { error })
            .await
            .unwrap();
        let state = store.outbox_state().await.unwrap();
        assert!(state.waiting.is_empty());
        assert_eq!(
            (state.dead_count, state.dead[0].topic.as_str()),
            (1, "status")
        );
        // A newer word about the same thing is worth another attempt.
        save(&store, term, vec![message("web-1", "status", 2)]).await;
        assert_eq!(bodies(&store).await, ["web-1 status 2"]);
    }
}

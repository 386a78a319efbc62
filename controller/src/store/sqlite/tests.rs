use serde_json::json;

use super::*;

async fn store(folder: &tempfile::TempDir) -> Sqlite {
    Sqlite::open(&folder.path().join("friday.db"))
        .await
        .unwrap()
}

fn event(text: &str) -> NewEvent {
    NewEvent {
        rollout: None,
        kind: "order",
        author: "ada".into(),
        data: json!({ "reason": text }),
    }
}

fn now() -> Timestamp {
    "2026-11-20T16:00:00Z".parse().unwrap()
}

async fn with_events(folder: &tempfile::TempDir) -> Sqlite {
    let store = store(folder).await;
    let term = store.take_over().await.unwrap();
    for text in ["one", "two", "three"] {
        let change = Change {
            events: vec![event(text)],
            ..Change::default()
        };
        store.save(term, now(), &change).await.unwrap();
    }
    store
}

#[tokio::test]
async fn chains_events_and_finds_the_one_that_was_changed_behind_its_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_events(&folder).await;
    assert_eq!(store.verify().await.unwrap(), Ok(3));
    let refused = sqlx::query("UPDATE events SET author = 'eve' WHERE seq = 2")
        .execute(&store.pool)
        .await;
    assert!(refused.unwrap_err().to_string().contains("append-only"));
    let refused = sqlx::query("DELETE FROM events WHERE seq = 3")
        .execute(&store.pool)
        .await;
    assert!(refused.unwrap_err().to_string().contains("append-only"));
    sqlx::query("DROP TRIGGER events_stay")
        .execute(&store.pool)
        .await
        .unwrap();
    sqlx::query("UPDATE events SET author = 'eve' WHERE seq = 2")
        .execute(&store.pool)
        .await
        .unwrap();
    assert_eq!(store.verify().await.unwrap(), Err(2));
}

#[tokio::test]
async fn finds_an_event_that_was_taken_out_of_the_middle() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_events(&folder).await;
    sqlx::query("DROP TRIGGER events_last")
        .execute(&store.pool)
        .await
        .unwrap();
    sqlx::query("DELETE FROM events WHERE seq = 2")
        .execute(&store.pool)
        .await
        .unwrap();
    assert_eq!(store.verify().await.unwrap(), Err(3));
}

#[tokio::test]
async fn saves_all_of_a_change_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_events(&folder).await;
    let change = Change {
        marks: vec![Mark {
            proxy: "p".into(),
            boot: BootId(7),
            number: 3,
        }],
        events: vec![event("four")],
        ..Change::default()
    };
    assert!(matches!(
        store.save(99, now(), &change).await,
        Err(StoreError::Fenced {
            ours: 99,
            theirs: 1
        })
    ));
    assert_eq!(store.marks().await.unwrap(), []);
    assert_eq!(store.verify().await.unwrap(), Ok(3));
    store.save(1, now(), &change).await.unwrap();
    assert_eq!(store.marks().await.unwrap(), change.marks);
    assert_eq!(
        store.events(None, 3, 10).await.unwrap()[0].data["reason"],
        "four"
    );
}

#[tokio::test]
async fn refuses_a_file_that_is_no_store_and_leaves_it_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("friday.db");
    std::fs::write(&file, b"this is not a database, and never was one\n").unwrap();
    let error = Sqlite::open(&file).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{text}");
    assert!(
        text.contains("friday.db") && text.contains("move it away"),
        "{text}"
    );
    assert_eq!(
        std::fs::read(&file).unwrap(),
        b"this is not a database, and never was one\n"
    );
}

#[tokio::test]
async fn refuses_a_rollout_it_cannot_read_and_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    sqlx::query("INSERT INTO rollouts (id, service, number, ended, canary, body) VALUES ('web-1', 'web', 1, 0, 'x', '{\"id\":')")
        .execute(&store.pool)
        .await
        .unwrap();
    store.pool.close().await;
    let error = Sqlite::open(&folder.path().join("friday.db"))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("rollout web-1") && error.contains("friday.db"),
        "{error}"
    );
}

#[tokio::test]
async fn f40_gives_up_its_reserve_when_the_disk_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_events(&folder).await;
    let reserve = folder.path().join("friday.reserve");
    assert_eq!(
        std::fs::metadata(&reserve).unwrap().len(),
        RESERVE_BYTES as u64
    );
    store.limit_pages(1);
    let long = Change {
        events: vec![event(&"x".repeat(100_000))],
        ..Change::default()
    };
    assert!(matches!(
        store.save(1, now(), &long).await,
        Err(StoreError::Full { .. })
    ));
    assert!(
        !reserve.exists(),
        "the room it held is free for what must be written"
    );
    store.limit_pages(1 << 30);
    store.save(1, now(), &long).await.unwrap();
    assert_eq!(store.verify().await.unwrap(), Ok(4));
}

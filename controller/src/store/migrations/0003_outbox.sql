-- What is yet to be told, written with the change that it tells of; a newer word about the same thing takes its place.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    rollout TEXT NOT NULL,
    destination TEXT NOT NULL,
    topic TEXT NOT NULL,
    body TEXT NOT NULL,
    at TEXT NOT NULL,
    version INTEGER NOT NULL DEFAULT 1,
    attempts INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    UNIQUE (rollout, destination, topic)
);
CREATE INDEX outbox_waiting ON outbox (destination, dead, id);

-- What was told became something there: its id, so that the next word about it finds it.
CREATE TABLE told (
    rollout TEXT NOT NULL,
    topic TEXT NOT NULL,
    remote TEXT NOT NULL,
    PRIMARY KEY (rollout, topic)
);
CREATE INDEX told_remote ON told (topic, remote);

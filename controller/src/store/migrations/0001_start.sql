-- Who may write: the term grows with every controller that takes over.
CREATE TABLE controller (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    term INTEGER NOT NULL
);
INSERT INTO controller (id, term) VALUES (1, 0);

-- Rollouts, whole, as the core writes them; beside them what is asked for by SQL.
CREATE TABLE rollouts (
    id TEXT PRIMARY KEY,
    service TEXT NOT NULL,
    number INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    ending TEXT,
    canary TEXT NOT NULL,
    body TEXT NOT NULL,
    judge TEXT,
    verdict TEXT,
    UNIQUE (service, number)
);
CREATE INDEX rollouts_open ON rollouts (ended, service, number);

-- How far each proxy's reports are in the rollouts' evidence.
CREATE TABLE marks (
    proxy TEXT PRIMARY KEY,
    boot TEXT NOT NULL,
    number INTEGER NOT NULL
);

-- What happened, for ever: each entry carries the hash of the one before.
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    rollout TEXT,
    kind TEXT NOT NULL,
    author TEXT NOT NULL,
    data TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE INDEX events_rollout ON events (rollout, seq);
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END;
CREATE TRIGGER events_last BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END;

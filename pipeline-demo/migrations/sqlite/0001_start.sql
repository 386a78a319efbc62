-- The tables of the first version, which files may have already.
CREATE TABLE IF NOT EXISTS results (
    tweet_id TEXT PRIMARY KEY,
    author_id TEXT,
    created_at TEXT,
    release TEXT NOT NULL,
    language TEXT,
    sentiment REAL,
    features TEXT NOT NULL,
    stored_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS malformed (
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    code TEXT NOT NULL,
    reason TEXT NOT NULL,
    original BLOB NOT NULL,
    stored_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (topic, partition, offset)
) STRICT, WITHOUT ROWID;

-- The same tables as PostgreSQL has; what the columns mean is said there.
ALTER TABLE results ADD COLUMN sentiment_label TEXT;
ALTER TABLE results ADD COLUMN hashtags TEXT NOT NULL DEFAULT '[]';
ALTER TABLE results ADD COLUMN minute INTEGER NOT NULL DEFAULT 0;
ALTER TABLE results ADD COLUMN late INTEGER NOT NULL DEFAULT 0;
-- Rows of the first version do not know their place: any place is later.
ALTER TABLE results ADD COLUMN result_partition INTEGER NOT NULL DEFAULT -1;
ALTER TABLE results ADD COLUMN result_offset INTEGER NOT NULL DEFAULT -1;
ALTER TABLE results ADD COLUMN origin_partition INTEGER;
ALTER TABLE results ADD COLUMN origin_offset INTEGER;
ALTER TABLE results ADD COLUMN stored_ms INTEGER NOT NULL DEFAULT 0;
UPDATE results SET
    sentiment_label = json_extract(features, '$.sentiment.label'),
    hashtags = lower(coalesce(json_extract(features, '$.hashtags'), '[]')),
    minute = coalesce(unixepoch(created_at), unixepoch(stored_at), 0) / 60,
    stored_ms = coalesce(unixepoch(stored_at), 0) * 1000;
ALTER TABLE results DROP COLUMN stored_at;
CREATE INDEX results_origin ON results (origin_partition, origin_offset);
CREATE INDEX results_stored ON results (stored_ms);

ALTER TABLE malformed ADD COLUMN release TEXT NOT NULL DEFAULT '';
ALTER TABLE malformed ADD COLUMN minute INTEGER NOT NULL DEFAULT 0;
ALTER TABLE malformed ADD COLUMN letter_partition INTEGER NOT NULL DEFAULT -1;
ALTER TABLE malformed ADD COLUMN letter_offset INTEGER NOT NULL DEFAULT -1;
ALTER TABLE malformed ADD COLUMN stored_ms INTEGER NOT NULL DEFAULT 0;
UPDATE malformed SET
    minute = coalesce(unixepoch(stored_at), 0) / 60, stored_ms = coalesce(unixepoch(stored_at), 0) * 1000;
ALTER TABLE malformed DROP COLUMN stored_at;
CREATE INDEX malformed_stored ON malformed (stored_ms);

CREATE TABLE duplicates (
    origin_partition INTEGER NOT NULL,
    origin_offset INTEGER NOT NULL,
    tweet_id TEXT NOT NULL,
    release TEXT NOT NULL,
    minute INTEGER NOT NULL,
    stored_ms INTEGER NOT NULL,
    PRIMARY KEY (origin_partition, origin_offset)
) STRICT, WITHOUT ROWID;

CREATE VIEW records AS
    SELECT 'result' AS kind, tweet_id, NULL AS code, release, origin_partition, origin_offset, stored_ms FROM results
    UNION ALL
    SELECT 'malformed', NULL, code, release,
        CASE topic WHEN 'tweets' THEN partition END, CASE topic WHEN 'tweets' THEN "offset" END, stored_ms
    FROM malformed;

CREATE TABLE aggregates (
    kind TEXT NOT NULL,
    bucket_s INTEGER NOT NULL,
    width_s INTEGER NOT NULL,
    key TEXT NOT NULL,
    release TEXT NOT NULL,
    count INTEGER NOT NULL,
    sentiment_micros INTEGER NOT NULL,
    PRIMARY KEY (kind, bucket_s, width_s, key, release)
) STRICT, WITHOUT ROWID;
INSERT INTO aggregates
    SELECT 'total', minute * 60, 60, '', release, count(*),
        sum(CAST(round(coalesce(sentiment, 0) * 1000000) AS INTEGER))
    FROM results GROUP BY minute, release
    UNION ALL
    SELECT 'sentiment', minute * 60, 60, sentiment_label, release, count(*),
        sum(CAST(round(coalesce(sentiment, 0) * 1000000) AS INTEGER))
    FROM results WHERE sentiment_label IS NOT NULL GROUP BY minute, sentiment_label, release
    UNION ALL
    SELECT 'language', minute * 60, 60, language, release, count(*),
        sum(CAST(round(coalesce(sentiment, 0) * 1000000) AS INTEGER))
    FROM results WHERE language IS NOT NULL GROUP BY minute, language, release
    UNION ALL
    SELECT 'hashtag', minute * 60, 60, tag.value, release, count(*),
        sum(CAST(round(coalesce(sentiment, 0) * 1000000) AS INTEGER))
    FROM results, json_each(hashtags) AS tag GROUP BY minute, tag.value, release
    UNION ALL
    SELECT 'malformed', minute * 60, 60, code, release, count(*), 0
    FROM malformed GROUP BY minute, code, release;

CREATE TABLE reconciled (
    partition INTEGER PRIMARY KEY,
    next_offset INTEGER NOT NULL,
    expected INTEGER NOT NULL,
    results INTEGER NOT NULL,
    malformed INTEGER NOT NULL,
    duplicates INTEGER NOT NULL,
    doubled INTEGER NOT NULL,
    checked_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE missing (
    partition INTEGER NOT NULL,
    first_offset INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    found_ms INTEGER NOT NULL,
    PRIMARY KEY (partition, first_offset)
) STRICT, WITHOUT ROWID;

CREATE TABLE counters (
    name TEXT NOT NULL,
    labels TEXT NOT NULL,
    total INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    PRIMARY KEY (name, labels)
) STRICT, WITHOUT ROWID;
CREATE TABLE counter_posts (
    key TEXT PRIMARY KEY,
    posted_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE jobs (
    job TEXT PRIMARY KEY,
    last_due_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE job_runs (
    job TEXT NOT NULL,
    due_ms INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    node TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    outcome TEXT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (job, due_ms, attempt)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_runs_started ON job_runs (started_ms);
-- SQLite has no locks that end with their holder; a lease does, a little later.
CREATE TABLE job_leases (
    job TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    until_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

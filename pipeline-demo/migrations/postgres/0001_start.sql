-- One row for each tweet. What is counted of it stands in the row, so that it can be uncounted exactly.
CREATE TABLE results (
    tweet_id text COLLATE "C" PRIMARY KEY,
    author_id text,
    created_at text,
    release text NOT NULL,
    language text,
    sentiment double precision,
    sentiment_label text,
    -- A JSON list, lower case.
    hashtags text NOT NULL,
    features json NOT NULL,
    -- The minute it is counted in, since 1970.
    minute bigint NOT NULL,
    late boolean NOT NULL,
    -- Its place in topic "results": of two results of a tweet, the later one stays.
    result_partition bigint NOT NULL,
    result_offset bigint NOT NULL,
    -- The tweet's place in topic "tweets".
    origin_partition bigint,
    origin_offset bigint,
    stored_ms bigint NOT NULL
);
CREATE INDEX results_origin ON results (origin_partition, origin_offset);
-- Rows come nearly in this order, so a few bytes for each 32 pages are enough, and cost an insert nothing.
CREATE INDEX results_stored ON results USING brin (stored_ms) WITH (pages_per_range = 32, autosummarize = on);

-- One row for each record that is no tweet.
CREATE TABLE malformed (
    topic text COLLATE "C" NOT NULL,
    partition bigint NOT NULL,
    "offset" bigint NOT NULL,
    code text NOT NULL,
    reason text NOT NULL,
    release text NOT NULL,
    original bytea NOT NULL,
    minute bigint NOT NULL,
    -- Its place in the topic of dead letters.
    letter_partition bigint NOT NULL,
    letter_offset bigint NOT NULL,
    stored_ms bigint NOT NULL,
    PRIMARY KEY (topic, partition, "offset")
);
CREATE INDEX malformed_stored ON malformed (stored_ms);

-- Places in topic "tweets" that held a tweet which is stored from another place.
CREATE TABLE duplicates (
    origin_partition bigint NOT NULL,
    origin_offset bigint NOT NULL,
    tweet_id text COLLATE "C" NOT NULL,
    release text NOT NULL,
    minute bigint NOT NULL,
    stored_ms bigint NOT NULL,
    PRIMARY KEY (origin_partition, origin_offset)
);

-- Everything that was stored, whether it is a tweet or not.
CREATE VIEW records AS
    SELECT 'result' AS kind, tweet_id, NULL AS code, release, origin_partition, origin_offset, stored_ms FROM results
    UNION ALL
    SELECT 'malformed', NULL, code, release,
        CASE topic WHEN 'tweets' THEN partition END, CASE topic WHEN 'tweets' THEN "offset" END, stored_ms
    FROM malformed;

-- Counts. They change in the transaction that changes the rows, and stay when the rows are removed.
-- A bucket begins at bucket_s (seconds since 1970) and is width_s long: 60, 3600 or 86400.
CREATE TABLE aggregates (
    kind text COLLATE "C" NOT NULL,
    bucket_s bigint NOT NULL,
    width_s bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    release text COLLATE "C" NOT NULL,
    count bigint NOT NULL,
    -- The sum of the sentiments, in millionths: a sum of fractions would depend on the order.
    sentiment_micros bigint NOT NULL,
    PRIMARY KEY (kind, bucket_s, width_s, key, release)
) WITH (fillfactor = 70);

-- How far the rows were compared with the bus, for each partition of topic "tweets".
CREATE TABLE reconciled (
    partition bigint PRIMARY KEY,
    next_offset bigint NOT NULL,
    expected bigint NOT NULL,
    results bigint NOT NULL,
    malformed bigint NOT NULL,
    duplicates bigint NOT NULL,
    doubled bigint NOT NULL,
    checked_ms bigint NOT NULL
);
-- Offsets below that point that are stored nowhere.
CREATE TABLE missing (
    partition bigint NOT NULL,
    first_offset bigint NOT NULL,
    next_offset bigint NOT NULL,
    found_ms bigint NOT NULL,
    PRIMARY KEY (partition, first_offset)
);

-- Counters of others.
CREATE TABLE counters (
    name text COLLATE "C" NOT NULL,
    labels text COLLATE "C" NOT NULL,
    total bigint NOT NULL,
    updated_ms bigint NOT NULL,
    PRIMARY KEY (name, labels)
);
CREATE TABLE counter_posts (
    key text COLLATE "C" PRIMARY KEY,
    posted_ms bigint NOT NULL
);

-- The last due time of each job that was dealt with, and each run.
CREATE TABLE jobs (
    job text COLLATE "C" PRIMARY KEY,
    last_due_ms bigint NOT NULL
);
CREATE TABLE job_runs (
    job text COLLATE "C" NOT NULL,
    due_ms bigint NOT NULL,
    attempt bigint NOT NULL,
    node text NOT NULL,
    started_ms bigint NOT NULL,
    ended_ms bigint,
    outcome text NOT NULL,
    detail text NOT NULL,
    PRIMARY KEY (job, due_ms, attempt)
);
CREATE INDEX job_runs_started ON job_runs (started_ms);

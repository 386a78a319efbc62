-- The key of the letter's task, which a result of it would have as tweet_id, and the place in topic "tweets" that it accounts
-- for: its own, or, of a record in another topic, the one whose answer it should have been.
ALTER TABLE malformed ADD COLUMN tweet_id text COLLATE "C";
ALTER TABLE malformed ADD COLUMN origin_partition bigint;
ALTER TABLE malformed ADD COLUMN origin_offset bigint;
UPDATE malformed SET origin_partition = partition, origin_offset = "offset" WHERE topic = 'tweets';
CREATE INDEX malformed_origin ON malformed (origin_partition, origin_offset);

-- A task that was refused and then done has its result, and no dead letter any more.
WITH gone AS (
    DELETE FROM malformed AS m WHERE EXISTS (
        SELECT FROM results AS r
        WHERE r.origin_partition = m.origin_partition AND r.origin_offset = m.origin_offset)
    RETURNING minute, code, release
)
INSERT INTO aggregates (kind, bucket_s, width_s, key, release, count, sentiment_micros)
    SELECT 'malformed', minute * 60, 60, code, release, -count(*), 0 FROM gone GROUP BY minute, code, release
    ON CONFLICT (kind, bucket_s, width_s, key, release) DO UPDATE SET count = aggregates.count + excluded.count;

DROP VIEW records;
CREATE VIEW records AS
    SELECT 'result' AS kind, tweet_id, NULL AS code, release, origin_partition, origin_offset, stored_ms FROM results
    UNION ALL
    SELECT 'malformed', tweet_id, code, release, origin_partition, origin_offset, stored_ms FROM malformed;

-- Records whose answer could not be read or stored.
ALTER TABLE reconciled ADD COLUMN unreadable bigint NOT NULL DEFAULT 0;

-- What was posted under the key, as a hash.
ALTER TABLE counter_posts ADD COLUMN digest text;

-- The same as PostgreSQL's second migration; what the columns mean is said there.
ALTER TABLE malformed ADD COLUMN tweet_id TEXT;
ALTER TABLE malformed ADD COLUMN origin_partition INTEGER;
ALTER TABLE malformed ADD COLUMN origin_offset INTEGER;
UPDATE malformed SET origin_partition = partition, origin_offset = "offset" WHERE topic = 'tweets';
CREATE INDEX malformed_origin ON malformed (origin_partition, origin_offset);

INSERT INTO aggregates (kind, bucket_s, width_s, key, release, count, sentiment_micros)
    SELECT 'malformed', minute * 60, 60, code, release, -count(*), 0 FROM malformed AS m
    WHERE EXISTS (
        SELECT 1 FROM results AS r
        WHERE r.origin_partition = m.origin_partition AND r.origin_offset = m.origin_offset)
    GROUP BY minute, code, release
    ON CONFLICT (kind, bucket_s, width_s, key, release) DO UPDATE SET count = count + excluded.count;
DELETE FROM malformed WHERE EXISTS (
    SELECT 1 FROM results AS r
    WHERE r.origin_partition = malformed.origin_partition AND r.origin_offset = malformed.origin_offset);

DROP VIEW records;
CREATE VIEW records AS
    SELECT 'result' AS kind, tweet_id, NULL AS code, release, origin_partition, origin_offset, stored_ms FROM results
    UNION ALL
    SELECT 'malformed', tweet_id, code, release, origin_partition, origin_offset, stored_ms FROM malformed;

ALTER TABLE reconciled ADD COLUMN unreadable INTEGER NOT NULL DEFAULT 0;

ALTER TABLE counter_posts ADD COLUMN digest TEXT;

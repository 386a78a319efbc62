-- Where a rollout comes from, and who waits for it.
ALTER TABLE rollouts ADD COLUMN origin TEXT;
ALTER TABLE rollouts ADD COLUMN lease TEXT;

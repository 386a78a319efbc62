-- Who has a service, or one of its environments ('' for all), to themselves. The number stays when the lock goes: the next
-- one is larger.
CREATE TABLE locks (
    service TEXT NOT NULL,
    environment TEXT NOT NULL,
    fence INTEGER NOT NULL,
    body TEXT,
    PRIMARY KEY (service, environment)
);

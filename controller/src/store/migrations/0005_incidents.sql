-- Incidents that are open, and the rollouts that are held for them, whole, as the controller writes them.
CREATE TABLE incidents (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    body TEXT NOT NULL
);

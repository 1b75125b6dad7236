-- Requests that are to be carried out once, however often they come.

-- +goose Up

-- request is the SHA-256 of what was asked. The answer is null until there is one: the request is under way, or was cut off.
CREATE TABLE idempotency_keys (
    owner      INTEGER NOT NULL REFERENCES users (id),
    key        TEXT    NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request    BLOB    NOT NULL CHECK (length(request) = 32),
    created_at INTEGER NOT NULL,
    status     INTEGER,
    location   TEXT,
    body       BLOB,
    PRIMARY KEY (owner, key),
    CHECK ((status IS NULL) = (body IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
CREATE INDEX idempotency_keys_of_owner ON idempotency_keys (owner, created_at);

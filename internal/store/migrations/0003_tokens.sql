-- Tokens that this installation issued, and the events of their ends.

-- +goose Up

-- What is known of a token that was issued; the token itself is nowhere. One that is not here is not accepted. ordinal
-- is the token's place among its owner's of the same issuer, and quota the limit that stood when it was made, as those
-- of ssh_keys; a revoked token has no place, so the limit does not count it.
CREATE TABLE tokens (
    id           TEXT    PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 64),
    owner        INTEGER NOT NULL REFERENCES users (id),
    issued_by    TEXT    NOT NULL CHECK (issued_by IN ('user', 'operator')),
    ordinal      INTEGER,
    quota        INTEGER NOT NULL,
    name         TEXT    NOT NULL CHECK (name <> ''),
    scopes       TEXT    NOT NULL, -- separated by spaces
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL CHECK (expires_at > created_at),
    last_used_at INTEGER,
    revoked_at   INTEGER,
    UNIQUE (owner, issued_by, ordinal),
    CHECK ((revoked_at IS NULL) = (ordinal IS NOT NULL)),
    CONSTRAINT tokens_within_limit CHECK (ordinal >= 0 AND ordinal < quota)
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_by_expiry ON tokens (expires_at);
CREATE INDEX tokens_revoked ON tokens (owner, revoked_at) WHERE revoked_at IS NOT NULL;

-- +goose StatementBegin
CREATE TRIGGER tokens_revoked_is_final BEFORE UPDATE OF revoked_at ON tokens
WHEN OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS NOT OLD.revoked_at
BEGIN
    SELECT RAISE(ABORT, 'a revoked token stays revoked');
END;
-- +goose StatementEnd

ALTER TABLE events ADD COLUMN token TEXT NOT NULL DEFAULT '';

-- Credentials of gateways that run in processes of their own.

-- +goose Up

-- A row stays when its credential is revoked, so that the credential is known as revoked and not as a stranger's. seen_at is
-- when the gateway was last connected: one that was, lately, may still admit what was revoked since.
CREATE TABLE gateways (
    fingerprint TEXT    PRIMARY KEY CHECK (fingerprint <> ''),
    name        TEXT    NOT NULL CHECK (name <> ''),
    created_at  INTEGER NOT NULL,
    seen_at     INTEGER,
    revoked_at  INTEGER
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX gateways_in_force ON gateways (name) WHERE revoked_at IS NULL;

-- +goose StatementBegin
CREATE TRIGGER gateways_revoked_is_final BEFORE UPDATE OF revoked_at ON gateways
WHEN OLD.revoked_at IS NOT NULL AND OLD.revoked_at IS NOT NEW.revoked_at
BEGIN
    SELECT RAISE(ABORT, 'a revoked credential stays revoked');
END;
-- +goose StatementEnd

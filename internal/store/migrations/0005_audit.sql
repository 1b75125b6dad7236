-- Who did what, with which credential, from where, and whether it was allowed.

-- +goose Up

-- As event_counter: numbers are in commit order and without gaps.
CREATE TABLE audit_counter (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL CHECK (seq >= 0)
) STRICT;
INSERT INTO audit_counter (one, seq) VALUES (1, 0);

-- user acted, and 0 is nobody with an account; owner is the account that it concerns. Neither refers to users: what was done
-- stays written down whatever becomes of them. count refusals alike, from at until until_at, share one row.
CREATE TABLE audit (
    seq           INTEGER PRIMARY KEY,
    at            INTEGER NOT NULL,
    class         TEXT    NOT NULL CHECK (class IN ('change', 'access', 'refusal')),
    action        TEXT    NOT NULL CHECK (action <> ''),
    outcome       TEXT    NOT NULL CHECK (outcome IN ('allowed', 'denied', 'failed')),
    code          TEXT    NOT NULL DEFAULT '',
    user          INTEGER NOT NULL DEFAULT 0,
    owner         INTEGER NOT NULL DEFAULT 0,
    credential    TEXT    NOT NULL DEFAULT '',
    credential_id TEXT    NOT NULL DEFAULT '',
    source        TEXT    NOT NULL DEFAULT '',
    via           TEXT    NOT NULL DEFAULT '',
    gateway       TEXT    NOT NULL DEFAULT '',
    request       TEXT    NOT NULL DEFAULT '',
    container     TEXT    NOT NULL DEFAULT '',
    target        TEXT    NOT NULL DEFAULT '',
    session       TEXT    NOT NULL DEFAULT '',
    session_kind  TEXT    NOT NULL DEFAULT '',
    duration      INTEGER NOT NULL DEFAULT 0 CHECK (duration >= 0),
    count         INTEGER NOT NULL DEFAULT 1 CHECK (count >= 1),
    until_at      INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX audit_of_owner ON audit (owner);
CREATE INDEX audit_of_container ON audit (container) WHERE container <> '';
CREATE INDEX audit_of_class ON audit (class, owner);

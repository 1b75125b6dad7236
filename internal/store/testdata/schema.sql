CREATE INDEX audit_of_class ON audit (class, owner);

CREATE INDEX audit_of_container ON audit (container) WHERE container <> '';

CREATE INDEX audit_of_owner ON audit (owner);

CREATE INDEX container_ids_of_owner ON container_ids (owner);

CREATE INDEX container_keys_by_key ON container_keys (key, owner);

CREATE INDEX containers_by_status ON containers (status) WHERE ordinal IS NOT NULL;

CREATE INDEX containers_without_slot ON containers (owner) WHERE slot IS NULL AND desired <> 'deleted';

CREATE INDEX events_of_container ON events (container, seq) WHERE container <> '';

CREATE UNIQUE INDEX gateways_in_force ON gateways (name) WHERE revoked_at IS NULL;

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

CREATE INDEX idempotency_keys_of_owner ON idempotency_keys (owner, created_at);

CREATE INDEX identities_of_user ON identities (user);

CREATE INDEX ssh_keys_by_fingerprint ON ssh_keys (fingerprint, owner);

CREATE INDEX tokens_by_expiry ON tokens (expires_at);

CREATE INDEX tokens_revoked ON tokens (owner, revoked_at) WHERE revoked_at IS NOT NULL;

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

CREATE TABLE audit_counter (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL CHECK (seq >= 0)
) STRICT;

CREATE TABLE container_ids (
    id         TEXT    PRIMARY KEY CHECK (length(id) = 8 AND id NOT GLOB '*[^0-9a-f]*'),
    owner      INTEGER NOT NULL REFERENCES users (id),
    created_at INTEGER NOT NULL,
    deleted_at INTEGER,
    purged_at  INTEGER,
    UNIQUE (id, owner),
    CHECK (purged_at IS NULL OR deleted_at IS NOT NULL)
) STRICT, WITHOUT ROWID;

CREATE TABLE container_keys (
    container TEXT    NOT NULL,
    key       INTEGER NOT NULL,
    owner     INTEGER NOT NULL,
    PRIMARY KEY (container, key),
    FOREIGN KEY (container, owner) REFERENCES containers (id, owner) ON DELETE CASCADE,
    FOREIGN KEY (key, owner) REFERENCES ssh_keys (id, owner) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE containers (
    number         INTEGER PRIMARY KEY AUTOINCREMENT,
    id             TEXT    NOT NULL UNIQUE,
    owner          INTEGER NOT NULL,
    ordinal        INTEGER,
    quota          INTEGER NOT NULL,
    slot           INTEGER,
    name           TEXT    NOT NULL,
    instance_type  TEXT    NOT NULL,
    memory_mb      INTEGER NOT NULL CHECK (memory_mb > 0),
    storage_gb     INTEGER NOT NULL CHECK (storage_gb > 0),
    ssh_enabled    INTEGER NOT NULL CHECK (ssh_enabled IN (0, 1)),
    https_enabled  INTEGER NOT NULL DEFAULT 0 CHECK (https_enabled IN (0, 1)),
    mount_paths    TEXT    NOT NULL CHECK (json_valid(mount_paths) AND json_type(mount_paths) = 'array'),
    created_at     INTEGER NOT NULL,
    desired        TEXT    NOT NULL CHECK (desired IN ('running', 'stopped', 'deleted')),
    generation     INTEGER NOT NULL CHECK (generation >= 1),
    storage_made   INTEGER NOT NULL DEFAULT 0 CHECK (storage_made IN (0, 1)),
    status         TEXT    NOT NULL CHECK (status IN ('pending', 'initializing', 'running', 'stopped', 'failed')),
    status_message TEXT    NOT NULL DEFAULT '',
    FOREIGN KEY (id, owner) REFERENCES container_ids (id, owner),
    UNIQUE (id, owner),
    UNIQUE (owner, ordinal),
    UNIQUE (owner, slot),
    CHECK ((desired = 'deleted') = (ordinal IS NULL)),
    CHECK (slot IS NULL OR slot BETWEEN 0 AND quota),
    CONSTRAINT containers_within_limit CHECK (ordinal >= 0 AND ordinal < quota)
) STRICT;

CREATE TABLE event_counter (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL CHECK (seq >= 0)
) STRICT;

CREATE TABLE events (
    seq            INTEGER PRIMARY KEY,
    at             INTEGER NOT NULL,
    kind           TEXT    NOT NULL CHECK (kind <> ''),
    owner          INTEGER NOT NULL,
    container      TEXT    NOT NULL DEFAULT '',
    key            INTEGER NOT NULL DEFAULT 0,
    status         TEXT    NOT NULL DEFAULT '',
    status_message TEXT    NOT NULL DEFAULT ''
, token TEXT NOT NULL DEFAULT '') STRICT;

CREATE TABLE gateways (
    fingerprint TEXT    PRIMARY KEY CHECK (fingerprint <> ''),
    name        TEXT    NOT NULL CHECK (name <> ''),
    created_at  INTEGER NOT NULL,
    seen_at     INTEGER,
    revoked_at  INTEGER
) STRICT, WITHOUT ROWID;

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

CREATE TABLE identities (
    issuer     TEXT    NOT NULL CHECK (issuer <> ''),
    subject    TEXT    NOT NULL CHECK (subject <> ''),
    user       INTEGER NOT NULL REFERENCES users (id),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (issuer, subject)
) STRICT, WITHOUT ROWID;

CREATE TABLE ingress_rules (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    container   TEXT    NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    ordinal     INTEGER NOT NULL,
    quota       INTEGER NOT NULL,
    port        INTEGER NOT NULL CHECK (port IN (80, 443) OR port BETWEEN 8000 AND 8999),
    target_port INTEGER NOT NULL CHECK (target_port BETWEEN 1 AND 65535),
    created_at  INTEGER NOT NULL,
    UNIQUE (container, port),
    UNIQUE (container, ordinal),
    CONSTRAINT rules_within_limit CHECK (ordinal >= 0 AND ordinal < quota)
) STRICT;

CREATE TABLE installation (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    id    TEXT    NOT NULL CHECK (length(id) = 32 AND id NOT GLOB '*[^0-9a-f]*'),
    epoch INTEGER NOT NULL CHECK (epoch >= 1)
) STRICT;

CREATE TABLE schema_migrations (
		id INTEGER PRIMARY KEY AUTOINCREMENT,
		version_id INTEGER NOT NULL,
		is_applied INTEGER NOT NULL,
		tstamp TIMESTAMP DEFAULT (datetime('now'))
	);

CREATE TABLE slot_releases (
    owner       INTEGER NOT NULL REFERENCES users (id),
    slot        INTEGER NOT NULL CHECK (slot >= 0),
    released_at INTEGER NOT NULL,
    PRIMARY KEY (owner, slot)
) STRICT, WITHOUT ROWID;

CREATE TABLE ssh_keys (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    owner       INTEGER NOT NULL REFERENCES users (id),
    ordinal     INTEGER NOT NULL,
    quota       INTEGER NOT NULL,
    name        TEXT    NOT NULL,
    public_key  TEXT    NOT NULL CHECK (public_key <> ''),
    fingerprint TEXT    NOT NULL CHECK (fingerprint <> ''),
    created_at  INTEGER NOT NULL,
    UNIQUE (owner, fingerprint),
    UNIQUE (owner, ordinal),
    UNIQUE (id, owner),
    CONSTRAINT keys_within_limit CHECK (ordinal >= 0 AND ordinal < quota)
) STRICT;

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

CREATE TABLE users (
    id         INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
    username   TEXT    NOT NULL UNIQUE CHECK (username <> ''),
    role       TEXT    NOT NULL CHECK (role IN ('user', 'admin')),
    disabled   INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    created_at INTEGER NOT NULL
, max_containers INTEGER CHECK (max_containers BETWEEN 0 AND 1000), max_keys INTEGER CHECK (max_keys BETWEEN 0 AND 1000)) STRICT;

CREATE TRIGGER container_ids_final BEFORE UPDATE ON container_ids
WHEN OLD.id IS NOT NEW.id OR OLD.owner IS NOT NEW.owner
    OR (OLD.deleted_at IS NOT NULL AND OLD.deleted_at IS NOT NEW.deleted_at)
    OR (OLD.purged_at IS NOT NULL AND OLD.purged_at IS NOT NEW.purged_at)
BEGIN
    SELECT RAISE(ABORT, 'a tombstone never changes');
END;

CREATE TRIGGER container_ids_stay BEFORE DELETE ON container_ids
BEGIN
    SELECT RAISE(ABORT, 'the id of a container is never forgotten');
END;

CREATE TRIGGER containers_deleted_is_final BEFORE UPDATE OF desired ON containers
WHEN OLD.desired = 'deleted' AND NEW.desired <> 'deleted'
BEGIN
    SELECT RAISE(ABORT, 'a deleted container stays deleted');
END;

CREATE TRIGGER containers_go_after_tombstone BEFORE DELETE ON containers
WHEN NOT EXISTS (SELECT 1 FROM container_ids t WHERE t.id = OLD.id AND t.purged_at IS NOT NULL)
BEGIN
    SELECT RAISE(ABORT, 'a container goes only when it is deleted and purged');
END;

CREATE TRIGGER containers_storage_is_remembered BEFORE UPDATE OF storage_made ON containers
WHEN OLD.storage_made = 1 AND NEW.storage_made = 0
BEGIN
    SELECT RAISE(ABORT, 'storage that was made is never forgotten');
END;

CREATE TRIGGER gateways_revoked_is_final BEFORE UPDATE OF revoked_at ON gateways
WHEN OLD.revoked_at IS NOT NULL AND OLD.revoked_at IS NOT NEW.revoked_at
BEGIN
    SELECT RAISE(ABORT, 'a revoked credential stays revoked');
END;

CREATE TRIGGER tokens_revoked_is_final BEFORE UPDATE OF revoked_at ON tokens
WHEN OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS NOT OLD.revoked_at
BEGIN
    SELECT RAISE(ABORT, 'a revoked token stays revoked');
END;


PRAGMA application_id = 1114797160;
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE schema_migrations (
		id INTEGER PRIMARY KEY AUTOINCREMENT,
		version_id INTEGER NOT NULL,
		is_applied INTEGER NOT NULL,
		tstamp TIMESTAMP DEFAULT (datetime('now'))
	);
INSERT INTO schema_migrations VALUES(1,0,1,'2026-11-23 20:50:01');
INSERT INTO schema_migrations VALUES(2,1,1,'2026-11-23 20:50:01');
INSERT INTO schema_migrations VALUES(3,2,1,'2026-11-24 08:00:00');
INSERT INTO schema_migrations VALUES(4,3,1,'2026-11-25 08:00:00');
INSERT INTO schema_migrations VALUES(5,4,1,'2026-11-25 10:00:00');
INSERT INTO schema_migrations VALUES(6,5,1,'2026-11-25 11:00:00');
CREATE TABLE installation (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    id    TEXT    NOT NULL CHECK (length(id) = 32 AND id NOT GLOB '*[^0-9a-f]*'),
    epoch INTEGER NOT NULL CHECK (epoch >= 1)
) STRICT;
INSERT INTO installation VALUES(1,'0123456789abcdef0123456789abcdef',1);
CREATE TABLE event_counter (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL CHECK (seq >= 0)
) STRICT;
INSERT INTO event_counter VALUES(1,24);
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
INSERT INTO events VALUES(1,1768473000000,'user.changed',1,'',0,'','','');
INSERT INTO events VALUES(2,1768473000000,'user.changed',2,'',0,'','','');
INSERT INTO events VALUES(3,1768473000000,'user.changed',2,'',0,'','','');
INSERT INTO events VALUES(4,1768473000000,'key.added',1,'',1,'','','');
INSERT INTO events VALUES(5,1768473000000,'key.added',1,'',2,'','','');
INSERT INTO events VALUES(6,1768473000000,'container.created',1,'10000000',0,'','','');
INSERT INTO events VALUES(7,1768473000000,'container.status',1,'10000000',0,'pending','','');
INSERT INTO events VALUES(8,1768473000000,'container.status',1,'10000000',0,'initializing','','');
INSERT INTO events VALUES(9,1768473000000,'container.status',1,'10000000',0,'running','','');
INSERT INTO events VALUES(10,1768473000000,'container.changed',1,'10000000',0,'','','');
INSERT INTO events VALUES(11,1768473000000,'container.status',1,'10000000',0,'stopped','','');
INSERT INTO events VALUES(12,1768473000000,'container.changed',1,'10000000',0,'','','');
INSERT INTO events VALUES(13,1768473000000,'container.status',1,'10000000',0,'pending','','');
INSERT INTO events VALUES(14,1768473000000,'container.status',1,'10000000',0,'initializing','','');
INSERT INTO events VALUES(15,1768473000000,'container.status',1,'10000000',0,'running','','');
INSERT INTO events VALUES(16,1768473000000,'container.created',1,'20000000',0,'','','');
INSERT INTO events VALUES(17,1768473000000,'container.status',1,'20000000',0,'pending','','');
INSERT INTO events VALUES(18,1768473000000,'container.status',1,'20000000',0,'failed','no room','');
INSERT INTO events VALUES(19,1768473000000,'container.deleted',1,'20000000',0,'','','');
INSERT INTO events VALUES(20,1768473000000,'container.created',1,'30000000',0,'','','');
INSERT INTO events VALUES(21,1768473000000,'container.status',1,'30000000',0,'pending','','');
INSERT INTO events VALUES(22,1768473000000,'container.deleted',1,'30000000',0,'','','');
INSERT INTO events VALUES(23,1768473000000,'container.purged',1,'30000000',0,'','','');
INSERT INTO events VALUES(24,1768473003000,'token.revoked',1,'',0,'','','gone');
CREATE TABLE users (
    id         INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
    username   TEXT    NOT NULL UNIQUE CHECK (username <> ''),
    role       TEXT    NOT NULL CHECK (role IN ('user', 'admin')),
    disabled   INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    created_at INTEGER NOT NULL
) STRICT;
INSERT INTO users VALUES(1,'alice','admin',0,1768473000000);
INSERT INTO users VALUES(2,'bob','user',1,1768473000000);
CREATE TABLE identities (
    issuer     TEXT    NOT NULL CHECK (issuer <> ''),
    subject    TEXT    NOT NULL CHECK (subject <> ''),
    user       INTEGER NOT NULL REFERENCES users (id),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (issuer, subject)
) STRICT, WITHOUT ROWID;
INSERT INTO identities VALUES('https://issuer.example','sub-1',1,0);
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
INSERT INTO ssh_keys VALUES(1,1,0,10,'laptop','ssh-ed25519 AAAAlaptop','SHA256:laptop',1768473000000);
INSERT INTO ssh_keys VALUES(2,1,1,10,'desk','ssh-ed25519 AAAAdesk','SHA256:desk',1768473000000);
CREATE TABLE container_ids (
    id         TEXT    PRIMARY KEY CHECK (length(id) = 8 AND id NOT GLOB '*[^0-9a-f]*'),
    owner      INTEGER NOT NULL REFERENCES users (id),
    created_at INTEGER NOT NULL,
    deleted_at INTEGER,
    purged_at  INTEGER,
    UNIQUE (id, owner),
    CHECK (purged_at IS NULL OR deleted_at IS NOT NULL)
) STRICT, WITHOUT ROWID;
INSERT INTO container_ids VALUES('10000000',1,1768473000000,NULL,NULL);
INSERT INTO container_ids VALUES('20000000',1,1768473000000,1768473000000,NULL);
INSERT INTO container_ids VALUES('30000000',1,1768473000000,1768473000000,1768473000000);
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
INSERT INTO containers VALUES(1,'10000000',1,0,3,0,'dev-box','nano',512,5,1,1,'["/root","/var/data"]',1768473000000,'running',3,1,'running','');
INSERT INTO containers VALUES(2,'20000000',1,NULL,3,1,'dev-box','nano',512,5,1,0,'["/root","/var/data"]',1768473000000,'deleted',2,0,'failed','no room');
CREATE TABLE slot_releases (
    owner       INTEGER NOT NULL REFERENCES users (id),
    slot        INTEGER NOT NULL CHECK (slot >= 0),
    released_at INTEGER NOT NULL,
    PRIMARY KEY (owner, slot)
) STRICT, WITHOUT ROWID;
INSERT INTO slot_releases VALUES(1,2,1768473000000);
CREATE TABLE container_keys (
    container TEXT    NOT NULL,
    key       INTEGER NOT NULL,
    owner     INTEGER NOT NULL,
    PRIMARY KEY (container, key),
    FOREIGN KEY (container, owner) REFERENCES containers (id, owner) ON DELETE CASCADE,
    FOREIGN KEY (key, owner) REFERENCES ssh_keys (id, owner) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
INSERT INTO container_keys VALUES('10000000',1,1);
INSERT INTO container_keys VALUES('20000000',1,1);
INSERT INTO container_keys VALUES('10000000',2,1);
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
INSERT INTO ingress_rules VALUES(1,'10000000',0,50,8080,80,1768473000000);
INSERT INTO ingress_rules VALUES(4,'10000000',2,50,443,8443,1768473001000);
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
INSERT INTO tokens VALUES('gone',1,'user',NULL,50,'old','all',1768473000000,4102444800000,NULL,1768473003000);
INSERT INTO tokens VALUES('live',1,'user',0,50,'ci','containers:read keys:read',1768473000000,4102444800000,1768473002000,NULL);
INSERT INTO tokens VALUES('op',1,'operator',0,1000,'berth token','all',1768473000000,4102444800000,NULL,NULL);
CREATE TABLE gateways (
    fingerprint TEXT    PRIMARY KEY CHECK (fingerprint <> ''),
    name        TEXT    NOT NULL CHECK (name <> ''),
    created_at  INTEGER NOT NULL,
    seen_at     INTEGER,
    revoked_at  INTEGER
) STRICT, WITHOUT ROWID;
INSERT INTO gateways VALUES('SHA256:first','edge',1768473005000,1768473005500,1768473006000);
INSERT INTO gateways VALUES('SHA256:second','edge',1768473007000,NULL,NULL);
CREATE TABLE audit_counter (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL CHECK (seq >= 0)
) STRICT;
INSERT INTO audit_counter VALUES(1,2);
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
INSERT INTO audit VALUES(1,1768473008000,'change','startContainer','allowed','',1,1,'token','kept','192.0.2.1:5000','rest','','r1','10000000','','','',0,1,0);
INSERT INTO audit VALUES(2,1768473009000,'refusal','authenticate','denied','unauthenticated',0,0,'token','','192.0.2.1:5000','rest','edge','','','','','',0,3,1768473009500);
DELETE FROM sqlite_sequence;
INSERT INTO sqlite_sequence VALUES('schema_migrations',6);
INSERT INTO sqlite_sequence VALUES('users',2);
INSERT INTO sqlite_sequence VALUES('ssh_keys',2);
INSERT INTO sqlite_sequence VALUES('containers',3);
INSERT INTO sqlite_sequence VALUES('ingress_rules',4);
CREATE INDEX identities_of_user ON identities (user);
CREATE INDEX ssh_keys_by_fingerprint ON ssh_keys (fingerprint, owner);
CREATE INDEX container_ids_of_owner ON container_ids (owner);
CREATE TRIGGER container_ids_stay BEFORE DELETE ON container_ids
BEGIN
    SELECT RAISE(ABORT, 'the id of a container is never forgotten');
END;
CREATE TRIGGER container_ids_final BEFORE UPDATE ON container_ids
WHEN OLD.id IS NOT NEW.id OR OLD.owner IS NOT NEW.owner
    OR (OLD.deleted_at IS NOT NULL AND OLD.deleted_at IS NOT NEW.deleted_at)
    OR (OLD.purged_at IS NOT NULL AND OLD.purged_at IS NOT NEW.purged_at)
BEGIN
    SELECT RAISE(ABORT, 'a tombstone never changes');
END;
CREATE INDEX containers_without_slot ON containers (owner) WHERE slot IS NULL AND desired <> 'deleted';
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
CREATE INDEX container_keys_by_key ON container_keys (key, owner);
CREATE INDEX tokens_by_expiry ON tokens (expires_at);
CREATE INDEX tokens_revoked ON tokens (owner, revoked_at) WHERE revoked_at IS NOT NULL;
CREATE TRIGGER tokens_revoked_is_final BEFORE UPDATE OF revoked_at ON tokens
WHEN OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS NOT OLD.revoked_at
BEGIN
    SELECT RAISE(ABORT, 'a revoked token stays revoked');
END;
CREATE UNIQUE INDEX gateways_in_force ON gateways (name) WHERE revoked_at IS NULL;
CREATE TRIGGER gateways_revoked_is_final BEFORE UPDATE OF revoked_at ON gateways
WHEN OLD.revoked_at IS NOT NULL AND OLD.revoked_at IS NOT NEW.revoked_at
BEGIN
    SELECT RAISE(ABORT, 'a revoked credential stays revoked');
END;
CREATE INDEX audit_of_owner ON audit (owner);
CREATE INDEX audit_of_container ON audit (container) WHERE container <> '';
CREATE INDEX audit_of_class ON audit (class, owner);
COMMIT;

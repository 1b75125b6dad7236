-- Ports that containers expose. https_enabled of a container is 1 while it has a rule for port 443, and changes with it.

-- +goose Up

-- ordinal and quota are as those of ssh_keys: a rule's place among its container's. Rules go with their container's
-- tombstone, and with its row at the latest.
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

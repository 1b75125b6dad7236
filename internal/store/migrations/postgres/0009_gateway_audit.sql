-- Audit records that gateways of other processes send: see the migration of the same number for files.

-- +goose Up

ALTER TABLE gateways ADD COLUMN audit_queue TEXT   COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE gateways ADD COLUMN audit_seq   BIGINT NOT NULL DEFAULT 0 CHECK (audit_seq >= 0);

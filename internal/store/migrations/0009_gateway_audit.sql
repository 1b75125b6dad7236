-- Audit records that gateways of other processes send.

-- +goose Up

-- Up to which of its own numbers a gateway's records are stored; audit_queue names the numbers. Both change with the records.
ALTER TABLE gateways ADD COLUMN audit_queue TEXT NOT NULL DEFAULT '';
ALTER TABLE gateways ADD COLUMN audit_seq INTEGER NOT NULL DEFAULT 0 CHECK (audit_seq >= 0);

-- Limits that administrators give to one account.

-- +goose Up

-- Null is the installation's default. The rows that they bound carry the limit that they were added under as their quota, and
-- the constraints on it hold whatever runs at the same time.
ALTER TABLE users ADD COLUMN max_containers INTEGER CHECK (max_containers BETWEEN 0 AND 1000);
ALTER TABLE users ADD COLUMN max_keys INTEGER CHECK (max_keys BETWEEN 0 AND 1000);

-- For the administrators' list, in the order of numbers within each status.
CREATE INDEX containers_by_status ON containers (status) WHERE ordinal IS NOT NULL;

-- What happened to one container, found without reading everything that happened since.

-- +goose Up

CREATE INDEX events_of_container ON events (container, seq) WHERE container <> '';

-- Enrolment tokens. Of a token's secret there is the digest alone. `refusals` counts those that were turned away with it, by why.
CREATE TABLE enrolment_token (
    number INTEGER PRIMARY KEY, host TEXT NOT NULL, secret TEXT NOT NULL UNIQUE, root TEXT NOT NULL, terms TEXT NOT NULL,
    made_by TEXT NOT NULL, made_at TEXT NOT NULL, not_after TEXT NOT NULL, state TEXT NOT NULL, public_key TEXT,
    refusals TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_open_token ON enrolment_token (host) WHERE state = 'open';

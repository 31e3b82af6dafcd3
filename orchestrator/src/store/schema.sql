CREATE TABLE document (
    digest TEXT PRIMARY KEY, kind TEXT NOT NULL, envelope BLOB NOT NULL, stored_at TEXT NOT NULL
) STRICT;
CREATE TABLE patch_order (
    digest TEXT PRIMARY KEY REFERENCES document, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, state TEXT NOT NULL,
    reason TEXT NOT NULL, submitted_at TEXT NOT NULL, changed_at TEXT NOT NULL
) STRICT;
CREATE TABLE verdict (
    number INTEGER PRIMARY KEY, patch_order TEXT NOT NULL REFERENCES patch_order, verdict TEXT NOT NULL,
    json TEXT NOT NULL, at TEXT NOT NULL
) STRICT;
CREATE TABLE release (
    digest TEXT PRIMARY KEY REFERENCES document, patch_order TEXT NOT NULL REFERENCES patch_order, at TEXT NOT NULL
) STRICT;
CREATE TABLE approval (
    digest TEXT PRIMARY KEY REFERENCES document, patch_order TEXT NOT NULL REFERENCES patch_order,
    release TEXT NOT NULL REFERENCES release, approver TEXT NOT NULL, hosts_at_most INTEGER NOT NULL,
    not_after TEXT NOT NULL, at TEXT NOT NULL
) STRICT;
CREATE TABLE host (
    name TEXT PRIMARY KEY, class TEXT, site TEXT NOT NULL, address TEXT NOT NULL, engine_id TEXT NOT NULL UNIQUE,
    public_key TEXT NOT NULL, root TEXT NOT NULL, payload_uri TEXT NOT NULL, result_head TEXT, audit_head TEXT,
    current_order TEXT REFERENCES patch_order, seen_at TEXT, enrolled_at TEXT NOT NULL
) STRICT;
CREATE TABLE activation (
    digest TEXT PRIMARY KEY REFERENCES document, patch_order TEXT NOT NULL REFERENCES patch_order, action TEXT NOT NULL,
    release TEXT REFERENCES release, approval TEXT REFERENCES approval, state TEXT NOT NULL, reason TEXT NOT NULL,
    at TEXT NOT NULL, ended_at TEXT
) STRICT;
CREATE TABLE order_row (
    host TEXT NOT NULL REFERENCES host, row INTEGER NOT NULL, patch_order TEXT NOT NULL REFERENCES patch_order,
    PRIMARY KEY (host, row), UNIQUE (host, patch_order)
) STRICT;
CREATE TABLE run (
    patch_order TEXT NOT NULL REFERENCES patch_order, host TEXT NOT NULL REFERENCES host, run INTEGER NOT NULL,
    activation TEXT NOT NULL REFERENCES activation, position INTEGER NOT NULL, stage TEXT NOT NULL, state TEXT,
    phase TEXT NOT NULL, percent INTEGER NOT NULL, refusal TEXT, reason TEXT NOT NULL, report TEXT, statement BLOB,
    signature BLOB, verified TEXT NOT NULL, started_at TEXT NOT NULL, ended_at TEXT,
    PRIMARY KEY (patch_order, host, run)
) STRICT;
CREATE UNIQUE INDEX run_of_activation ON run (activation, host);
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, event TEXT NOT NULL, subject TEXT NOT NULL,
    detail TEXT NOT NULL, previous TEXT NOT NULL, digest TEXT NOT NULL UNIQUE
) STRICT;

-- Hosts that are virtual machines themselves, and the snapshots that were taken of them before an order.
CREATE TABLE host_machine (
    host TEXT PRIMARY KEY REFERENCES host, libvirt TEXT NOT NULL, domain TEXT NOT NULL, outside TEXT NOT NULL,
    keep_s INTEGER NOT NULL, UNIQUE (libvirt, domain)
) STRICT;
CREATE TABLE snapshot (
    number INTEGER PRIMARY KEY, host TEXT NOT NULL REFERENCES host, patch_order TEXT NOT NULL REFERENCES patch_order,
    run INTEGER NOT NULL, name TEXT NOT NULL, guest TEXT NOT NULL, layers TEXT NOT NULL, stillness TEXT, had TEXT,
    inventory TEXT, result_head TEXT, state TEXT NOT NULL, reason TEXT NOT NULL, at TEXT NOT NULL, merge_at TEXT,
    ended_at TEXT
) STRICT;
-- One at a time: each is a layer over the one before.
CREATE UNIQUE INDEX snapshot_open ON snapshot (host) WHERE ended_at IS NULL;

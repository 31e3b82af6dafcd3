-- What somebody answers for that the lab found against an order, and which releases rest on that.
CREATE TABLE waiver (
    digest TEXT PRIMARY KEY REFERENCES document, patch_order TEXT NOT NULL REFERENCES patch_order,
    baseline TEXT NOT NULL, waived TEXT NOT NULL, class TEXT NOT NULL, hosts_at_most INTEGER NOT NULL,
    owner TEXT NOT NULL, reason TEXT NOT NULL, given_at TEXT NOT NULL, not_after TEXT NOT NULL, at TEXT NOT NULL
) STRICT;
CREATE TABLE release_waiver (
    release TEXT NOT NULL REFERENCES release, waiver TEXT NOT NULL REFERENCES waiver, PRIMARY KEY (release, waiver)
) STRICT;

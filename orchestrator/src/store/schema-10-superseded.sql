-- Orders that a released one replaces, by that one's own word. The older need not have come by here.
CREATE TABLE superseded (
    older TEXT NOT NULL, newer TEXT NOT NULL REFERENCES patch_order, PRIMARY KEY (older, newer)
) STRICT;

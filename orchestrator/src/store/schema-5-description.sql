-- What hosts are and do, as they last said.
CREATE TABLE host_description (
    host TEXT PRIMARY KEY REFERENCES host, digest TEXT NOT NULL, description TEXT NOT NULL, read_at TEXT NOT NULL
) STRICT;

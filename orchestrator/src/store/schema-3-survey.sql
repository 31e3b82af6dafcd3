-- What hosts have installed and how busy their week is, as they last said.
CREATE TABLE survey (
    host TEXT PRIMARY KEY REFERENCES host, inventory TEXT, change INTEGER NOT NULL, packages_at TEXT,
    week TEXT NOT NULL, week_at TEXT
) STRICT;
CREATE TABLE host_package (
    host TEXT NOT NULL REFERENCES host, number INTEGER NOT NULL, change INTEGER NOT NULL, name TEXT NOT NULL,
    arch TEXT NOT NULL, version TEXT NOT NULL, PRIMARY KEY (host, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX host_package_by_name ON host_package (name, version);

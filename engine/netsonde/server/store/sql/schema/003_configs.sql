-- Signed configurations, and what agents said of each.

CREATE TABLE config (
  revision INTEGER PRIMARY KEY,
  digest TEXT NOT NULL,
  envelope BLOB NOT NULL,
  scope BLOB NOT NULL,
  published_ns INTEGER NOT NULL,
  expires_ns INTEGER NOT NULL
);

CREATE TABLE config_report (
  revision INTEGER NOT NULL,
  agent_id INTEGER NOT NULL,
  status TEXT NOT NULL,
  reported_ns INTEGER NOT NULL,
  document BLOB NOT NULL,
  PRIMARY KEY (revision, agent_id)
) WITHOUT ROWID;

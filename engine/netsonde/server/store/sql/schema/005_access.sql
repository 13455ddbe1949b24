-- Who may do what, and who did. Tokens are kept as their SHA-256. Scopes are words with a space
-- between them, so that a new one needs no new column.

CREATE TABLE operator_token (
  token_id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  digest BLOB NOT NULL UNIQUE,
  scopes TEXT NOT NULL,
  created_ns INTEGER NOT NULL,
  expires_ns INTEGER,
  last_used_ns INTEGER
);

CREATE TABLE enrolment_token (
  token_id INTEGER PRIMARY KEY,
  name TEXT,
  digest BLOB NOT NULL UNIQUE,
  uses_max INTEGER NOT NULL,
  uses INTEGER NOT NULL,
  labels BLOB NOT NULL,
  created_ns INTEGER NOT NULL,
  expires_ns INTEGER NOT NULL
);

-- Which token an agent enrolled with, and the labels it got by that; outlives the token.
CREATE TABLE enrolment (
  identity TEXT PRIMARY KEY,
  token_id INTEGER NOT NULL,
  labels BLOB NOT NULL,
  enrolled_ns INTEGER NOT NULL
) WITHOUT ROWID;

-- Only ever appended, and forgotten by age. error is null where the call changed something.
CREATE TABLE audit (
  audit_id INTEGER PRIMARY KEY AUTOINCREMENT,
  at_ns INTEGER NOT NULL,
  token_id INTEGER,
  token_name TEXT NOT NULL,
  remote TEXT NOT NULL,
  call TEXT NOT NULL,
  object TEXT NOT NULL,
  status INTEGER NOT NULL,
  error TEXT,
  request_id TEXT NOT NULL
);
CREATE INDEX audit_age ON audit (at_ns);
CREATE INDEX audit_refused ON audit (audit_id) WHERE error IS NOT NULL;

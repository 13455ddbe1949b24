-- Which lines of a stream of tasks have become tasks, under the Idempotency-Key of the stream; a
-- repeated stream makes none of them again.

CREATE TABLE upload (
  upload_id INTEGER PRIMARY KEY,
  key TEXT NOT NULL UNIQUE,
  used_ns INTEGER NOT NULL
);
CREATE INDEX upload_used ON upload (used_ns);

CREATE TABLE uploaded_line (
  upload_id INTEGER NOT NULL,
  line INTEGER NOT NULL,
  digest BLOB NOT NULL,
  task_id INTEGER NOT NULL,
  PRIMARY KEY (upload_id, line)
) WITHOUT ROWID;

-- What agents measure of themselves. A block holds all of an agent's series at one time, so that an
-- envelope is one row; level 0 is one envelope, 1 a minute, 2 an hour. The table it follows kept an
-- agent's last body, which nobody read.
DROP TABLE metrics;

CREATE TABLE metric_source (
  agent_id INTEGER PRIMARY KEY,
  run TEXT NOT NULL,
  seq INTEGER NOT NULL,
  answers BLOB NOT NULL,
  earlier BLOB NOT NULL,
  latest BLOB NOT NULL
);

CREATE TABLE metric_series (
  series_id INTEGER PRIMARY KEY,
  agent_id INTEGER NOT NULL,
  name TEXT NOT NULL,
  key TEXT NOT NULL,
  seen_ns INTEGER NOT NULL
);
CREATE UNIQUE INDEX metric_series_key ON metric_series (agent_id, key);
CREATE INDEX metric_series_name ON metric_series (name);
CREATE INDEX metric_series_seen ON metric_series (seen_ns);

CREATE TABLE metric_block (
  block_id INTEGER PRIMARY KEY,
  level INTEGER NOT NULL,
  agent_id INTEGER NOT NULL,
  at_ns INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE INDEX metric_block_agent ON metric_block (level, agent_id, at_ns);
CREATE INDEX metric_block_time ON metric_block (level, at_ns, agent_id);

CREATE TABLE metric_roll (
  level INTEGER PRIMARY KEY,
  window_ns INTEGER NOT NULL,
  after INTEGER NOT NULL
);

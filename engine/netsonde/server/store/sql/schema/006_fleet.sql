-- How agents are, what is ordered of them, and what a dead letter needs to live again.

-- The last heartbeat that counts, of each agent; retired holds instances before this one (JSON).
CREATE TABLE heartbeat (
  agent_id INTEGER PRIMARY KEY,
  instance_id TEXT,
  seq INTEGER,
  heard_ns INTEGER,
  state TEXT,
  document BLOB NOT NULL,
  retired TEXT NOT NULL
);

CREATE TABLE drained_agent (
  agent_id INTEGER PRIMARY KEY,
  since_ns INTEGER NOT NULL
);

-- Open commands only.
CREATE TABLE command (
  command_id INTEGER PRIMARY KEY,
  agent_id INTEGER NOT NULL,
  type TEXT NOT NULL,
  ordered_ns INTEGER NOT NULL
);
CREATE UNIQUE INDEX command_agent ON command (agent_id, type);

-- Unknown of letters that are older: those go back to the agent that had them last, which their
-- queue had allowed, with as many attempts as they had.
ALTER TABLE dead_letter ADD COLUMN queue INTEGER;
ALTER TABLE dead_letter ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dead_letter ADD COLUMN max_attempts INTEGER;

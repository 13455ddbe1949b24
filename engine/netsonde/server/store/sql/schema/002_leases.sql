-- One file, one owner. The queue is narrow and hot; specs are immutable and shared; results are
-- only ever appended. Instants are ns of the server's clock.

CREATE TABLE meta (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE counter (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE spec (
  spec_id INTEGER PRIMARY KEY,
  digest BLOB NOT NULL UNIQUE,
  body BLOB NOT NULL
);

-- Live tasks only. state: 0 ready, 1 leased, 2 revoked. A standing task has repeat, as the lease
-- says it; scheduled_ns is then its anchor and next_tick follows the last tick with a result.
CREATE TABLE task (
  task_id INTEGER PRIMARY KEY,
  state INTEGER NOT NULL DEFAULT 0,
  queue INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  priority INTEGER NOT NULL,
  run_ns INTEGER NOT NULL,
  stale_ns INTEGER,
  attempt INTEGER NOT NULL DEFAULT 0,
  max_attempts INTEGER NOT NULL,
  returns INTEGER NOT NULL DEFAULT 0,
  spec_id INTEGER NOT NULL,
  check_id INTEGER,
  scheduled_ns INTEGER,
  repeat TEXT,
  next_tick INTEGER NOT NULL DEFAULT 0,
  lease_id INTEGER,
  agent_id INTEGER,
  claim_key INTEGER,
  granted_ns INTEGER,
  until_ns INTEGER,
  due_ns INTEGER
);
CREATE INDEX task_ready ON task (queue, kind, priority, run_ns) WHERE state = 0;
CREATE INDEX task_due ON task (due_ns) WHERE state > 0;
CREATE INDEX task_holder ON task (agent_id, claim_key) WHERE state > 0;
CREATE UNIQUE INDEX task_lease ON task (lease_id) WHERE lease_id IS NOT NULL;
CREATE INDEX task_check ON task (check_id) WHERE check_id IS NOT NULL;
CREATE INDEX task_stale ON task (stale_ns) WHERE stale_ns IS NOT NULL AND state = 0;

-- Every lease under which ticks may be reported; outlives its task by what an agent may spool.
CREATE TABLE standing_lease (
  lease_id INTEGER PRIMARY KEY,
  task_id INTEGER NOT NULL,
  agent_id INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  anchor_ns INTEGER NOT NULL,
  repeat TEXT NOT NULL,
  spec_id INTEGER NOT NULL,
  granted_ns INTEGER NOT NULL,
  check_id INTEGER,
  ended_ns INTEGER,
  followed_ns INTEGER
);
CREATE INDEX standing_lease_task ON standing_lease (task_id);

-- One result per lease, or per tick of a task; a tick's key is the instant that it was due.
CREATE TABLE result (
  result_id INTEGER PRIMARY KEY AUTOINCREMENT,
  lease_id INTEGER NOT NULL,
  task_id INTEGER NOT NULL,
  agent_id INTEGER NOT NULL,
  check_id INTEGER,
  kind INTEGER NOT NULL,
  outcome TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  is_final INTEGER NOT NULL,
  received_ns INTEGER NOT NULL,
  scheduled_ns INTEGER,
  tick INTEGER,
  spec_id INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE UNIQUE INDEX result_lease ON result (lease_id) WHERE tick IS NULL;
CREATE UNIQUE INDEX result_tick ON result (task_id, scheduled_ns) WHERE tick IS NOT NULL;
CREATE INDEX result_check ON result (check_id) WHERE check_id IS NOT NULL;
CREATE INDEX result_agent ON result (agent_id);
CREATE INDEX result_task ON result (task_id);
CREATE INDEX result_outcome ON result (kind, outcome);
CREATE INDEX result_received ON result (received_ns);

CREATE TABLE dead_letter (
  task_id INTEGER PRIMARY KEY,
  lease_id INTEGER NOT NULL UNIQUE,
  agent_id INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  reason TEXT NOT NULL,
  died_ns INTEGER NOT NULL,
  spec_id INTEGER NOT NULL,
  check_id INTEGER,
  scheduled_ns INTEGER
);

CREATE TABLE agent (
  agent_id INTEGER PRIMARY KEY,
  identity TEXT NOT NULL UNIQUE,
  hostname TEXT NOT NULL,
  is_legacy INTEGER NOT NULL,
  registered_ns INTEGER NOT NULL,
  last_seen_ns INTEGER NOT NULL,
  instance_id TEXT,
  labels BLOB NOT NULL,
  has_operator_labels INTEGER NOT NULL,
  is_disabled INTEGER NOT NULL,
  document BLOB NOT NULL
);

CREATE TABLE token (
  agent_id INTEGER NOT NULL,
  position INTEGER NOT NULL,
  digest BLOB NOT NULL,
  is_used INTEGER NOT NULL,
  until_ns INTEGER,
  PRIMARY KEY (agent_id, position)
) WITHOUT ROWID;

CREATE TABLE label_queue (
  queue INTEGER PRIMARY KEY,
  labels BLOB NOT NULL UNIQUE
);

CREATE TABLE probe_check (
  check_id INTEGER PRIMARY KEY,
  document BLOB NOT NULL,
  is_enabled INTEGER NOT NULL,
  next_ns INTEGER,
  created_ns INTEGER NOT NULL,
  tick INTEGER NOT NULL,
  tasks INTEGER NOT NULL,
  skipped INTEGER NOT NULL,
  missed INTEGER NOT NULL
);
CREATE INDEX probe_check_next ON probe_check (next_ns) WHERE is_enabled = 1 AND next_ns IS NOT NULL;

CREATE TABLE answer (
  key TEXT PRIMARY KEY,
  body_digest BLOB NOT NULL,
  status INTEGER NOT NULL,
  body BLOB NOT NULL,
  kept_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX answer_age ON answer (kept_ns);

CREATE TABLE metrics (
  agent_id INTEGER PRIMARY KEY,
  body BLOB NOT NULL,
  received_ns INTEGER NOT NULL
);

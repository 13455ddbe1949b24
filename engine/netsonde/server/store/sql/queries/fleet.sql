-- How agents are and what is ordered of them.

-- name: save_heartbeat
INSERT INTO heartbeat (agent_id, instance_id, seq, heard_ns, state, document, retired)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (agent_id) DO UPDATE SET
  instance_id = excluded.instance_id, seq = excluded.seq, heard_ns = excluded.heard_ns,
  state = excluded.state, document = excluded.document, retired = excluded.retired;

-- name: heartbeats
SELECT agent_id, instance_id, seq, heard_ns, state, document, retired
FROM heartbeat ORDER BY agent_id;

-- name: drain_agent
INSERT OR IGNORE INTO drained_agent (agent_id, since_ns) VALUES (?, ?);

-- name: resume_agent
DELETE FROM drained_agent WHERE agent_id = ?;

-- name: drained_agents
SELECT agent_id, since_ns FROM drained_agent;

-- name: drained_since
SELECT since_ns FROM drained_agent WHERE agent_id = ?;

-- name: is_barred
SELECT EXISTS (SELECT 1 FROM drained_agent WHERE agent_id = ?1)
    OR EXISTS (SELECT 1 FROM agent WHERE agent_id = ?1 AND is_disabled = 1);

-- name: open_command
SELECT 1 FROM command WHERE agent_id = ? AND type = ?;

-- name: add_command
INSERT INTO command (command_id, agent_id, type, ordered_ns) VALUES (?, ?, ?, ?);

-- name: call_off
DELETE FROM command WHERE agent_id = ? AND type = ?;

-- name: commands
SELECT command_id, agent_id, type, ordered_ns FROM command
WHERE agent_id IN (SELECT value FROM json_each(?)) ORDER BY command_id;

-- name: settle_commands
DELETE FROM command WHERE agent_id = ? AND command_id IN (SELECT value FROM json_each(?));

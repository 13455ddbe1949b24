-- Series and blocks of metrics.

-- name: metric_source
SELECT agent_id, run, seq, answers, earlier, latest FROM metric_source WHERE agent_id = ?;

-- name: save_metric_source
INSERT INTO metric_source (agent_id, run, seq, answers, earlier, latest) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (agent_id) DO UPDATE SET
  run = excluded.run, seq = excluded.seq, answers = excluded.answers, earlier = excluded.earlier,
  latest = excluded.latest;

-- name: metric_keys
SELECT json_group_object(key, series_id) FROM metric_series WHERE agent_id = ?;

-- name: add_metric_series
INSERT INTO metric_series (series_id, agent_id, name, key, seen_ns) VALUES (?, ?, ?, ?, ?);

-- name: metric_series
SELECT json_group_array(json_array(series_id, agent_id, key))
FROM (
  SELECT series_id, agent_id, key FROM metric_series NOT INDEXED
  WHERE series_id > :after ORDER BY series_id LIMIT :limit
);

-- name: metric_series_named
SELECT json_group_array(json_array(series_id, agent_id, key))
FROM (
  SELECT series_id, agent_id, key FROM metric_series INDEXED BY metric_series_name
  WHERE name = :name AND series_id > :after ORDER BY series_id LIMIT :limit
);

-- name: metric_series_of
SELECT json_group_array(json_array(series_id, agent_id, key))
FROM (
  SELECT series_id, agent_id, key FROM metric_series INDEXED BY metric_series_agent
  WHERE agent_id = :agent_id AND series_id > :after ORDER BY series_id LIMIT :limit
);

-- name: metric_series_named_of
SELECT json_group_array(json_array(series_id, agent_id, key))
FROM (
  SELECT series_id, agent_id, key FROM metric_series INDEXED BY metric_series_agent
  WHERE agent_id = :agent_id AND series_id > :after AND name = :name ORDER BY series_id LIMIT :limit
);

-- name: saw_metric_series
UPDATE metric_series SET seen_ns = max(seen_ns, ?)
WHERE series_id IN (SELECT value FROM json_each(?));

-- name: drop_metric_series
DELETE FROM metric_series WHERE series_id IN (
  SELECT series_id FROM metric_series WHERE seen_ns < ? ORDER BY seen_ns LIMIT ?);

-- name: add_metric_block
INSERT INTO metric_block (level, agent_id, at_ns, body) VALUES (?, ?, ?, ?);

-- name: metric_blocks
SELECT agent_id, at_ns, body FROM metric_block INDEXED BY metric_block_agent
WHERE level = ? AND agent_id = ? AND at_ns >= ? AND at_ns < ? ORDER BY at_ns, block_id LIMIT ?;

-- name: metric_agents
SELECT DISTINCT agent_id FROM metric_block INDEXED BY metric_block_time
WHERE level = ? AND at_ns >= ? AND at_ns < ? AND agent_id > ? ORDER BY agent_id LIMIT ?;

-- name: first_metric_block
SELECT min(at_ns) FROM metric_block INDEXED BY metric_block_time WHERE level = ? AND at_ns >= ?;

-- name: drop_metric_blocks
DELETE FROM metric_block WHERE block_id IN (
  SELECT block_id FROM metric_block INDEXED BY metric_block_time
  WHERE level = ? AND at_ns < ? ORDER BY at_ns LIMIT ?);

-- name: roll_progress
SELECT window_ns, after FROM metric_roll WHERE level = ?;

-- name: save_roll_progress
INSERT INTO metric_roll (level, window_ns, after) VALUES (?, ?, ?)
ON CONFLICT (level) DO UPDATE SET window_ns = excluded.window_ns, after = excluded.after;

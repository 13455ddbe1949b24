-- Rows that go, a few at a time.

-- name: oldest_results
SELECT result_id, received_ns, lease_id, tick, scheduled_ns, length(body)
FROM result ORDER BY result_id LIMIT ?;

-- name: keep_leases
INSERT OR IGNORE INTO gone_lease (lease_id, agent_id)
SELECT lease_id, agent_id FROM result NOT INDEXED
WHERE result_id <= ? AND tick IS NULL AND lease_id >= ?;

-- name: keep_ticks
INSERT OR IGNORE INTO gone_tick (task_id, scheduled_ns)
SELECT task_id, scheduled_ns FROM result NOT INDEXED
WHERE result_id <= ? AND tick IS NOT NULL AND scheduled_ns >= ?;

-- name: drop_results
DELETE FROM result WHERE result_id <= ?;

-- name: drop_dead_letters
DELETE FROM dead_letter WHERE task_id IN (
  SELECT task_id FROM dead_letter INDEXED BY dead_letter_age WHERE died_ns < ?
  ORDER BY died_ns LIMIT ?
);

-- name: drop_gone_leases
DELETE FROM gone_lease WHERE lease_id IN (
  SELECT lease_id FROM gone_lease WHERE lease_id < ? ORDER BY lease_id LIMIT ?
);

-- name: drop_gone_ticks
DELETE FROM gone_tick WHERE (task_id, scheduled_ns) IN (
  SELECT task_id, scheduled_ns FROM gone_tick WHERE scheduled_ns < ? ORDER BY scheduled_ns LIMIT ?
);

-- name: oldest_result
SELECT received_ns FROM result ORDER BY result_id LIMIT 1;

-- name: specs_after
SELECT spec_id,
       NOT EXISTS (SELECT 1 FROM result WHERE result.spec_id = spec.spec_id)
       AND NOT EXISTS (SELECT 1 FROM task WHERE task.spec_id = spec.spec_id)
       AND NOT EXISTS (SELECT 1 FROM standing_lease WHERE standing_lease.spec_id = spec.spec_id)
       AND NOT EXISTS (SELECT 1 FROM dead_letter WHERE dead_letter.spec_id = spec.spec_id)
FROM spec WHERE spec_id > ? ORDER BY spec_id LIMIT ?;

-- name: drop_specs
-- The greatest id stays: SQLite would give it to the next spec, while somebody still knows it.
DELETE FROM spec
WHERE spec_id IN (SELECT value FROM json_each(?)) AND spec_id < (SELECT max(spec_id) FROM spec)
  AND NOT EXISTS (SELECT 1 FROM result WHERE result.spec_id = spec.spec_id)
  AND NOT EXISTS (SELECT 1 FROM task WHERE task.spec_id = spec.spec_id)
  AND NOT EXISTS (SELECT 1 FROM standing_lease WHERE standing_lease.spec_id = spec.spec_id)
  AND NOT EXISTS (SELECT 1 FROM dead_letter WHERE dead_letter.spec_id = spec.spec_id);

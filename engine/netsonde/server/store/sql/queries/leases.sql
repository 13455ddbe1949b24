-- Every statement by name. Many rows go in as one JSON array and come out as one: each row that
-- Python steps to gives the GIL away, and a busy loop gives it back only after milliseconds.

-- name: meta
SELECT name, value FROM meta;

-- name: save_meta
INSERT INTO meta (name, value) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- name: count
INSERT INTO counter (name, value) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET value = value + excluded.value;

-- name: counters
SELECT name, value FROM counter;

-- name: add_spec
INSERT OR IGNORE INTO spec (digest, body) VALUES (?, ?);

-- name: spec_id
SELECT spec_id FROM spec WHERE digest = ?;

-- name: add_task
INSERT INTO task (task_id, queue, kind, priority, run_ns, stale_ns, max_attempts, spec_id,
                  check_id, scheduled_ns, repeat)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: take
UPDATE task
SET state = 1, attempt = attempt + 1, lease_id = :first_lease_id + chosen.place,
    agent_id = :agent_id, claim_key = :claim_key, granted_ns = :now_ns,
    until_ns = CASE WHEN repeat IS NULL THEN :until_ns ELSE :standing_until_ns END,
    due_ns = CASE WHEN repeat IS NULL THEN :due_ns ELSE :standing_due_ns END
FROM (
  SELECT task_id AS chosen_id, row_number() OVER (ORDER BY priority, run_ns, task_id) - 1 AS place
  FROM (
    SELECT task_id, priority, run_ns FROM task INDEXED BY task_ready
    WHERE state = 0 AND queue = :queue AND kind = :kind AND run_ns <= :now_ns
      AND (stale_ns IS NULL OR stale_ns > :now_ns)
      AND (repeat IS NULL OR :standing_until_ns IS NOT NULL)
    ORDER BY priority, run_ns, task_id LIMIT :limit
  )
) AS chosen
WHERE task_id = chosen.chosen_id;

-- name: taken
SELECT json_group_array(json_array(
  task_id, lease_id, spec_id, attempt, max_attempts, granted_ns, until_ns, priority, check_id,
  scheduled_ns, repeat, next_tick))
FROM (SELECT * FROM task WHERE lease_id BETWEEN ? AND ? ORDER BY lease_id);

-- name: specs
SELECT spec_id, body FROM spec WHERE spec_id IN (SELECT value FROM json_each(?));

-- name: granted_under
SELECT json_group_array(json_array(
  task_id, lease_id, spec_id, attempt, max_attempts, granted_ns, until_ns, priority, check_id,
  scheduled_ns, repeat, next_tick, kind))
FROM (
  SELECT * FROM task INDEXED BY task_holder
  WHERE agent_id = ? AND claim_key = ? AND state > 0 AND state < 2 ORDER BY lease_id
);

-- name: by_lease
SELECT json_group_array(json_array(
  task_id, lease_id, agent_id, state, kind, attempt, max_attempts, returns, granted_ns, until_ns,
  check_id, spec_id, scheduled_ns, queue, repeat IS NOT NULL))
FROM task WHERE lease_id IN (SELECT value FROM json_each(?));

-- name: held_by
SELECT json_group_array(json_array(
  task_id, lease_id, agent_id, state, kind, attempt, max_attempts, returns, granted_ns, until_ns,
  check_id, spec_id, scheduled_ns, queue, repeat IS NOT NULL))
FROM (SELECT * FROM task WHERE agent_id = ? AND state > 0 ORDER BY lease_id);

-- name: holds_more_than
SELECT 1 FROM task INDEXED BY task_holder WHERE agent_id = ? AND state > 0 LIMIT 1 OFFSET ?;

-- name: extend
UPDATE task
SET state = 1, until_ns = json_extract(value, '$[1]'), due_ns = json_extract(value, '$[2]')
FROM json_each(?) WHERE task_id = json_extract(value, '$[0]');

-- name: requeue
UPDATE task
SET state = 0, run_ns = json_extract(value, '$[1]'), attempt = json_extract(value, '$[2]'),
    returns = json_extract(value, '$[3]'),
    lease_id = CASE WHEN json_extract(value, '$[4]') THEN lease_id END
FROM json_each(?) WHERE task_id = json_extract(value, '$[0]');

-- name: free_lease
UPDATE task SET lease_id = NULL WHERE task_id IN (SELECT value FROM json_each(?));

-- name: bury
INSERT INTO dead_letter (task_id, lease_id, agent_id, kind, attempt, reason, died_ns, spec_id,
                         check_id, scheduled_ns, queue, priority, max_attempts)
SELECT task_id, lease_id, agent_id, kind, attempt, ?, ?, spec_id, check_id, scheduled_ns, queue,
       priority, max_attempts
FROM task WHERE task_id = ?;

-- name: finish
DELETE FROM task WHERE task_id IN (SELECT value FROM json_each(?));

-- name: due
SELECT json_group_array(json_array(
  task_id, lease_id, agent_id, state, kind, attempt, max_attempts, returns, granted_ns, until_ns,
  check_id, spec_id, scheduled_ns, queue, repeat IS NOT NULL))
FROM (
  SELECT * FROM task INDEXED BY task_due WHERE state > 0 AND due_ns <= ? ORDER BY due_ns LIMIT ?
);

-- name: is_sweep_due
SELECT EXISTS (SELECT 1 FROM task INDEXED BY task_due WHERE state > 0 AND due_ns <= ?)
    OR EXISTS (SELECT 1 FROM task INDEXED BY task_stale
               WHERE state = 0 AND stale_ns IS NOT NULL AND stale_ns <= ?);

-- name: drop_stale
DELETE FROM task WHERE task_id IN (
  SELECT task_id FROM task WHERE state = 0 AND stale_ns IS NOT NULL AND stale_ns <= ? LIMIT ?
);

-- name: tasks_of_check
SELECT task_id FROM task WHERE check_id = ?;

-- name: drop_ready
DELETE FROM task WHERE state = 0 AND task_id IN (SELECT value FROM json_each(?));

-- name: revoke
UPDATE task SET state = 2, due_ns = CASE WHEN repeat IS NULL THEN due_ns ELSE ?2 END
WHERE state = 1 AND task_id IN (SELECT value FROM json_each(?1));

-- name: end_standing
UPDATE standing_lease SET ended_ns = ?2
WHERE ended_ns IS NULL AND task_id IN (SELECT value FROM json_each(?1));

-- name: follow_standing
UPDATE standing_lease SET followed_ns = ?3
WHERE followed_ns IS NULL
  AND task_id IN (SELECT task_id FROM task WHERE lease_id BETWEEN ?1 AND ?2 AND repeat IS NOT NULL);

-- name: add_standing
INSERT INTO standing_lease (lease_id, task_id, agent_id, kind, anchor_ns, repeat, spec_id,
                            granted_ns, check_id)
SELECT lease_id, task_id, agent_id, kind, scheduled_ns, repeat, spec_id, granted_ns, check_id
FROM task WHERE lease_id BETWEEN ? AND ? AND repeat IS NOT NULL;

-- name: standing_leases
SELECT json_group_array(json_array(
  standing_lease.lease_id, standing_lease.task_id, standing_lease.agent_id, standing_lease.kind,
  anchor_ns, standing_lease.repeat, standing_lease.spec_id, standing_lease.granted_ns,
  standing_lease.check_id, ended_ns, next_tick))
FROM standing_lease LEFT JOIN task ON task.task_id = standing_lease.task_id
WHERE standing_lease.lease_id IN (SELECT value FROM json_each(?));

-- name: standing_of_check
SELECT queue, body, task_id FROM task JOIN spec USING (spec_id)
WHERE check_id = ? AND repeat IS NOT NULL AND state < 2;

-- name: ran
UPDATE task SET next_tick = max(next_tick, ?) WHERE task_id = ?;

-- name: have_run
SELECT task_id, scheduled_ns FROM result JOIN json_each(?1) AS wanted
  ON task_id = json_extract(wanted.value, '$[0]')
  AND scheduled_ns = json_extract(wanted.value, '$[1]')
WHERE tick IS NOT NULL
UNION ALL
SELECT task_id, scheduled_ns FROM gone_tick JOIN json_each(?1) AS wanted
  ON task_id = json_extract(wanted.value, '$[0]')
  AND scheduled_ns = json_extract(wanted.value, '$[1]');

-- name: forget_standing
DELETE FROM standing_lease
WHERE ended_ns < ?1 OR followed_ns < ?1
   OR granted_ns < ?1 AND NOT EXISTS (SELECT 1 FROM task WHERE task_id = standing_lease.task_id);

-- name: revoked_of_check
SELECT agent_id, lease_id FROM task WHERE check_id = ? AND state = 2;

-- name: live_of_check
SELECT queue, body FROM task JOIN spec USING (spec_id)
WHERE check_id = ? AND repeat IS NULL AND (state = 1 OR state = 0 AND (stale_ns IS NULL OR stale_ns > ?));

-- name: delayed
SELECT DISTINCT queue, kind, run_ns FROM task WHERE state = 0 AND run_ns > ?;

-- name: depths
SELECT queue, kind, sum(state = 0 AND run_ns <= ?1), sum(state = 0 AND run_ns > ?1),
       sum(state > 0), min(CASE WHEN state = 0 AND run_ns <= ?1 THEN run_ns END)
FROM task GROUP BY queue, kind ORDER BY queue, kind;

-- name: add_result
INSERT INTO result (lease_id, task_id, agent_id, check_id, kind, outcome, attempt, is_final,
                    received_ns, scheduled_ns, tick, spec_id, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: result_owners
SELECT lease_id, agent_id FROM result
WHERE tick IS NULL AND lease_id IN (SELECT value FROM json_each(?1))
UNION ALL
SELECT lease_id, agent_id FROM gone_lease WHERE lease_id IN (SELECT value FROM json_each(?1));

-- name: dead_by_lease
SELECT task_id, lease_id, agent_id, kind, attempt, reason, died_ns, body, spec_id, check_id,
       scheduled_ns, coalesce(queue, -agent_id), priority, coalesce(max_attempts, attempt)
FROM dead_letter JOIN spec USING (spec_id)
WHERE lease_id IN (SELECT value FROM json_each(?));

-- name: unbury
DELETE FROM dead_letter WHERE task_id IN (SELECT value FROM json_each(?));

-- name: save_agent
INSERT INTO agent (agent_id, identity, hostname, is_legacy, registered_ns, last_seen_ns,
                   instance_id, labels, has_operator_labels, is_disabled, document)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (agent_id) DO UPDATE SET
  identity = excluded.identity, hostname = excluded.hostname, is_legacy = excluded.is_legacy,
  registered_ns = excluded.registered_ns, last_seen_ns = excluded.last_seen_ns,
  instance_id = excluded.instance_id, labels = excluded.labels,
  has_operator_labels = excluded.has_operator_labels, is_disabled = excluded.is_disabled,
  document = excluded.document;

-- name: drop_tokens
DELETE FROM token WHERE agent_id = ?;

-- name: add_token
INSERT INTO token (agent_id, position, digest, is_used, until_ns) VALUES (?, ?, ?, ?, ?);

-- name: tokens
SELECT digest, is_used, until_ns FROM token WHERE agent_id = ? ORDER BY position;

-- name: agent
SELECT agent_id, identity, hostname, is_legacy, registered_ns, last_seen_ns, instance_id, labels,
       has_operator_labels, is_disabled, document
FROM agent WHERE agent_id = ?;

-- name: agent_by_identity
SELECT agent_id, identity, hostname, is_legacy, registered_ns, last_seen_ns, instance_id, labels,
       has_operator_labels, is_disabled, document
FROM agent WHERE identity = ?;

-- name: agents
SELECT agent_id, identity, hostname, is_legacy, registered_ns, last_seen_ns, instance_id, labels,
       has_operator_labels, is_disabled, document
FROM agent WHERE agent_id > ? ORDER BY agent_id LIMIT ?;

-- name: saw_agent
UPDATE agent SET last_seen_ns = max(last_seen_ns, ?) WHERE agent_id = ?;

-- name: add_label_queue
INSERT OR IGNORE INTO label_queue (labels) VALUES (?);

-- name: label_queue
SELECT queue FROM label_queue WHERE labels = ?;

-- name: label_queues
SELECT queue, labels FROM label_queue;

-- name: save_check
INSERT INTO probe_check (check_id, document, is_enabled, next_ns, created_ns, tick, tasks, skipped,
                         missed)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (check_id) DO UPDATE SET
  document = excluded.document, is_enabled = excluded.is_enabled, next_ns = excluded.next_ns,
  created_ns = excluded.created_ns, tick = excluded.tick, tasks = excluded.tasks,
  skipped = excluded.skipped, missed = excluded.missed;

-- name: check
SELECT check_id, document, is_enabled, next_ns, created_ns, tick, tasks, skipped, missed
FROM probe_check WHERE check_id = ?;

-- name: checks
SELECT check_id, document, is_enabled, next_ns, created_ns, tick, tasks, skipped, missed
FROM probe_check WHERE check_id > ? ORDER BY check_id LIMIT ?;

-- name: check_count
SELECT count(*) FROM probe_check;

-- name: add_missed
UPDATE probe_check SET missed = missed + ? WHERE check_id = ?;

-- name: delete_check
DELETE FROM probe_check WHERE check_id = ?;

-- name: checks_due
SELECT check_id, document, is_enabled, next_ns, created_ns, tick, tasks, skipped, missed
FROM probe_check
WHERE is_enabled = 1 AND next_ns IS NOT NULL AND next_ns <= ? ORDER BY next_ns LIMIT ?;

-- name: next_tick
SELECT min(next_ns) FROM probe_check WHERE is_enabled = 1 AND next_ns IS NOT NULL;

-- name: recall
SELECT body_digest, status, body FROM answer WHERE key = ?;

-- name: remember
INSERT INTO answer (key, body_digest, status, body, kept_ns) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET
  body_digest = excluded.body_digest, status = excluded.status, body = excluded.body,
  kept_ns = excluded.kept_ns;

-- name: forget_before
DELETE FROM answer WHERE key IN (
  SELECT key FROM answer INDEXED BY answer_age WHERE kept_ns < ? ORDER BY kept_ns LIMIT ?
);

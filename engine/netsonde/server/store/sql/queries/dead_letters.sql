-- Dead letters that people deal with.

-- name: dead_count
SELECT count(*) FROM dead_letter;

-- name: revive
INSERT INTO task (task_id, queue, kind, priority, run_ns, max_attempts, spec_id, check_id,
                  scheduled_ns, lease_id, agent_id, claim_key, granted_ns, until_ns, due_ns)
SELECT task_id, coalesce(queue, -agent_id), kind, priority, json_extract(value, '$[1]'),
       coalesce(max_attempts, attempt), spec_id, check_id, scheduled_ns,
       CASE WHEN json_extract(value, '$[2]') THEN lease_id END, agent_id, 0,
       json_extract(value, '$[3]'), json_extract(value, '$[3]'), json_extract(value, '$[3]')
FROM json_each(?) JOIN dead_letter ON task_id = json_extract(value, '$[0]');

-- name: unfinal
UPDATE result SET is_final = 0
WHERE tick IS NULL AND is_final = 1 AND task_id IN (SELECT value FROM json_each(?));

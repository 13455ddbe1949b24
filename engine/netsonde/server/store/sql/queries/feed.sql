-- name: result_bounds
SELECT (SELECT min(result_id) FROM result), (SELECT seq FROM sqlite_sequence WHERE name = 'result');

-- name: next_result
SELECT min(result_id) FROM result WHERE result_id > ?;

-- name: last_result
SELECT max(result_id) FROM result WHERE result_id <= ?;

-- name: result_before
SELECT result_id FROM result INDEXED BY result_received
WHERE received_ns < ? ORDER BY received_ns DESC, result_id DESC LIMIT 1;

-- name: result_at
SELECT result_id FROM result INDEXED BY result_received
WHERE received_ns >= ? ORDER BY received_ns, result_id LIMIT 1;

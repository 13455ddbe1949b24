-- name: result_bounds
SELECT (SELECT min(result_id) FROM result), (SELECT seq FROM sqlite_sequence WHERE name = 'result');

-- name: next_result
SELECT min(result_id) FROM result WHERE result_id > ?;

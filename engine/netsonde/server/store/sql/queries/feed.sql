-- name: result_bounds
SELECT (SELECT min(result_id) FROM result), (SELECT seq FROM sqlite_sequence WHERE name = 'result');

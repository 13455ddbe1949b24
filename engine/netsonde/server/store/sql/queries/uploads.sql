-- name: uploaded
SELECT line, digest, task_id FROM uploaded_line
WHERE upload_id = (SELECT upload_id FROM upload WHERE key = ?) AND line >= ? AND line < ?;

-- name: use_upload
INSERT INTO upload (key, used_ns) VALUES (?, ?)
ON CONFLICT (key) DO UPDATE SET used_ns = excluded.used_ns;

-- name: upload_id
SELECT upload_id FROM upload WHERE key = ?;

-- name: add_uploaded
INSERT INTO uploaded_line (upload_id, line, digest, task_id)
VALUES (?, ?, ?, ?);

-- name: forget_uploaded
DELETE FROM uploaded_line WHERE (upload_id, line) IN (
  SELECT upload_id, line FROM uploaded_line JOIN upload USING (upload_id)
  WHERE used_ns < ? LIMIT ?
);

-- name: forget_uploads
DELETE FROM upload WHERE used_ns < ?
  AND NOT EXISTS (SELECT 1 FROM uploaded_line WHERE upload_id = upload.upload_id);

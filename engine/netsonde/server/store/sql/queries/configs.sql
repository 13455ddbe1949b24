-- name: save_config
INSERT INTO config (revision, digest, envelope, scope, published_ns, expires_ns)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (revision) DO UPDATE SET
  digest = excluded.digest, envelope = excluded.envelope, scope = excluded.scope,
  published_ns = excluded.published_ns, expires_ns = excluded.expires_ns;

-- name: config
SELECT revision, digest, envelope, scope, published_ns, expires_ns FROM config WHERE revision = ?;

-- name: configs
SELECT revision, digest, envelope, scope, published_ns, expires_ns FROM config
WHERE revision < ? ORDER BY revision DESC LIMIT ?;

-- name: delete_config
DELETE FROM config WHERE revision = ?;

-- name: delete_config_reports
DELETE FROM config_report WHERE revision = ?;

-- name: save_config_report
INSERT INTO config_report (revision, agent_id, status, reported_ns, document)
VALUES (?, ?, ?, ?, ?)
ON CONFLICT (revision, agent_id) DO UPDATE SET
  status = excluded.status, reported_ns = excluded.reported_ns, document = excluded.document;

-- name: config_reports
SELECT agent_id, status, reported_ns, document FROM config_report
WHERE revision = ? ORDER BY agent_id;

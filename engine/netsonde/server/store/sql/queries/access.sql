-- Who may do what, and who did: operators' tokens, enrolment, the audit log.

-- name: save_operator_token
INSERT INTO operator_token (token_id, name, digest, scopes, created_ns, expires_ns, last_used_ns)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (token_id) DO UPDATE SET
  name = excluded.name, digest = excluded.digest, scopes = excluded.scopes,
  created_ns = excluded.created_ns, expires_ns = excluded.expires_ns,
  last_used_ns = excluded.last_used_ns;

-- name: operator_tokens
SELECT token_id, name, digest, scopes, created_ns, expires_ns, last_used_ns
FROM operator_token WHERE token_id > ? ORDER BY token_id LIMIT ?;

-- name: operator_token_count
SELECT count(*) FROM operator_token;

-- name: operator_token_named
SELECT token_id, name, digest, scopes, created_ns, expires_ns, last_used_ns
FROM operator_token WHERE name = ?;

-- name: used_operator_token
UPDATE operator_token SET last_used_ns = max(coalesce(last_used_ns, 0), ?) WHERE token_id = ?;

-- name: delete_operator_token
DELETE FROM operator_token WHERE token_id = ?;

-- name: save_enrolment_token
INSERT INTO enrolment_token (token_id, name, digest, uses_max, uses, labels, created_ns, expires_ns)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (token_id) DO UPDATE SET
  name = excluded.name, digest = excluded.digest, uses_max = excluded.uses_max,
  uses = excluded.uses, labels = excluded.labels, created_ns = excluded.created_ns,
  expires_ns = excluded.expires_ns;

-- name: enrolment_tokens
SELECT token_id, name, digest, uses_max, uses, labels, created_ns, expires_ns
FROM enrolment_token WHERE token_id > ? ORDER BY token_id LIMIT ?;

-- name: enrolment_token_count
SELECT count(*) FROM enrolment_token;

-- name: enrolment_token_of
SELECT token_id, name, digest, uses_max, uses, labels, created_ns, expires_ns
FROM enrolment_token WHERE digest = ?;

-- name: delete_enrolment_token
DELETE FROM enrolment_token WHERE token_id = ?;

-- name: save_enrolment
INSERT INTO enrolment (identity, token_id, labels, enrolled_ns) VALUES (?, ?, ?, ?)
ON CONFLICT (identity) DO UPDATE SET
  token_id = excluded.token_id, labels = excluded.labels, enrolled_ns = excluded.enrolled_ns;

-- name: enrolment
SELECT identity, token_id, labels, enrolled_ns FROM enrolment WHERE identity = ?;

-- name: forget_operator_tokens
DELETE FROM operator_token WHERE expires_ns < ?;

-- name: forget_enrolment_tokens
DELETE FROM enrolment_token WHERE expires_ns < ?;

-- name: add_audit
INSERT INTO audit (at_ns, token_id, token_name, remote, call, object, status, error, request_id)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: call_before
SELECT audit_id FROM audit INDEXED BY audit_age
WHERE at_ns < ? ORDER BY at_ns DESC, audit_id DESC LIMIT 1;

-- name: call_at
SELECT audit_id FROM audit INDEXED BY audit_age
WHERE at_ns >= ? ORDER BY at_ns, audit_id LIMIT 1;

-- name: forget_audit_before
DELETE FROM audit WHERE audit_id IN (
  SELECT audit_id FROM audit WHERE at_ns < ? ORDER BY at_ns LIMIT ?
);

-- name: forget_audit_beyond
DELETE FROM audit WHERE audit_id IN (
  SELECT audit_id FROM audit WHERE audit_id <= (SELECT max(audit_id) FROM audit) - ?
  ORDER BY audit_id LIMIT ?
);

-- name: forget_audit_refusals
DELETE FROM audit WHERE audit_id IN (
  SELECT audit_id FROM audit WHERE error IS NOT NULL ORDER BY audit_id DESC LIMIT ? OFFSET ?
);

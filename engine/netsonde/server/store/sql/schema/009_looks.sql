-- For what operators ask of one agent's series, and of one token's calls.

CREATE INDEX metric_series_agent ON metric_series (agent_id);
CREATE INDEX audit_token ON audit (token_name);

-- What is left of results that have gone: who reported them, so that a late repetition is known for
-- one. What is too old for that is below the floors in meta, lease_floor and tick_floor_ns.
CREATE TABLE gone_lease (
  lease_id INTEGER PRIMARY KEY,
  agent_id INTEGER NOT NULL
);

CREATE TABLE gone_tick (
  task_id INTEGER NOT NULL,
  scheduled_ns INTEGER NOT NULL,
  PRIMARY KEY (task_id, scheduled_ns)
) WITHOUT ROWID;
CREATE INDEX gone_tick_age ON gone_tick (scheduled_ns);

CREATE INDEX dead_letter_age ON dead_letter (died_ns);

-- Tells a database that goes on from a copy of this one from a stranger.
INSERT INTO meta (name, value) VALUES ('lineage', abs(random() >> 1));

-- Who still needs a spec.
CREATE INDEX result_spec ON result (spec_id);
CREATE INDEX task_spec ON task (spec_id);
CREATE INDEX dead_letter_spec ON dead_letter (spec_id);
CREATE INDEX standing_lease_spec ON standing_lease (spec_id);

-- The ledger: everything that uuid-pipeline keeps, in a schema of its own inside the store.
-- Asked first: CREATE SCHEMA wants a right on the database even where there is nothing to create (deploy/roles.sql).
DO $$ BEGIN IF to_regnamespace('uuid_pipeline') IS NULL THEN CREATE SCHEMA uuid_pipeline; END IF; END $$;
REVOKE ALL ON SCHEMA uuid_pipeline FROM PUBLIC;
COMMENT ON SCHEMA uuid_pipeline IS 'Ledger of uuid-pipeline: id maps, executions, gates, batch journal, audit.';

CREATE TABLE IF NOT EXISTS uuid_pipeline.ledger (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS uuid_pipeline.assessments (
    assessment_no integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id text NOT NULL,
    spec_digest text NOT NULL,
    catalog_digest text NOT NULL,
    profile jsonb NOT NULL,
    -- A sweep derives what arrived since the plan under a number of its own, so that its id map stands beside the plan's.
    kind text NOT NULL DEFAULT 'plan' CHECK (kind IN ('plan', 'sweep')),
    started_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS uuid_pipeline.plans (
    assessment_no integer PRIMARY KEY REFERENCES uuid_pipeline.assessments,
    plan_id text NOT NULL,
    content jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS plans_by_id ON uuid_pipeline.plans (plan_id);

CREATE TABLE IF NOT EXISTS uuid_pipeline.executions (
    execution_id text PRIMARY KEY,
    assessment_no integer NOT NULL REFERENCES uuid_pipeline.plans,
    plan_id text NOT NULL,
    status text NOT NULL CHECK (status IN
        ('approved', 'running', 'completed', 'superseded', 'cancelled', 'rolling_back', 'rolled_back',
         'partly_rolled_back', 'finalized')),
    -- What people want of it; the writer obeys between batches.
    desired text NOT NULL DEFAULT 'run' CHECK (desired IN ('run', 'pause', 'cancel')),
    approved_by text NOT NULL,
    approved_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    finished_at timestamptz,
    catalog_before jsonb,
    snapshot_before text
);
-- One open execution a store: a second approval must supersede the first.
CREATE UNIQUE INDEX IF NOT EXISTS one_open_execution ON uuid_pipeline.executions ((true))
    WHERE status IN ('approved', 'running');

CREATE TABLE IF NOT EXISTS uuid_pipeline.waves (
    execution_id text NOT NULL REFERENCES uuid_pipeline.executions,
    position integer NOT NULL,
    wave text NOT NULL UNIQUE,
    kind text NOT NULL,
    first_ordinal bigint NOT NULL,
    last_ordinal bigint NOT NULL,
    documents bigint NOT NULL,
    -- Whose id map: the plan's, or for a sweep its own once it has looked.
    assessment_no integer REFERENCES uuid_pipeline.assessments,
    status text NOT NULL DEFAULT 'planned' CHECK (status IN
        ('planned', 'moved', 'unneeded', 'rolling_back', 'rolled_back')),
    PRIMARY KEY (execution_id, position)
);

-- One row a committed batch, written in the batch's own transaction: where it is, the batch happened.
CREATE TABLE IF NOT EXISTS uuid_pipeline.batches (
    batch_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    execution_id text NOT NULL,
    wave text NOT NULL REFERENCES uuid_pipeline.waves (wave),
    direction text NOT NULL CHECK (direction IN ('forward', 'back')),
    first_ordinal bigint NOT NULL,
    last_ordinal bigint NOT NULL,
    moved jsonb NOT NULL,
    fingerprints jsonb NOT NULL,
    transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
    lease_epoch bigint NOT NULL,
    milliseconds double precision NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS batches_by_wave ON uuid_pipeline.batches (wave, direction, last_ordinal);

-- Planned rows that a batch did not move, and why; the plan's completeness is counted from here and the journal.
CREATE TABLE IF NOT EXISTS uuid_pipeline.unmoved (
    execution_id text NOT NULL,
    wave text NOT NULL,
    entity text NOT NULL,
    ordinal bigint NOT NULL,
    old_id text NOT NULL,
    -- busy and locked rows are taken up again; the others wait for the next plan.
    reason text NOT NULL CHECK (reason IN ('gone', 'changed', 'taken', 'busy', 'locked')),
    PRIMARY KEY (execution_id, entity, old_id)
);

CREATE TABLE IF NOT EXISTS uuid_pipeline.gates (
    gate_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    assessment_no integer,
    execution_id text,
    wave text,
    stage text NOT NULL,
    gate text NOT NULL,
    passed boolean NOT NULL,
    finding text NOT NULL,
    remedy text NOT NULL,
    figures jsonb NOT NULL,
    run_id text NOT NULL,
    evaluated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((assessment_no IS NULL) <> (execution_id IS NULL))
);
CREATE INDEX IF NOT EXISTS gates_by_scope ON uuid_pipeline.gates (assessment_no, execution_id, wave);

CREATE TABLE IF NOT EXISTS uuid_pipeline.fingerprints (
    execution_id text NOT NULL REFERENCES uuid_pipeline.executions,
    table_name text NOT NULL,
    rows bigint NOT NULL,
    row_digest numeric NOT NULL,
    timestamp_digest numeric NOT NULL,
    deleted_before bigint NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (execution_id, table_name)
);

-- The whole store against the state before, as one validation run found it: several gates read the one comparison.
CREATE TABLE IF NOT EXISTS uuid_pipeline.comparisons (
    execution_id text NOT NULL REFERENCES uuid_pipeline.executions,
    run_id text NOT NULL,
    compared jsonb NOT NULL,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (execution_id, run_id)
);

-- What a row held before a merge turned it to the survivor: N old ids share one new one, so the map cannot tell.
CREATE TABLE IF NOT EXISTS uuid_pipeline.repointed (
    execution_id text NOT NULL,
    wave text NOT NULL,
    ordinal bigint NOT NULL,
    table_name text NOT NULL,
    row_key jsonb NOT NULL,
    before jsonb NOT NULL,
    after jsonb NOT NULL
);
CREATE INDEX IF NOT EXISTS repointed_by_wave ON uuid_pipeline.repointed (wave, ordinal);

-- What we altered in the application's schema, with the definition to put back; gone once it is back.
CREATE TABLE IF NOT EXISTS uuid_pipeline.altered (
    kind text NOT NULL CHECK (kind IN ('trigger', 'index')),
    object text NOT NULL,
    definition text NOT NULL,
    altered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kind, object)
);

-- Why and how long a wave waited: for a health signal, or because people paused it.
CREATE TABLE IF NOT EXISTS uuid_pipeline.waits (
    wait_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    wave text NOT NULL,
    cause text NOT NULL,
    reason text NOT NULL,
    began_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz
);

-- The one writer. epoch grows with every holder, so that a revived earlier one is fenced off.
CREATE TABLE IF NOT EXISTS uuid_pipeline.lease (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch bigint NOT NULL DEFAULT 0,
    holder text,
    run_id text,
    backend_pid integer,
    backend_start timestamptz,
    renewed_at timestamptz
);

CREATE TABLE IF NOT EXISTS uuid_pipeline.audit (
    audit_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL,
    action text NOT NULL,
    detail jsonb NOT NULL
);

INSERT INTO uuid_pipeline.lease DEFAULT VALUES ON CONFLICT DO NOTHING;
INSERT INTO uuid_pipeline.ledger (version) VALUES (3) ON CONFLICT DO NOTHING;

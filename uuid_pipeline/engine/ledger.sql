-- The ledger: everything that uuid-pipeline keeps, in a schema of its own inside the store.
-- Asked first: CREATE SCHEMA wants a right on the database even where there is nothing to create (deploy/roles.sql).
DO $$
DECLARE
    given record;
BEGIN
    IF to_regnamespace('uuid_pipeline') IS NULL THEN
        CREATE SCHEMA uuid_pipeline;
        -- What a default privilege gives on every schema, and on the tables in it, was not meant for this one.
        FOR given IN SELECT DISTINCT pg_get_userbyid(a.grantee) AS role
                     FROM pg_namespace n CROSS JOIN aclexplode(n.nspacl) a
                     WHERE n.nspname = 'uuid_pipeline' AND a.grantee NOT IN (0, n.nspowner) LOOP
            EXECUTE 'REVOKE ALL ON SCHEMA uuid_pipeline FROM ' || quote_ident(given.role);
        END LOOP;
    END IF;
END $$;
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
    -- Where tables and columns were, to follow or to name what is renamed.
    places_before jsonb,
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
    -- A sweep may meet a row once more that an earlier wave did not find.
    PRIMARY KEY (wave, entity, old_id)
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
    -- TRUNCATE gives a table another file, and counts no deletes.
    file oid,
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
    after jsonb NOT NULL,
    -- Set where a key of this name was emptied, since the row that it referred to went to the archive.
    foreign_key text
);
CREATE INDEX IF NOT EXISTS repointed_by_wave ON uuid_pipeline.repointed (wave, ordinal);
-- It has no primary key, and a publication FOR ALL TABLES may publish it.
ALTER TABLE uuid_pipeline.repointed REPLICA IDENTITY FULL;

-- What we altered in the application's schema, with the definition to put back; gone once it is back.
CREATE TABLE IF NOT EXISTS uuid_pipeline.altered (
    kind text NOT NULL CHECK (kind IN ('trigger', 'index')),
    object text NOT NULL,
    definition text NOT NULL,
    altered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kind, object)
);

-- Triggers of the application that read otherwise since they were put back, with what they mean unchanged: the server
-- parses what it wrote itself, and need not write it again in the same words.
CREATE TABLE IF NOT EXISTS uuid_pipeline.rewritten (
    "schema" text NOT NULL,
    "table" text NOT NULL,
    trigger text NOT NULL,
    definition text NOT NULL,
    rewritten text NOT NULL,
    PRIMARY KEY ("schema", "table", trigger)
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

-- Backups: dumps that were restored and compared, and a provider's snapshots, which were named and never looked into.
CREATE TABLE IF NOT EXISTS uuid_pipeline.backups (
    backup_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mode text NOT NULL CHECK (mode IN ('dump', 'attested')),
    name text NOT NULL,
    machine text,
    bytes bigint,
    sha256 text,
    snapshot text,
    catalog_digest text,
    -- One object a table whose rows are in it: its fingerprint in the snapshot, and the one that the restored copy has.
    tables jsonb NOT NULL DEFAULT '[]',
    left_out jsonb NOT NULL DEFAULT '[]',
    differences jsonb NOT NULL DEFAULT '[]',
    tool text,
    restored_on text,
    dump_seconds double precision,
    restore_seconds double precision,
    equal boolean,
    taken_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    recorded_by text NOT NULL,
    -- The executions that were approved with it.
    executions text[] NOT NULL DEFAULT '{}',
    CHECK ((mode = 'dump') = (sha256 IS NOT NULL AND bytes IS NOT NULL AND equal IS NOT NULL))
);

-- Rehearsals: the whole migration and its rollback on a restored copy.
CREATE TABLE IF NOT EXISTS uuid_pipeline.rehearsals (
    rehearsal_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    backup_no bigint REFERENCES uuid_pipeline.backups,
    spec_digest text NOT NULL,
    catalog_digest text NOT NULL,
    -- On so many users' documents; NULL: on all.
    users integer,
    documents bigint NOT NULL,
    -- Rows written on the way forward, and ids changed: what a plan's id map counts.
    rows bigint NOT NULL,
    ids bigint NOT NULL,
    seconds double precision NOT NULL,
    rollback_seconds double precision NOT NULL,
    tier text NOT NULL,
    rehearsed_on text NOT NULL,
    passed boolean NOT NULL,
    gates jsonb NOT NULL,
    differences jsonb NOT NULL,
    left_out jsonb NOT NULL,
    rehearsed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- Documents queued for the application's workers, with the statements as they ran and what undoes them.
CREATE TABLE IF NOT EXISTS uuid_pipeline.regenerations (
    regeneration_id uuid PRIMARY KEY,
    list_id text NOT NULL,
    document_id text NOT NULL,
    -- What it is or will be called after a migration; without one the row has no valid natural key.
    target_id text,
    owner text,
    status text,
    title text,
    reasons text[] NOT NULL,
    statement text NOT NULL,
    undo text,
    queued_by text NOT NULL,
    queued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    rows bigint NOT NULL,
    undone_by text,
    undone_at timestamptz
);
-- One open request a row. Twins, of one target id, have one each until they are merged.
CREATE UNIQUE INDEX IF NOT EXISTS one_open_regeneration
    ON uuid_pipeline.regenerations (document_id) WHERE undone_at IS NULL;
-- What the owners' own queries found before the first wave, by old id; distances and neighbours to compare with later.
CREATE TABLE IF NOT EXISTS uuid_pipeline.retrieval_baseline (
    execution_id text NOT NULL REFERENCES uuid_pipeline.executions,
    document text NOT NULL,
    target text NOT NULL,
    -- NULL: it was under its target id already, with everything below it.
    ordinal bigint,
    owner_rows bigint,
    chunks bigint,
    by_target boolean NOT NULL,
    found boolean,
    query_digest text,
    neighbours jsonb,
    PRIMARY KEY (execution_id, document)
);

CREATE TABLE IF NOT EXISTS uuid_pipeline.retrieval_measurements (
    measurement_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    execution_id text NOT NULL REFERENCES uuid_pipeline.executions,
    wave text,
    phase text NOT NULL CHECK (phase IN ('before', 'after')),
    figures jsonb NOT NULL,
    measured_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS uuid_pipeline.certificates (
    certificate_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    execution_id text NOT NULL REFERENCES uuid_pipeline.executions,
    content jsonb NOT NULL,
    made_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Figures as they were when they were taken: an assessment's inventory is dropped one day, what it said stays.
CREATE TABLE IF NOT EXISTS uuid_pipeline.figures (
    figures_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    assessment_no integer,
    execution_id text,
    kind text NOT NULL CHECK (kind IN ('inventory', 'lookups')),
    figures jsonb NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((assessment_no IS NULL) <> (execution_id IS NULL))
);
CREATE INDEX IF NOT EXISTS figures_by_scope ON uuid_pipeline.figures (kind, assessment_no, execution_id);


-- Triggers that keep new random ids out, one an entity; counts are kept here once the guard and its sequences are gone.
CREATE TABLE IF NOT EXISTS uuid_pipeline.guards (
    entity text PRIMARY KEY,
    mode text NOT NULL CHECK (mode IN ('warn', 'rewrite', 'reject')),
    hashing text NOT NULL,
    -- Whether ids were rewritten since it was installed: they resolve for as long as it stands.
    rewrites boolean NOT NULL,
    installed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    removed_at timestamptz,
    caught bigint,
    unjudged bigint,
    last_caught timestamptz
);

-- Some of what a guard caught. A row that was rejected leaves none: its transaction is rolled back, samples and all.
CREATE TABLE IF NOT EXISTS uuid_pipeline.guard_samples (
    sample_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    entity text NOT NULL,
    mode text NOT NULL,
    given_id text NOT NULL,
    target_id text NOT NULL,
    role text NOT NULL DEFAULT session_user,
    application text NOT NULL DEFAULT current_setting('application_name')
);

-- One look at the store's health; transactions that look at once would measure each other, so there is one at a time.
CREATE TABLE IF NOT EXISTS uuid_pipeline.health_ticks (
    tick_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_id text NOT NULL,
    whole boolean NOT NULL,
    seconds double precision NOT NULL,
    -- The last key of this tick's sample, where the next one goes on.
    sampled_to text
);
CREATE INDEX IF NOT EXISTS health_ticks_by_time ON uuid_pipeline.health_ticks (at);

-- A figure that is not known has no value, and says why. as_of: when it was measured, by this tick or an earlier one.
CREATE TABLE IF NOT EXISTS uuid_pipeline.health_figures (
    tick_no bigint NOT NULL REFERENCES uuid_pipeline.health_ticks ON DELETE CASCADE,
    figure text NOT NULL,
    value double precision,
    part bigint,
    whole bigint,
    as_of timestamptz NOT NULL,
    finding text NOT NULL,
    PRIMARY KEY (tick_no, figure)
);
CREATE INDEX IF NOT EXISTS health_figures_known ON uuid_pipeline.health_figures (figure, tick_no)
    WHERE value IS NOT NULL;

CREATE TABLE IF NOT EXISTS uuid_pipeline.health_checks (
    tick_no bigint NOT NULL REFERENCES uuid_pipeline.health_ticks ON DELETE CASCADE,
    check_name text NOT NULL,
    severity text NOT NULL CHECK (severity IN ('critical', 'error', 'warning')),
    passed boolean NOT NULL,
    value double precision,
    threshold double precision,
    -- Since when it fails without a break; NULL while it passes.
    failing_since timestamptz,
    finding text NOT NULL,
    PRIMARY KEY (tick_no, check_name)
);

CREATE TABLE IF NOT EXISTS uuid_pipeline.health_baselines (
    figure text PRIMARY KEY,
    value double precision NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

INSERT INTO uuid_pipeline.lease DEFAULT VALUES ON CONFLICT DO NOTHING;
INSERT INTO uuid_pipeline.ledger (version) VALUES (9) ON CONFLICT DO NOTHING;

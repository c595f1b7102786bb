-- Three roles for three kinds of work, each with no more than its own needs (docs/roles.md):
--   uuid_pipeline_reader     looks at what was planned and done; sees no row of the application's
--   uuid_pipeline_migrator   assesses, plans, approves, migrates, validates, finalizes, erases; owns the ledger
--   uuid_pipeline_rollback   pauses, cancels, rolls back
--
--   psql -v schema=upload_pipeline -f deploy/roles.sql STORE_URL
--
-- from a checkout, as a superuser or a hosted service's administrator, before the first plan; again after a new table
-- of the application's, an upgrade of uuid-pipeline, or drop-ledger. It may be repeated at will. Passwords stand in no
-- file: set them with \password ROLE, or let the server authenticate otherwise.
--
-- Variables: schema, the application's; tier_o, the owner of its tables: then the migrator becomes a member of that
-- owner instead of being allowed session_replication_role, and carries out rollbacks too; app_role, the role that the
-- application's users have: then retrieval is measured under their own policies (retrieval.role in the spec).
\set ON_ERROR_STOP on
\if :{?schema}
\else
  DO $$ BEGIN RAISE 'say which schema is the application''s: -v schema=NAME'; END $$;
\endif

BEGIN;

SELECT format('CREATE ROLE %I LOGIN', wanted)
FROM unnest(ARRAY['uuid_pipeline_reader', 'uuid_pipeline_migrator', 'uuid_pipeline_rollback']) wanted
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO uuid_pipeline_reader', current_database()) \gexec
SELECT format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO uuid_pipeline_migrator, uuid_pipeline_rollback',
              current_database()) \gexec

-- A policy that hides a row from who moves them would leave it behind.
SELECT EXISTS (SELECT FROM pg_class WHERE relnamespace = :'schema'::regnamespace AND relrowsecurity) AS policies \gset
\if :policies
ALTER ROLE uuid_pipeline_migrator BYPASSRLS;
ALTER ROLE uuid_pipeline_rollback BYPASSRLS;
\endif

-- The application's tables. Merging inserts and deletes, the alias triggers are triggers; nothing is altered or
-- dropped. A rollback deletes nothing and makes no trigger.
GRANT USAGE ON SCHEMA :"schema" TO uuid_pipeline_migrator, uuid_pipeline_rollback;
GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON ALL TABLES IN SCHEMA :"schema" TO uuid_pipeline_migrator;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA :"schema" TO uuid_pipeline_rollback;
-- A dump takes the sequences with the tables.
GRANT SELECT ON ALL SEQUENCES IN SCHEMA :"schema" TO uuid_pipeline_migrator;

-- How triggers are kept silent in our own batches: by a setting (tier R, PostgreSQL 15 and newer), or by a condition
-- in each of them, which only their owner may write (tier O).
\if :{?tier_o}
GRANT :"tier_o" TO uuid_pipeline_migrator;
\else
SELECT current_setting('server_version_num')::int >= 150000 AS grantable \gset
\if :grantable
GRANT SET ON PARAMETER session_replication_role TO uuid_pipeline_migrator, uuid_pipeline_rollback;
\endif
\endif

\if :{?app_role}
GRANT :"app_role" TO uuid_pipeline_migrator;
\endif

-- Whether the holder of the lease lives, and who holds a lock, is told by other sessions' statistics.
GRANT pg_read_all_stats TO uuid_pipeline_migrator, uuid_pipeline_rollback;

-- The ledger, made as the migrator's own.
SELECT to_regnamespace('uuid_pipeline') IS NULL AS no_ledger \gset
\if :no_ledger
CREATE SCHEMA uuid_pipeline AUTHORIZATION uuid_pipeline_migrator;
SET LOCAL ROLE uuid_pipeline_migrator;
\ir ../uuid_pipeline/engine/ledger.sql
RESET ROLE;
\endif
GRANT USAGE ON SCHEMA uuid_pipeline TO uuid_pipeline_reader, uuid_pipeline_rollback;
GRANT SELECT ON ALL TABLES IN SCHEMA uuid_pipeline TO uuid_pipeline_reader, uuid_pipeline_rollback;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA uuid_pipeline TO uuid_pipeline_reader, uuid_pipeline_rollback;
-- What each plan and each wave adds: id maps, inventories, archives. A rollback takes rows out of the latter, and out
-- of a map what the application has deleted since.
ALTER DEFAULT PRIVILEGES FOR ROLE uuid_pipeline_migrator IN SCHEMA uuid_pipeline
    GRANT SELECT ON TABLES TO uuid_pipeline_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE uuid_pipeline_migrator IN SCHEMA uuid_pipeline
    GRANT SELECT, DELETE ON TABLES TO uuid_pipeline_rollback;
ALTER DEFAULT PRIVILEGES FOR ROLE uuid_pipeline_migrator IN SCHEMA uuid_pipeline
    GRANT SELECT ON SEQUENCES TO uuid_pipeline_reader, uuid_pipeline_rollback;
ALTER DEFAULT PRIVILEGES FOR ROLE uuid_pipeline_migrator IN SCHEMA uuid_pipeline
    GRANT EXECUTE ON FUNCTIONS TO uuid_pipeline_rollback;
-- What pausing, cancelling and rolling back write. No plan, no gate, no execution can be added: no approval.
GRANT INSERT ON uuid_pipeline.batches, uuid_pipeline.audit, uuid_pipeline.waits TO uuid_pipeline_rollback;
GRANT INSERT, UPDATE, DELETE ON uuid_pipeline.altered TO uuid_pipeline_rollback;
GRANT INSERT, UPDATE, DELETE ON uuid_pipeline.unmoved TO uuid_pipeline_rollback;
GRANT UPDATE ON uuid_pipeline.lease TO uuid_pipeline_rollback;
GRANT UPDATE (status, desired, finished_at) ON uuid_pipeline.executions TO uuid_pipeline_rollback;
GRANT UPDATE (status) ON uuid_pipeline.waves TO uuid_pipeline_rollback;
GRANT UPDATE (ended_at) ON uuid_pipeline.waits TO uuid_pipeline_rollback;
GRANT DELETE ON uuid_pipeline.repointed TO uuid_pipeline_rollback;

COMMIT;

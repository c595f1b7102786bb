-- A store of the incident's schema in any size, in blocks that sized.py runs by name. Every value comes of md5 over the
-- number of its document, so that a size always gives the same rows but for their dates, which end now.

-- name: functions
-- One number in [0, 1) a document and purpose, with the ids that md5 gives: of version 4, and of version 5 for chunks,
-- which were derived from the random id as in the incident, wrong all the same.
CREATE FUNCTION pg_temp.share(purpose text, number bigint) RETURNS float8 LANGUAGE sql IMMUTABLE AS $$
    SELECT ('x' || left(md5(purpose || ':' || number), 8))::bit(32)::bigint / 4294967296.0
$$;
CREATE FUNCTION pg_temp.id(version text, purpose text, number bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT overlay(overlay(md5(purpose || ':' || number) PLACING version FROM 13) PLACING '9' FROM 17)::uuid
$$;

-- name: shape
-- Few users with many documents, many with few: the user of number k has about 1/k of what the first has.
-- More uploads every month; the last of them an hour ago.
CREATE TEMP TABLE shape ON COMMIT DROP AS
SELECT n, pg_temp.id('4', 'document', n) AS document_id, pg_temp.id('4', 'job', n) AS job_id,
       pg_temp.id('4', 'user', floor(%(documents)s ^ pg_temp.share('user', n))::bigint) AS user_id,
       md5('a' || n) || md5('b' || n) AS file_sha256,
       pg_temp.share('status', n) AS luck,
       4 + floor(13 * pg_temp.share('chunks', n))::int AS chunks,
       (now() - interval '1 hour' - interval '365 days' * (1 - sqrt(n::float8 / %(documents)s))) AS created_at,
       interval '1 second' * (20 + 160 * pg_temp.share('seconds', n)) AS took
FROM generate_series(1, %(documents)s) AS n

-- name: vectors
-- 256 vectors, a few of their 1536 numbers not zero: kept compressed in the row, where a real one fills 6 KB beside it.
ALTER TABLE upload_pipeline.document_chunks ALTER COLUMN embedding SET STORAGE main;
CREATE TEMP TABLE shape_vector (number int PRIMARY KEY, embedding vector(1536)) ON COMMIT DROP;
ALTER TABLE shape_vector ALTER COLUMN embedding SET STORAGE main;
INSERT INTO shape_vector
SELECT v, array_agg(CASE WHEN place % 256 = v THEN pg_temp.share('vector', v * 1536 + place) ELSE 0 END
                    ORDER BY place)::real[]::vector(1536)
FROM generate_series(0, 255) AS v CROSS JOIN generate_series(0, 1535) AS place GROUP BY v;
ANALYZE shape, shape_vector;

-- name: documents
-- 75 % complete, 15 % duplicate, the rest failed, without a status, or on their way.
INSERT INTO upload_pipeline.documents
SELECT document_id, user_id, 'Plan ' || n || '.pdf', 'application/pdf',
       (20000 + 200000 * pg_temp.share('size', n))::bigint, file_sha256,
       CASE WHEN luck < 0.75 THEN md5('p' || n) || md5('q' || n) END,
       'storage://files/user/' || user_id || '/raw/' || left(file_sha256, 8) || '.pdf',
       CASE WHEN luck < 0.75 THEN 'storage://files/user/' || user_id || '/parsed/' || document_id || '.md' END,
       CASE WHEN luck < 0.70 THEN 'complete' WHEN luck < 0.75 THEN 'embeddings_stored' WHEN luck < 0.90 THEN 'duplicate'
            WHEN luck < 0.94 THEN 'failed_parse' WHEN luck < 0.96 THEN 'failed_embedding' WHEN luck < 0.98 THEN 'uploaded'
       END, created_at, created_at + took
FROM shape ORDER BY n;

-- name: jobs
INSERT INTO upload_pipeline.upload_jobs
    (job_id, document_id, state, status, retry_count, progress, webhook_secret, created_at, updated_at)
SELECT job_id, document_id, CASE WHEN luck < 0.90 THEN 'done' WHEN luck < 0.96 THEN 'deadletter' ELSE 'queued' END,
       CASE WHEN luck < 0.75 THEN 'complete' WHEN luck < 0.90 THEN 'duplicate' WHEN luck < 0.94 THEN 'failed_parse'
            WHEN luck < 0.96 THEN 'failed_embedding' ELSE 'uploaded' END,
       CASE WHEN luck BETWEEN 0.90 AND 0.96 THEN 3 ELSE 0 END,
       CASE WHEN n % 2 = 0 THEN jsonb_build_object('percent', 100, 'document_id', document_id) ELSE '{"percent": 100}' END,
       md5('secret' || n), created_at, created_at + took
FROM shape ORDER BY n;

-- name: chunks
-- The vectors of the first thousand documents are in the vector index, which takes 0.3 ms a row to build. The others are
-- of another model, and the index is partial.
INSERT INTO upload_pipeline.document_chunks
SELECT pg_temp.id('5', 'chunk', n * 16 + ord), document_id, 'markdown-simple', '1', ord,
       '## Section ' || ord || E'\n\nPlan ' || n || ', paragraph ' || md5('text' || n || ':' || ord),
       md5('c' || n || ':' || ord) || md5('d' || n || ':' || ord),
       CASE WHEN n <= 1000 THEN 'text-embedding-3-small' ELSE 'demo-sparse' END, '1', 1536, v.embedding,
       created_at + took, created_at + took / 2, created_at + took
FROM shape CROSS JOIN LATERAL generate_series(0, chunks - 1) AS ord
JOIN shape_vector v ON v.number = (n * 7 + ord * 31) % 256
WHERE luck < 0.75;

-- name: events
INSERT INTO upload_pipeline.events
SELECT pg_temp.id('4', 'event', n), job_id, document_id, created_at + took, 'finalized', 'info', 'JOB_FINALIZED',
       CASE WHEN n % 2 = 0 THEN jsonb_build_object('step', 4, 'document_id', document_id) ELSE '{"step": 4}' END,
       pg_temp.id('4', 'correlation', n)
FROM shape ORDER BY n;

-- name: statistics
ANALYZE upload_pipeline.documents, upload_pipeline.upload_jobs, upload_pipeline.document_chunks, upload_pipeline.events,
    upload_pipeline.webhook_log;

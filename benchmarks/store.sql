-- The benchmark's store, in blocks that store.py runs by name. Every id and value comes of md5 over a number, so that
-- a size always gives the same rows.

-- name: tables
CREATE EXTENSION IF NOT EXISTS vector;
CREATE SCHEMA bench;

CREATE TABLE bench.documents (
    document_id uuid NOT NULL,
    user_id     uuid NOT NULL,
    file_sha256 text NOT NULL,
    filename    text NOT NULL,
    status      text NOT NULL,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL
);

CREATE TABLE bench.chunks (
    chunk_id    uuid NOT NULL,
    document_id uuid NOT NULL,
    chunker     text NOT NULL,
    version     text NOT NULL,
    ord         int NOT NULL,
    text        text NOT NULL,
    embedding   vector(8) NOT NULL,
    updated_at  timestamptz NOT NULL
);

CREATE TABLE bench.jobs (
    job_id      uuid NOT NULL,
    document_id uuid NOT NULL,
    state       text NOT NULL,
    updated_at  timestamptz NOT NULL
);

CREATE TABLE bench.events (
    event_id    uuid NOT NULL,
    job_id      uuid NOT NULL,
    document_id uuid NOT NULL,
    code        text NOT NULL,
    ts          timestamptz NOT NULL
);

CREATE FUNCTION bench.random_id(kind text, number bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT overlay(overlay(md5(kind || ':' || number) PLACING '4' FROM 13) PLACING '9' FROM 17)::uuid
$$;

-- name: documents
-- Users as in life: few with many documents, many with few.
INSERT INTO bench.documents
SELECT bench.random_id('document', n), bench.random_id('user', (%(documents)s ^ (n::float8 / %(documents)s))::bigint),
       md5('a' || n) || md5('b' || n), 'file ' || n || '.pdf', 'complete',
       timestamptz '2025-09-01 00:00:00+00' + n * interval '1 second',
       timestamptz '2025-09-01 00:01:00+00' + n * interval '1 second'
FROM generate_series(1, %(documents)s) AS n;

-- name: chunks
-- Ten to a document and in its order, as an application that chunks one document after the other leaves them.
INSERT INTO bench.chunks
SELECT bench.random_id('chunk', n * 10 + ord), bench.random_id('document', n), 'markdown-simple', '1', ord,
       'Paragraph ' || ord || ' of file ' || n || ': ' || md5('text' || n || ord) || md5('more' || n || ord),
       ARRAY[n %% 7, n %% 11, n %% 13, n %% 17, n %% 19, n %% 23, ord, 1]::real[]::vector(8),
       timestamptz '2025-09-01 00:01:00+00' + n * interval '1 second'
FROM generate_series(1, %(documents)s) AS n CROSS JOIN generate_series(0, 9) AS ord;

-- name: wide
-- Vectors of 1536 random dimensions: smooth ones make an index that no real store has.
SELECT setseed(0.5);
ALTER TABLE bench.chunks ALTER COLUMN embedding TYPE vector(1536);
INSERT INTO bench.chunks
SELECT bench.random_id('chunk', n * 10 + ord), d.document_id, 'markdown-simple', '1', ord, 'Paragraph ' || ord,
       (SELECT array_agg(random() - 0.5) FROM generate_series(1, 1536) WHERE n + ord IS NOT NULL)::vector(1536),
       d.updated_at
FROM (SELECT *, row_number() OVER (ORDER BY created_at) AS n FROM bench.documents) AS d
CROSS JOIN generate_series(0, 9) AS ord;

-- name: vector_index
CREATE INDEX ix_chunks_embedding ON bench.chunks USING hnsw (embedding vector_cosine_ops);

-- name: jobs
INSERT INTO bench.jobs
SELECT bench.random_id('job', n), bench.random_id('document', n), 'done',
       timestamptz '2025-09-01 00:01:00+00' + n * interval '1 second'
FROM generate_series(1, %(documents)s) AS n;

-- name: events
INSERT INTO bench.events
SELECT bench.random_id('event', n), bench.random_id('job', n), bench.random_id('document', n), 'JOB_FINALIZED',
       timestamptz '2025-09-01 00:01:00+00' + n * interval '1 second'
FROM generate_series(1, %(documents)s) AS n;

-- name: keys
-- After the data, which is then built faster and as compact as an application's dump would be.
ALTER TABLE bench.documents ADD PRIMARY KEY (document_id), ADD UNIQUE (user_id, file_sha256);
ALTER TABLE bench.chunks ADD PRIMARY KEY (chunk_id), ADD UNIQUE (document_id, chunker, version, ord);
ALTER TABLE bench.jobs ADD PRIMARY KEY (job_id);
ALTER TABLE bench.events ADD PRIMARY KEY (event_id);
CREATE INDEX ix_jobs_document ON bench.jobs (document_id);
CREATE INDEX ix_events_document ON bench.events (document_id);
CREATE INDEX ix_events_job ON bench.events (job_id);
ALTER TABLE bench.chunks
    ADD CONSTRAINT chunks_document FOREIGN KEY (document_id) REFERENCES bench.documents (document_id);
ALTER TABLE bench.jobs
    ADD CONSTRAINT jobs_document FOREIGN KEY (document_id) REFERENCES bench.documents (document_id);
ALTER TABLE bench.events
    ADD CONSTRAINT events_document FOREIGN KEY (document_id) REFERENCES bench.documents (document_id),
    ADD CONSTRAINT events_job FOREIGN KEY (job_id) REFERENCES bench.jobs (job_id);

-- name: triggers
DROP FUNCTION bench.random_id(text, bigint);

CREATE FUNCTION bench.touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = now();
    RETURN NEW;
END
$$;

CREATE TRIGGER touch_updated_at BEFORE UPDATE ON bench.documents
    FOR EACH ROW EXECUTE FUNCTION bench.touch_updated_at();
CREATE TRIGGER touch_updated_at BEFORE UPDATE ON bench.chunks
    FOR EACH ROW EXECUTE FUNCTION bench.touch_updated_at();
CREATE TRIGGER touch_updated_at BEFORE UPDATE ON bench.jobs
    FOR EACH ROW EXECUTE FUNCTION bench.touch_updated_at();

-- name: digest
-- Ids with what they are derived from, and who refers to whom: two contenders that did the same work have the same.
SELECT (SELECT sum(hashtextextended(concat_ws('|', document_id, user_id, file_sha256, updated_at), 0))
        FROM bench.documents),
       (SELECT sum(hashtextextended(concat_ws('|', chunk_id, document_id, chunker, version, ord, updated_at), 0))
        FROM bench.chunks),
       (SELECT sum(hashtextextended(concat_ws('|', job_id, document_id, updated_at), 0)) FROM bench.jobs),
       (SELECT sum(hashtextextended(concat_ws('|', event_id, job_id, document_id), 0)) FROM bench.events)

-- The store of the incident, in blocks that incident.py, twins.py and sized.py run by name.
-- Of the report's application: tables, columns, keys, checks, indexes, triggers, policies and roles, as its schema had
-- them. Of ours: the names of triggers, policies and indexes but uq_user_filehash, and the figures that a small store
-- needs (one ivfflat list, so that the index finds every chunk and a missing one is really missing).

-- name: tables
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE upload_pipeline.documents (
    document_id       uuid PRIMARY KEY,
    user_id           uuid NOT NULL,
    filename          text NOT NULL,
    mime              text NOT NULL,
    bytes_len         bigint NOT NULL,
    file_sha256       text NOT NULL,
    parsed_sha256     text,
    raw_path          text NOT NULL,
    parsed_path       text,
    processing_status text,
    created_at        timestamptz DEFAULT now(),
    updated_at        timestamptz DEFAULT now()
);

CREATE TABLE upload_pipeline.upload_jobs (
    job_id         uuid PRIMARY KEY,
    document_id    uuid NOT NULL REFERENCES upload_pipeline.documents (document_id),
    state          text NOT NULL CHECK (state IN ('queued', 'working', 'retryable', 'done', 'deadletter')),
    status         text CHECK (status IN (
        'uploaded', 'parse_queued', 'parsed', 'parse_validated', 'chunking', 'chunks_stored', 'embedding_queued',
        'embedding_in_progress', 'embeddings_stored', 'complete', 'failed_parse', 'failed_chunking',
        'failed_embedding', 'duplicate'
    )),
    retry_count    int DEFAULT 0,
    progress       jsonb DEFAULT '{}',
    last_error     jsonb,
    webhook_secret text,
    chunks_version text DEFAULT 'markdown-simple@1',
    embed_model    text DEFAULT 'text-embedding-3-small',
    embed_version  text DEFAULT '1',
    created_at     timestamptz DEFAULT now(),
    updated_at     timestamptz DEFAULT now()
);

CREATE TABLE upload_pipeline.document_chunks (
    chunk_id         uuid PRIMARY KEY,
    document_id      uuid NOT NULL REFERENCES upload_pipeline.documents (document_id),
    chunker_name     text NOT NULL,
    chunker_version  text NOT NULL,
    chunk_ord        int NOT NULL,
    text             text NOT NULL,
    chunk_sha        text NOT NULL,
    embed_model      text NOT NULL,
    embed_version    text NOT NULL,
    vector_dim       int NOT NULL CHECK (vector_dim = 1536),
    embedding        vector(1536) NOT NULL,
    embed_updated_at timestamptz DEFAULT now(),
    created_at       timestamptz DEFAULT now(),
    updated_at       timestamptz DEFAULT now(),
    UNIQUE (document_id, chunker_name, chunker_version, chunk_ord)
) WITH (fillfactor = 70);

CREATE TABLE upload_pipeline.events (
    event_id       uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    job_id         uuid NOT NULL REFERENCES upload_pipeline.upload_jobs (job_id),
    document_id    uuid NOT NULL REFERENCES upload_pipeline.documents (document_id),
    ts             timestamptz DEFAULT now(),
    type           text NOT NULL,
    severity       text NOT NULL,
    code           text NOT NULL,
    payload        jsonb,
    correlation_id uuid
);

CREATE TABLE upload_pipeline.webhook_log (
    webhook_id   text PRIMARY KEY,
    job_id       uuid NOT NULL REFERENCES upload_pipeline.upload_jobs (job_id),
    processed_at timestamptz DEFAULT now(),
    ip_address   inet,
    payload_hash text
);

-- name: unique_index
CREATE UNIQUE INDEX uq_user_filehash ON upload_pipeline.documents (user_id, file_sha256);

-- name: indexes
-- After the data: ivfflat takes its centres from the rows that are there when it is built.
CREATE INDEX ix_documents_user ON upload_pipeline.documents (user_id);
CREATE INDEX ix_upload_jobs_document ON upload_pipeline.upload_jobs (document_id);
CREATE INDEX ix_upload_jobs_waiting ON upload_pipeline.upload_jobs (status, created_at)
    WHERE state IN ('queued', 'working', 'retryable');
CREATE INDEX ix_document_chunks_embedding ON upload_pipeline.document_chunks
    USING ivfflat (embedding vector_cosine_ops) WITH (lists = 1)
    WHERE embed_model = 'text-embedding-3-small';

-- name: triggers
CREATE FUNCTION upload_pipeline.touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = now();
    RETURN NEW;
END
$$;

CREATE TRIGGER touch_updated_at BEFORE UPDATE ON upload_pipeline.documents
    FOR EACH ROW EXECUTE FUNCTION upload_pipeline.touch_updated_at();
CREATE TRIGGER touch_updated_at BEFORE UPDATE ON upload_pipeline.upload_jobs
    FOR EACH ROW EXECUTE FUNCTION upload_pipeline.touch_updated_at();
CREATE TRIGGER touch_updated_at BEFORE UPDATE ON upload_pipeline.document_chunks
    FOR EACH ROW EXECUTE FUNCTION upload_pipeline.touch_updated_at();

-- name: access
-- Roles belong to the whole cluster: another database's incident may be making them at this moment.
DO $$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES ('anon', ''), ('authenticated', ''), ('service_role', 'BYPASSRLS')) AS role (name, options)
        WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role.name)
    LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN %s', wanted.name, wanted.options);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END
$$;

CREATE SCHEMA IF NOT EXISTS auth;
CREATE OR REPLACE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT nullif(current_setting('request.jwt.claim.sub', true), '')::uuid
$$;

GRANT USAGE ON SCHEMA auth TO anon, authenticated, service_role;
GRANT USAGE ON SCHEMA upload_pipeline TO authenticated, service_role;
GRANT SELECT ON upload_pipeline.documents, upload_pipeline.upload_jobs, upload_pipeline.document_chunks,
    upload_pipeline.events TO authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA upload_pipeline TO service_role;

ALTER TABLE upload_pipeline.documents ENABLE ROW LEVEL SECURITY;
ALTER TABLE upload_pipeline.upload_jobs ENABLE ROW LEVEL SECURITY;
ALTER TABLE upload_pipeline.document_chunks ENABLE ROW LEVEL SECURITY;
ALTER TABLE upload_pipeline.events ENABLE ROW LEVEL SECURITY;
ALTER TABLE upload_pipeline.webhook_log ENABLE ROW LEVEL SECURITY;

CREATE POLICY own_documents ON upload_pipeline.documents FOR SELECT TO authenticated
    USING (user_id = auth.uid());
CREATE POLICY own_jobs ON upload_pipeline.upload_jobs FOR SELECT TO authenticated
    USING (EXISTS (SELECT FROM upload_pipeline.documents AS d
                   WHERE d.document_id = upload_jobs.document_id AND d.user_id = auth.uid()));
CREATE POLICY own_chunks ON upload_pipeline.document_chunks FOR SELECT TO authenticated
    USING (EXISTS (SELECT FROM upload_pipeline.documents AS d
                   WHERE d.document_id = document_chunks.document_id AND d.user_id = auth.uid()));
CREATE POLICY own_events ON upload_pipeline.events FOR SELECT TO authenticated
    USING (EXISTS (SELECT FROM upload_pipeline.documents AS d
                   WHERE d.document_id = events.document_id AND d.user_id = auth.uid()));

-- name: vector_buffer
-- Of the report's older revision. Its document_id never had a foreign key: a reference that no catalog knows.
CREATE TABLE upload_pipeline.document_vector_buffer (
    buffer_id     uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    chunk_id      uuid NOT NULL REFERENCES upload_pipeline.document_chunks (chunk_id),
    document_id   uuid NOT NULL,
    embed_model   text NOT NULL,
    embed_version text NOT NULL,
    vector        vector(1536) NOT NULL,
    created_at    timestamptz DEFAULT now(),
    UNIQUE (chunk_id, embed_model, embed_version)
);
INSERT INTO upload_pipeline.document_vector_buffer
    (buffer_id, chunk_id, document_id, embed_model, embed_version, vector, created_at)
SELECT md5('buffer:' || chunk_id)::uuid, chunk_id, document_id, embed_model, embed_version, embedding, created_at
FROM upload_pipeline.document_chunks;
ALTER TABLE upload_pipeline.document_vector_buffer ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE, DELETE ON upload_pipeline.document_vector_buffer TO service_role;

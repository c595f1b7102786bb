"""The engine: plain functions over a SQLAlchemy connection. Imports no Dagster.

Here lie the stages in the order of a migration (`profile`, `inventory`, `duplicates`, `mapping`, `planning`,
`approval`, `migration` with its `sweep`, `validation`, `rollback`, `finalizing`) and the ground they share:
`connection`, `sql`, `catalog`, `store`, `ledger`, `lease`, `gates`, `fingerprint`. What they are made of has a folder
each:

| folder | |
|---|---|
| `soft_references` | the search for ids that no foreign key declares |
| `drafts` | a first specification, from the catalogs |
| `plans` | what a plan means for people: approach, risks, whom it concerns |
| `backups`, `rehearsals` | a copy of the store, restored and compared; the whole migration tried on one |
| `batches` | one transaction: locks, what is left aside, lanes |
| `merges` | clusters become one row, others go to the archive; and the way back |
| `altered` | the application's triggers and vector indexes, put back before a run ends |
| `installed` | alias triggers and the guard, which stand until `finalize` |
| `proofs` | gates recounted and recomputed from the store |
| `retrievals`, `health`, `signals` | what users find; figures over time; what a run waits for |
| `evidence`, `privacy` | figures for reports; owners, redaction, erasure, retention |
| `trials` | why the usual migrations fail here, tried on a copy |
"""

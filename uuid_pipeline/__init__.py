"""Changes the primary keys of a live PostgreSQL document store without losing a row."""

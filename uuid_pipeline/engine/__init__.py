"""The engine: plain functions over a SQLAlchemy connection. Imports no Dagster."""

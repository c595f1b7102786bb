"""Dagster assets, one file a stage, each with the checks that gate it."""

"""Rehearsals: the whole migration and its rollback on a restored copy, or on a sample of it."""

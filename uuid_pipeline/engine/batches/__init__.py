"""Batches: one transaction each, its locks, what it leaves aside, and what it waits for."""

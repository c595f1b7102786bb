"""Altered for as long as a run writes, and put back: the application's triggers, and vector indexes."""

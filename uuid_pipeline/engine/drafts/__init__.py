"""Drafts: a first specification, made from the catalogs."""

"""Proofs: gates of a wave and of the whole store, recounted and recomputed from the store itself."""

"""Side-by-side runs of the engine against the hand-written alternatives; see README.md."""

"""The tests: they read as the specification."""

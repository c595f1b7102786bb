"""The command line, one file a verb; it runs the same jobs as the UI."""

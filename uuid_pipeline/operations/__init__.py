"""Jobs and resources: how the stages are run."""

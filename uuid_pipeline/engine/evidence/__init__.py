"""Evidence: figures of the store and of what was done to it, for the reports and the readiness criteria."""

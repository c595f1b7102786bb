"""What a demonstration needs: the incident's store, and the embedded server that holds it."""

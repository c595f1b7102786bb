"""Plans for people: which approach and why, its risks, its triggers of a rollback, whom it concerns."""

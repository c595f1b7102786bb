"""Merges: the rows of a cluster become one, the others go to the archive; and the way back of both."""

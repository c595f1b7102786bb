"""Why the usual ways of changing a key fail on this store: tried on a few rows of a copy, counted over all."""

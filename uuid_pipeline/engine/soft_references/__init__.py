"""Soft references: columns without a foreign key that hold ids, found by a search of bounded cost."""

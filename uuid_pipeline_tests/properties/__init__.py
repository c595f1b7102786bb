"""Random stores, migrated and rolled back."""

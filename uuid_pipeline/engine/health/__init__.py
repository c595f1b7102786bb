"""The store's health: figures, one file each; checks against the spec's thresholds; their history in the ledger."""

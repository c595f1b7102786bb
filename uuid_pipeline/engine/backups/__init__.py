"""Backups: what one holds, how it is dumped, restored and compared, and when one is asked for."""

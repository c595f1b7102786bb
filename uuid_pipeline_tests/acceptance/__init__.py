"""The engine on a real PostgreSQL."""

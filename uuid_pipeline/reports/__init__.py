"""What people read: tables and text made from the engine's figures."""

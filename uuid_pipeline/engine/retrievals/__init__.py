"""Retrieval as the users have it: asked, compared, judged; and documents that no new id makes retrievable."""

"""Installed in the store for as long as old ids are known: alias triggers, resolvers, and the guard."""

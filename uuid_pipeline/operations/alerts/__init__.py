"""Alerts: each failed check once, each recovery once, each failed run once; kept until every channel has them."""

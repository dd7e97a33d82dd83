"""Frozen values that flow: what was measured, what was decided, and one codec for them."""

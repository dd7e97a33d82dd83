"""Verdicts for people: the text of a failure and the terminal summary."""

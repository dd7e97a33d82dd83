"""Intervals, pairing, families of limits, sample sizes; no word of the product."""

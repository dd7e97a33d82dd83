"""Measurements of a variant: quantizers, accuracy, fidelity, round trip. No pytest here."""

"""Data sets, calibration pairs, zero-shot classification and retrieval. No pytest here."""

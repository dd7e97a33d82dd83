"""Encoders: one file a family, what is known of a tower, and how a checkpoint is loaded."""

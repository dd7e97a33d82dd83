"""What trained the reference model, and what measured the figures of its card."""

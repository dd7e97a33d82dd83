"""Number formats: one table that says how each is made, stored, scaled, spelled and supported."""

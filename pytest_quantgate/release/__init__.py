"""From verdicts to what is shipped: files held against the manifest of what was judged."""

"""Differences between points that were measured on the same examples."""

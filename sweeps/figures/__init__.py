"""Figures as panels of data, drawn to a PNG and to a page from the same description."""

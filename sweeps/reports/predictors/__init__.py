"""Predictors compared by their size."""

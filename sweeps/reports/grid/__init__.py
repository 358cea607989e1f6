"""Criterion x predictor x decided-at as heat maps."""

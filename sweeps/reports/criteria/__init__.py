"""Pruning criteria compared: a block for each scorer and the kinds of unit that it prunes."""

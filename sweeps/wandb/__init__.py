"""Weights & Biases: uploads and W&B Reports; the YAML files start the scripts as W&B's own sweeps."""

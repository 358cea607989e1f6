"""A Hugging Face folder that is sparse when it is loaded. `import shadow` comes by here: nothing is imported."""

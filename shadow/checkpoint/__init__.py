"""A Hugging Face folder that is sparse when it is loaded. Light: `import shadow` comes by here."""

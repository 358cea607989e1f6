"""The language model: loading it, where its units are."""

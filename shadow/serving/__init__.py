"""A checkpoint behind an OpenAI-compatible server: transformers' own, with this one model."""

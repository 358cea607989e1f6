"""ShadowLLM: contextual sparsity of large language models."""

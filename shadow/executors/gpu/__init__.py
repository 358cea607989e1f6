"""The gathered executor's decode step for CUDA: torch, and Triton where weights of kept units are read."""

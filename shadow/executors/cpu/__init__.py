"""The gathered executor: generation that reads the weights of kept units alone."""

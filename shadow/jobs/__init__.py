"""What train.py and evaluate.py run: the only place in the library that knows Hydra and its configs."""

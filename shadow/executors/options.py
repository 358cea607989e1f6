"""What the gathered executor can be asked for."""

from typing import Literal

Storage = Literal["float32", "bfloat16", "int8", "int4"]  # of weights
BITS: dict[str, int] = {"int8": 8, "int4": 4}  # of those in groups
OWN: tuple[Storage, ...] = ("float32", "bfloat16")  # stored as the model has them
States = Literal["int8", "float32"]  # of new tokens, where they meet weights in groups
KVPolicy = Literal["write_all", "recompute"]  # when a token's keys and values are computed

"""What the gathered executor can be asked for."""

from typing import Literal

Storage = Literal["float32", "bfloat16", "int8"]  # of weights
OWN: tuple[Storage, ...] = ("float32", "bfloat16")  # stored as the model has them
KVPolicy = Literal["write_all", "recompute"]  # when a token's keys and values are computed

"""The gathered executor: generation that reads the weights of kept units alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import get_args

from transformers import PreTrainedModel

from shadow.errors import UserError
from shadow.executors.altered import require_unaltered
from shadow.executors.options import KVPolicy, States, Storage
from shadow.executors.planner import Planner
from shadow.executors.refusals import gathered_refuses
from shadow.executors.run import Run
from shadow.plans.facts import Facts


@dataclass(frozen=True)
class Gathered:
    """For speed; on a GPU by Triton. What follows is for the CPU alone.

    storage: of weights; None: as the model has them, and nothing is held twice. int8 and int4: in groups of
    32 inputs, which are multiplied as whole numbers with states in 8 bits, of prompts too; what a GGUF file
    held as Q4_0, Q4_1 or Q8_0 keeps its numbers, if the model has them in float32.
    kv_policy: whether each token computes the keys and values of all heads that may be needed (`write_all`),
    or of a head when it is first needed (`recompute`).
    compact: where a prompt's plan stays, the rows of the neurons that it keeps are copied one behind the
    other for all that follows: faster per token, and these rows are held twice.
    states: where storage is int8 or int4: rounded to 8 bits by 32, or as they are, which is many times slower
    and there to see what rounding costs.
    """

    storage: Storage | None = None
    kv_policy: KVPolicy = "write_all"
    compact: bool = False
    states: States = "int8"

    def __post_init__(self) -> None:
        if self.storage is not None and self.storage not in get_args(Storage):
            raise UserError(
                f"executor.storage must be one of {list(get_args(Storage))}, or null, got {self.storage!r}"
            )
        if self.states not in get_args(States):
            raise UserError(f"executor.states must be one of {list(get_args(States))}, got {self.states!r}")
        if self.kv_policy not in get_args(KVPolicy):
            raise UserError(
                f"executor.kv_policy must be one of {list(get_args(KVPolicy))}, got {self.kv_policy!r}"
            )

    def refuses(self, facts: Facts) -> str | None:
        return gathered_refuses(facts, self.storage, self.kv_policy, self.compact)

    @contextmanager
    def open(self, model: PreTrainedModel, planner: Planner) -> Iterator[Run]:
        """numba and Triton take a second to import: only where they are asked for."""
        require_unaltered(model)
        if model.device.type != "cuda":
            from shadow.executors.cpu.opened import gathered

            with gathered(model, planner, self.storage, self.states, self.kv_policy, self.compact) as run:
                yield run
            return
        if find_spec("triton") is None:
            raise UserError("executor=gathered on a GPU needs Triton (Linux): pip install -e .[gpu]")
        from shadow.executors.gpu.run import on_device

        with on_device(model, planner) as on_gpu:
            yield on_gpu

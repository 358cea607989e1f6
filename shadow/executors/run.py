"""What `sparse` yields, and what carries plans out."""

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.batches import Batch
from shadow.executors.planner import Planner
from shadow.models.sites import Kind
from shadow.plans.facts import Facts
from shadow.plans.rules import Plan
from shadow.scorers.protocol import Scorer


class Run(Protocol):
    """A model inside the block. planner: makes its plans, and counts."""

    planner: Planner

    @property
    def scorer(self) -> Scorer: ...

    @property
    def plan(self) -> Plan:
        """Which units stay, as last decided in this thread; a gathered run that decides at each token keeps
        that of its prompts alone."""
        ...

    def logits(self, batch: Batch) -> Tensor:
        """-> [B, T, V]; the batch says where its rows and their prompts end."""
        ...

    def achieved(self, kind: Kind) -> float:
        """Share of this kind's units that was skipped, over all layers and the real tokens run so far."""
        ...

    def bytes(self) -> dict[str, float | dict[str, float]]:
        """Shares of the weight bytes of a dense token, as `Planner.bytes` has them."""
        ...


class Executor(Protocol):
    def refuses(self, facts: Facts) -> str | None:
        """One sentence that says what cannot be run, and the cure; None if nothing is wrong."""
        ...

    def open(self, model: PreTrainedModel, planner: Planner) -> AbstractContextManager[Run]:
        """Inside the block the model runs by the planner's plans; afterwards it is as it was."""
        ...

"""How far the sparse model's next tokens are from the dense one's, on the same windows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shadow.data.batches import IGNORED, Batch, Example, batched, logits_of
from shadow.executors.run import Run
from shadow.measures.evaluation import Metrics, rows, weighted_mean
from shadow.measures.sparse_hf import BatchSize
from shadow.terminal.bars import stage


class Divergence:
    """Added up batch by batch, of a masked run."""

    def __init__(self, run: Run) -> None:
        self.planner = run.planner
        self.far: list[float] = []
        self.same: list[int] = []
        self.tokens: list[int] = []

    @torch.no_grad()
    def add(self, batch: Batch, logits: Tensor) -> None:
        """logits: [B, T, V], what the sparse model says of the batch."""
        model = self.planner.model
        with self.planner.looking():
            dense = logits_of(model, batch.for_model(model))
        for one, other, labels in zip(dense, logits, batch.labels):
            scored = (labels != IGNORED).to(one.device)
            wanted, found = (row[scored].float().log_softmax(-1) for row in (one, other))
            self.far.append(float((wanted.exp() * (wanted - found)).sum()))
            self.same.append(int((wanted.argmax(-1) == found.argmax(-1)).sum()))
            self.tokens.append(int(scored.sum()))

    def metrics(self) -> Metrics:
        """`kl`: KL(dense || sparse) in nats; `top1`: how often both have the same likeliest token. Both are
        means over the windows' loss tokens."""
        return {"kl": weighted_mean(self.far, self.tokens), "top1": weighted_mean(self.same, self.tokens)}


def divergence(run: Run, windows: Sequence[Example], batch_size: BatchSize) -> Metrics:
    """As `Divergence` has them."""
    found = Divergence(run)
    with stage("divergence", len(windows), "windows") as advance:
        for batch in batched(windows, rows(windows, batch_size)):
            found.add(batch, run.logits(batch))
            advance(len(batch.ids))
    return found.metrics()

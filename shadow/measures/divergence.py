"""How far the sparse model's next tokens are from the dense one's, on the same windows."""

from collections.abc import Sequence

import torch

from shadow.data.batches import IGNORED, Example, batched, logits_of
from shadow.executors.run import Run
from shadow.measures.evaluation import Metrics, rows, weighted_mean
from shadow.measures.sparse_hf import BatchSize
from shadow.terminal.bars import stage


@torch.no_grad()
def divergence(run: Run, windows: Sequence[Example], batch_size: BatchSize) -> Metrics:
    """`kl`: KL(dense || sparse) in nats; `top1`: how often both have the same likeliest token. Both are means
    over the windows' loss tokens, of a masked run."""
    model = run.planner.model
    far: list[float] = []
    same: list[int] = []
    tokens: list[int] = []
    with stage("divergence", len(windows), "windows") as advance:
        for batch in batched(windows, rows(windows, batch_size)):
            with run.planner.looking():
                dense = logits_of(model, batch.for_model(model))
            for one, other, labels in zip(dense, run.logits(batch), batch.labels):
                scored = (labels != IGNORED).to(one.device)
                wanted, found = (row[scored].float().log_softmax(-1) for row in (one, other))
                far.append(float((wanted.exp() * (wanted - found)).sum()))
                same.append(int((wanted.argmax(-1) == found.argmax(-1)).sum()))
                tokens.append(int(scored.sum()))
            advance(len(batch.ids))
    return {"kl": weighted_mean(far, tokens), "top1": weighted_mean(same, tokens)}

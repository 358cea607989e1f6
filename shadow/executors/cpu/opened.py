"""A block in which a model's forward is the gathered executor's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from shadow.executors.calls import answering
from shadow.executors.cpu.channels import pack_channels
from shadow.executors.cpu.gathered import GatheredRun
from shadow.executors.cpu.packed import packed
from shadow.executors.cpu.weights import pack
from shadow.executors.options import BITS, KVPolicy, States, Storage
from shadow.executors.planner import Planner
from shadow.executors.turning import Ended, saved_row_by_row, straighten


@contextmanager
def gathered(
    model: PreTrainedModel,
    planner: Planner,
    storage: Storage | None,
    states: States,
    kv_policy: KVPolicy,
    compact: bool,
) -> Iterator[GatheredRun]:
    """Inside the block the model's forward is a GatheredRun's; afterwards it is its own again."""
    channels = any(site.kind == "channel" for site in planner.sites.values())
    if storage is not None and storage in BITS:
        weights = packed(model, storage, pack_channels if channels else pack)
    else:
        weights = pack(model, storage)
    run = GatheredRun(model, planner, weights, kv_policy == "recompute", compact, states == "float32")
    try:
        with answering(model, run.forward, planner.require_call), saved_row_by_row(model):
            yield run
    finally:
        torch.set_num_threads(run.team.members)
        run.team.close()
        run.weights = run.unchanged = Ended()  # type: ignore[assignment]
        straighten(model)

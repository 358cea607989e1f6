"""What each of two processes finds that share a model, for tests/smoke/test_fsdp.py, which starts them."""

import gc
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from observed import drawn_means
from torch import Tensor

from shadow.criteria import CONTEXTUAL
from shadow.criteria import one_pass as scores
from shadow.data.batches import Batch, Example, collate
from shadow.models.digest import digest
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers
from shadow.models.load import LM, random_llama, random_opt
from shadow.models.sharded import share
from shadow.models.sites import column_norms

MODELS = {
    "opt": partial(random_opt, 6, 64, 4, 256, 512, 0),
    "llama": partial(random_llama, 6, 64, 4, 2, 256, 512, 0),
}
FINAL_NORM = {"opt": "model.decoder.final_layer_norm", "llama": "model.norm"}
ROWS = ({12: 11, 5: 4}, {16: 8, 9: 4})  # of each process: prompts in rows of so many tokens
NAMES = [name for name in CONTEXTUAL if name != "grasp"]


def find(rank: int, folder: Path) -> None:
    """Leaves what process `rank` of two finds in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        found = {
            family: {look.__name__: look(family, rank) for look in (room, same, overflow)}
            for family in MODELS
        }
    finally:
        dist.destroy_process_group()
    torch.save(found, folder / f"{rank}.pt")


def room(family: str, rank: int) -> list[int]:
    """Bytes held: of the whole model, of the shared one, after a forward pass, after one and a backward."""
    before = bytes_held()
    lm, batch = make(family, torch.float32), batch_of(rank)
    held = [bytes_held()]
    share(lm.model, find_layers(lm.model), torch.device("cpu"))
    held.append(bytes_held())
    for names in (["l2_norm"], NAMES):
        scores_of(lm, batch, names)
        held.append(bytes_held())
    return [size - before for size in held]


def same(family: str, rank: int) -> dict[str, list]:
    """Of one model before and after it is shared."""
    lm, batch = make(family, torch.float32), batch_of(rank)
    found: dict[str, list] = {"scores": [], "forward": [], "weights": [], "norms": []}
    for shared in (False, True):
        if shared:
            share(lm.model, find_layers(lm.model), torch.device("cpu"))
        found["scores"].append(scores_of(lm, batch, NAMES))
        found["forward"].append(scores_of(lm, batch, ["l2_norm"]))
        found["weights"].append(digest(lm.model))
        found["norms"].append(column_norms(find_sites(lm.model)))
    return found


def overflow(family: str, rank: int) -> dict:
    """Where one process must scale its loss down more often than the other."""
    lm, batch = make(family, torch.float16), batch_of(rank)
    passes: list[int] = []
    lm.model.register_forward_hook(lambda *args: passes.append(1))
    apart = [0, 0]
    while apart[0] == apart[1]:
        lm.model.get_submodule(FINAL_NORM[family]).weight.mul_(2)
        passes.clear()
        scores_of(lm, batch, ["plainact"])
        dist.all_gather_object(apart, len(passes))
    scales = scores.LOSS_SCALES
    scores.LOSS_SCALES = scales[max(apart) - 1 :]
    expected = scores_of(lm, batch, ["plainact", "plainact_weight"])
    scores.LOSS_SCALES = scales
    share(lm.model, find_layers(lm.model), torch.device("cpu"))
    passes.clear()
    got = scores_of(lm, batch, ["plainact", "plainact_weight"])
    return {"scores": [expected, got], "passes apart": apart, "passes": len(passes)}


def make(family: str, dtype: torch.dtype) -> LM:
    lm = MODELS[family](dtype, None)
    lm.model.eval().requires_grad_(False)
    return lm


def batch_of(rank: int) -> Batch:
    draw = torch.Generator().manual_seed(rank)
    rows = ROWS[rank].items()
    return collate([Example(torch.randint(1, 257, (n,), generator=draw).tolist(), end) for n, end in rows])


def scores_of(lm: LM, batch: Batch, names: list[str]) -> dict[tuple, Tensor]:
    """Of each criterion and site, [B, U]."""
    found = {}

    def receive(name, site, seen):
        found[name, site.layer, site.kind] = seen.window(batch.real()).clone()

    scores.score(lm.model, batch, names, receive, means=drawn_means(lm))
    return found


def bytes_held() -> int:
    """Of all floating-point tensors of this process."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    storages = {
        values.untyped_storage().data_ptr(): values.untyped_storage().nbytes()
        for values in tensors
        if type(values) in (Tensor, torch.nn.Parameter) and values.is_floating_point()
    }
    return sum(storages.values())

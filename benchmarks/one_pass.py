"""What collecting costs beside the bare forward and backward that it needs: ratios, measured by turns.

python benchmarks/one_pass.py [model=opt-mini traces.dtype=ranks ...]: as for train.py; writes nothing.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from hydra import compose, initialize_config_module
from tqdm import tqdm

from shadow.criteria import needs_gradient
from shadow.criteria.activation import SUMMABLE
from shadow.criteria.one_pass import row_losses
from shadow.criteria.weight import WEIGHT_FORMS
from shadow.data.batches import Batch, collate, logits_of
from shadow.data.calibration import Numbered
from shadow.jobs.calibration import calibration_data
from shadow.jobs.loading import load_lm
from shadow.jobs.memory import peak_memory
from shadow.jobs.stores import keeping_of
from shadow.models.load import LM
from shadow.signals import differentiable_embeddings
from shadow.traces.collector import CriterionCollector
from shadow.traces.shards import FEATURES

ROUNDS = 5
FIRST_ORDER = [name for name, criterion in SUMMABLE.items() if criterion.needs != "curvature"]
COLLECTED = {
    "states alone": [],
    "l2_norm": ["l2_norm"],
    "plainact": ["plainact"],
    f"all {len(FIRST_ORDER)} first-order criteria of activations": FIRST_ORDER,
    "these and the weight forms": [*FIRST_ORDER, *WEIGHT_FORMS],
    "grasp": ["grasp"],
}


def main() -> None:
    with initialize_config_module("shadow.conf", version_base="1.3"):
        cfg = compose("train", sys.argv[1:])
    lm = load_lm(cfg)
    batch = collate(calibration_data(cfg).examples(lm)[: cfg.traces.batch_size])
    collector = CriterionCollector(lm.model, keeping_of(cfg, lm))
    works: dict[str, Callable[[], object]] = {
        "bare forward": lambda: forward(lm, batch),
        "bare forward and backward": lambda: forward_and_backward(lm, batch),
    }
    for label, criteria in COLLECTED.items():
        works[label] = lambda criteria=criteria: collect(collector, batch, criteria)
    seconds: dict[str, list[float]] = {label: [] for label in works}
    for turn in tqdm(range(ROUNDS + 1), desc="rounds", leave=False):
        for label, work in works.items():
            start = time.perf_counter()
            work()
            if turn:  # the first warms up
                seconds[label].append(time.perf_counter() - start)
    print(
        f"{cfg.model.name}, {lm.model.dtype}, batch {list(batch.ids.shape)}, traces.dtype={cfg.traces.dtype}"
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median of {ROUNDS} (least to most)")
    bases = {grad: statistics.median(seconds[name]) for grad, name in zip((False, True), works)}
    for label, of_label in seconds.items():
        base = bases[
            label == "bare forward and backward" or any(map(needs_gradient, COLLECTED.get(label, [])))
        ]
        middle, least, most = statistics.median(of_label), min(of_label), max(of_label)
        print(f"{label:45} {middle:7.3f} s  {middle / base:5.2f} ({least / base:.2f} to {most / base:.2f})")
    print("Ratios: to the bare forward, or where a gradient is needed to the bare forward and backward.")
    print(f"Peak memory of this process {peak_memory():.2f} GB.")


@torch.no_grad()
def forward(lm: LM, batch: Batch) -> None:
    logits_of(lm.model, batch)


def forward_and_backward(lm: LM, batch: Batch) -> None:
    """Of activations alone, as collecting needs it: no weight has a gradient."""
    with differentiable_embeddings(lm.model) as embedded:
        torch.autograd.grad(row_losses(logits_of(lm.model, batch), batch.labels).sum(), embedded)


def collect(collector: CriterionCollector, batch: Batch, criteria: list[str]) -> None:
    """All of it but writing: scores, sums over windows, sampled tokens, packed as on disk."""
    parts = [FEATURES, *criteria]
    collector.predict_step(Numbered(0, batch, parts, parts), 0)


if __name__ == "__main__":
    main()

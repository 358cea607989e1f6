"""From a composed config to the trace store of its settings: what it lacks is collected, damage mended."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from shadow.artifacts.files import alone, require_room
from shadow.criteria import BESIDE_MEANS
from shadow.criteria.one_pass import require_seen
from shadow.data.batches import Example
from shadow.data.calibration import CalibrationExamples
from shadow.jobs import resources
from shadow.jobs.calibration import (
    asked_criteria,
    asked_parts,
    asked_size,
    calibration_data,
    holds,
    trace_taps,
)
from shadow.jobs.config import STRATEGIES, shares_weights
from shadow.jobs.keys import trace_settings, traces_folder
from shadow.jobs.loading import require_weights
from shadow.jobs.memory import peak_memory
from shadow.jobs.method import stand_in_of
from shadow.jobs.trace_checks import require_windows
from shadow.models.digest import digest
from shadow.models.kinds import find_sites, structure_of, width_of
from shadow.models.layouts import find_layers
from shadow.models.load import LM
from shadow.models.sites import SiteKey, count_units
from shadow.plans.stand_ins import Mean, StandIn, Zero
from shadow.scorers.protocol import Brings, Scorer
from shadow.terminal.stage_bars import ShardBar
from shadow.traces import shards
from shadow.traces.collector import CriterionCollector, Keeping, ShardWriter
from shadow.traces.sharing import ShareWeights
from shadow.traces.sparse_states import PrunedStates
from shadow.traces.store import Traces

log = logging.getLogger(__name__)

Collector = CriterionCollector | PrunedStates


def get_traces(cfg: DictConfig, lm: LM) -> Traces:
    """The store of these settings; what is missing or damaged in it is collected."""
    if structure_of(lm.model).experts > 1:
        require_seen(asked_criteria(cfg))  # before the means are collected
    beside = set(asked_criteria(cfg)) & set(BESIDE_MEANS)
    means = get_means(cfg, lm, asked_parts(cfg)) if beside else None
    collector = CriterionCollector(lm.model, keeping_of(cfg, lm), means)
    folder = traces_folder(cfg)
    manifest = complete(cfg, lm, folder, trace_settings(cfg), asked_parts(cfg), collector)
    return open_store(cfg, folder, manifest)


def get_means(cfg: DictConfig, lm: LM, later: Sequence[str] = ()) -> dict[SiteKey, Tensor]:
    """Of every unit's activation, [U, D], over the calibration's first shard; collected if missing.

    later: parts that are to follow, for which there must be room too.
    """
    collector = CriterionCollector(lm.model, keeping_of(cfg, lm))
    complete(cfg, lm, traces_folder(cfg), trace_settings(cfg), [shards.MEANS], collector, later)
    return shards.read_means(traces_folder(cfg))


def get_stand_in(cfg: DictConfig, lm: LM, scorer: Scorer) -> StandIn:
    """What stands in a dropped unit's place, as `sparse` takes it."""
    if isinstance(scorer, Brings) and stand_in_of(cfg) == "own":
        return scorer.stand_in
    return Mean(get_means(cfg, lm)) if stand_in_of(cfg) == "mean" and cfg.sparsity.level > 0 else Zero()


def open_store(cfg: DictConfig, folder: Path, manifest: dict) -> Traces:
    """As many windows of a complete store as the data are asked for."""
    windows = manifest["sizes"][asked_size(cfg)]
    require_windows(cfg, windows)
    return Traces(folder, windows)


def complete(
    cfg: DictConfig,
    lm: LM,
    folder: Path,
    settings: dict,
    parts: Sequence[str],
    collector: Collector,
    later: Sequence[str] = (),
) -> dict:
    """The manifest of the store in this folder; what it misses of these parts is collected.

    later: as `get_means` has it.
    """
    manifest = complete_manifest(cfg, lm, folder, parts)
    if manifest is None:
        with taking_turns(folder):
            manifest = complete_manifest(cfg, lm, folder, parts)  # another may have made it meanwhile
            if manifest is None:
                manifest = collect(cfg, lm, folder, settings, parts, collector, later)
    return manifest


def complete_manifest(cfg: DictConfig, lm: LM, folder: Path, parts: Sequence[str]) -> dict | None:
    """That of the store in this folder, if it misses nothing of these parts and nothing is damaged."""
    manifest = shards.read_manifest(folder)
    if manifest is None:
        return None
    require_weights(folder, manifest["weights"], lm)
    enough = holds(manifest, asked_size(cfg), parts) and not damaged(folder, manifest, parts)
    return manifest if enough else None


@contextmanager
def taking_turns(target: Path) -> Iterator[None]:
    """Of jobs that make the same artifact at once, all but one wait; the processes of one job are one."""
    with ExitStack() as stack:
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            stack.enter_context(alone(target))
        yield


# a sweep's jobs read one store: each file is verified once, by its time of change
_verified: dict[Path, int] = {}


def damaged(folder: Path, manifest: dict, parts: Sequence[str]) -> bool:
    """Whether any shard that the manifest names of these parts is gone, or not what it was."""
    store = shards.store_of(folder)
    for shard in (shard for part in parts for shard in manifest["parts"][part]):
        file = folder / shard["file"]
        if not file.is_file() or not sound(file, store):
            return True
    return False


def sound(file: Path, store: str) -> bool:
    """A file that is not what it says is named, once, and taken away."""
    changed = file.stat().st_mtime_ns
    if _verified.get(file) != changed:
        try:
            shards.verify(file, store)
        except ValueError as error:
            log.warning("%s cannot be used: %s. It is collected again.", file, error)
            file.unlink()
            return False
        _verified[file] = changed
    return True


def collect(
    cfg: DictConfig,
    lm: LM,
    folder: Path,
    settings: dict,
    parts: Sequence[str],
    collector: Collector,
    later: Sequence[str],
) -> dict:
    """Collect what the store misses -> its manifest."""
    start = time.monotonic()
    examples = calibration_data(cfg).examples(lm)
    size, store = cfg.traces.shard_windows, shards.store_of(folder)
    require_windows(cfg, len(examples))
    found = shards_there(folder, store)
    ends = {shard: min((shard + 1) * size, len(examples)) for shard in range(-(-len(examples) // size))}
    missing = lacking(parts, found, ends, size)
    if missing:
        wanted = lacking({*parts, *later}, found, ends, size)
        needed = bytes_of(lm, collector.keeping, examples, ends, size, wanted)
        require_room(folder, needed, "ask for fewer windows, traces.tokens_per_window or traces.criteria")
        asked = lacking(parts, {}, ends, size)  # some parts are of the first shard alone
        there = len(asked) - len(missing)
        log.info(
            "collecting %s of %d examples: %d of %d shards of %d are there",
            ", ".join(parts),
            len(examples),
            there,
            len(asked),
            size,
        )
        extra = [instantiate(callback) for callback in (cfg.callbacks or {}).values() if callback]
        shared, bar = shares_weights(cfg), ShardBar(size, ends, there, len(asked))
        sharing = [ShareWeights(lm.model, find_layers(lm.model))] if shared else []
        trainer: pl.Trainer = instantiate(
            cfg.trainer,
            strategy=STRATEGIES[cfg.trainer.strategy],
            callbacks=[*sharing, ShardWriter(folder, store, size, ends), *extra, bar],
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            inference_mode=False,
            use_distributed_sampler=False,  # a shard is one process's
        )
        data = CalibrationExamples(examples, cfg.traces.batch_size, size, missing, in_step=shared)
        trainer.predict(collector, data, return_predictions=False)
        if trainer.interrupted:
            raise KeyboardInterrupt
        trainer.strategy.barrier()  # the manifest is of all processes' shards, and some have none to collect
    facts = {
        "taps": list(collector.keeping.taps),
        "layers": len(find_layers(lm.model)),
        "width": width_of(lm.model, "state"),
        "units": count_units(find_sites(lm.model)),
        "parameters": lm.model.num_parameters(),
        "weights": digest(lm.model),
    }
    sizes = (shards.read_manifest(folder) or {"sizes": {}})["sizes"] | {asked_size(cfg): len(examples)}
    listed = [(file, shards.inspect(file, store)) for file in shards.files_of(folder)]
    rank_zero_only(shards.finish)(folder, settings, facts, sizes, listed)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # the others read the manifest too
    log.info(
        "collected %.2f GB in %.0f s, with at most %.2f GB of memory",
        sum(file.stat().st_size for file, _ in listed) / 1e9,
        time.monotonic() - start,
        peak_memory(),
    )
    manifest = shards.read_manifest(folder)
    assert manifest is not None
    return manifest


def lacking(
    parts: Iterable[str], found: Mapping[tuple[str, int], int], ends: Mapping[int, int], size: int
) -> dict[int, list[str]]:
    """-> of each shard that misses any of these parts, which. found: as `shards_there` has it."""
    missing = {
        shard: [
            part
            for part in parts
            if found.get((part, shard), 0) < min(end, shards.reach(part, end, size)) - shard * size
        ]
        for shard, end in ends.items()
    }
    return {shard: lacks for shard, lacks in missing.items() if lacks}


def bytes_of(
    lm: LM,
    keeping: Keeping,
    examples: Sequence[Example],
    ends: Mapping[int, int],
    size: int,
    missing: Mapping[int, Sequence[str]],
) -> float:
    """What the files of the missing parts will take. ends, size: as `ShardWriter` has them."""
    lengths = [len(example.ids) for example in examples]
    sampled = [min(keeping.tokens_per_window, length) for length in lengths]
    mean = sum(lengths) // len(lengths)
    total = 0.0
    for part in {part for parts in missing.values() for part in parts}:
        row = resources.part_bytes(lm.model, part, len(keeping.taps), mean, keeping.dtype, keeping.top)
        for windows in (slice(n * size, ends[n]) for n, parts in missing.items() if part in parts):
            total += row.of(len(lengths[windows]), sum(sampled[windows]), 1)
    return total


def keeping_of(cfg: DictConfig, lm: LM) -> Keeping:
    settings = cfg.traces
    return Keeping(
        trace_taps(cfg, len(find_layers(lm.model))),
        settings.tokens_per_window,
        settings.statistic_tokens,
        settings.loss,
        settings.summed,
        settings.dtype,
        settings.top,
        cfg.seed,
    )


def shards_there(folder: Path, store: str) -> dict[tuple[str, int], int]:
    """-> windows of each part's shard whose file is whole; the others are named and taken away."""
    found: dict[tuple[str, int], tuple[int, Path]] = {}
    for file in shards.files_of(folder):
        if not sound(file, store):
            continue
        shard = shards.inspect(file, store)
        place = shard.part, shard.index
        windows, other = found.get(place, (0, None))
        if windows >= shard.windows:  # two runs of different processes were killed here
            file.unlink()
            continue
        if other is not None:
            other.unlink()
        found[place] = shard.windows, file
    return {place: windows for place, (windows, _) in found.items()}

"""From a composed config to models, traces, predictors and scorers: found by their settings, or made."""

import hashlib
import json
import logging
import math
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor
from transformers import PreTrainedModel

from shadow import budgets, hub, models, thresholds, traces
from shadow.artifacts import alone, write_json
from shadow.batches import batched
from shadow.checkpoints import WholeCheckpoints
from shadow.collector import CriterionCollector, Keeping, ShardWriter
from shadow.criteria import BESIDE_MEANS, RANDOM, random_scores_of
from shadow.data import CalibrationExamples
from shadow.errors import UserError
from shadow.fsdp import ShareWeights
from shadow.jobs import planning
from shadow.jobs.checks import require_windows
from shadow.jobs.run import versions
from shadow.jobs.settings import (
    STRATEGIES,
    asked_criteria,
    asked_parts,
    asked_size,
    budget_data,
    budgets_file,
    budgets_settings,
    calibration_data,
    fill_of,
    holds,
    learns_budgets,
    model_label,
    objective_of,
    plain,
    policy_of,
    predictor_folder,
    predictor_kinds,
    predictor_settings,
    predictor_shape,
    predictor_taps,
    pruned_folder,
    pruned_settings,
    reads,
    shares_weights,
    trace_settings,
    trace_taps,
    traces_folder,
)
from shadow.memory import keep_memory, peak_memory
from shadow.models import LM
from shadow.paper import read_raw
from shadow.predictor_module import Descent, PredictorModule, TraceData
from shadow.predictors import DenseFed, Fixed, Oracle, Predicted, Scorer, TapNet, random_scores
from shadow.pruned import PrunedStates
from shadow.scores import require_seen
from shadow.sites import (
    KINDS,
    column_norms,
    count_units,
    find_layers,
    find_sites,
    structure_of,
    values_of,
    width_of,
)
from shadow.sparsity import SparsityPolicy, Unit
from shadow.traces import Traces
from shadow.training_free import LowRankCopy, PromptActivation

log = logging.getLogger(__name__)

Collector = CriterionCollector | PrunedStates


def load_lm(cfg: DictConfig) -> LM:
    """The jobs of a sweep share one model: nothing is left on it between them."""
    planning.check_context(cfg)
    return _load_lm(json.dumps(plain(cfg.model), sort_keys=True), shares_weights(cfg))


def measured_lm(cfg: DictConfig) -> LM:
    """The model of `load_lm` as it is measured: the same weights in measure.dtype."""
    model = plain(cfg.model)
    settings = json.dumps(model | {"dtype": cfg.measure.dtype or model["dtype"]}, sort_keys=True)
    return _load_lm(settings, shares_weights(cfg))


@lru_cache(maxsize=1)
def _load_lm(settings: str, shared: bool) -> LM:
    """shared: whether processes will share it out, which is not undone."""
    model = OmegaConf.create(json.loads(settings))
    start = time.monotonic()
    where = json.loads(settings)["device_map"]  # plain: accelerate's may be a dict
    trusted = model.get("trust_remote_code", False)
    lm = models.load(instantiate(model.source), model.path, model.dtype, where, trusted)
    log.info("loaded %s in %.1f s", model.path or model.name, time.monotonic() - start)
    return lm


def digest(model: PreTrainedModel) -> str:
    """Tells one set of weights from another by a few numbers of every parameter."""
    found = hashlib.sha256()
    for name, _ in model.named_parameters():
        owner, _, own = name.rpartition(".")
        flat = values_of(model.get_submodule(owner), own).flatten()
        found.update(name.encode() + flat[:: max(1, len(flat) // 64)][:64].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def require_weights(folder: Path, recorded: str, lm: LM) -> None:
    if recorded != digest(lm.model):
        raise UserError(
            f"{folder} was made with other weights than the model now loaded: "
            "remove it, or give the model another model.name"
        )


# Traces


def get_traces(cfg: DictConfig, lm: LM) -> Traces:
    """The store of these settings; what is missing or damaged in it is collected."""
    if structure_of(lm.model).experts > 1:
        require_seen(asked_criteria(cfg))  # before the means are collected
    means = get_means(cfg, lm) if set(asked_criteria(cfg)) & set(BESIDE_MEANS) else None
    collector = CriterionCollector(lm.model, keeping_of(cfg, lm), means)
    folder = traces_folder(cfg)
    manifest = complete(cfg, lm, folder, trace_settings(cfg), asked_parts(cfg), collector)
    return open_store(cfg, folder, manifest)


def get_means(cfg: DictConfig, lm: LM) -> dict[Unit, Tensor]:
    """Of every unit's activation, [U, D], over the calibration's first shard; collected if missing."""
    collector = CriterionCollector(lm.model, keeping_of(cfg, lm))
    complete(cfg, lm, traces_folder(cfg), trace_settings(cfg), [traces.MEANS], collector)
    return traces.read_means(traces_folder(cfg))


def get_fill(cfg: DictConfig, lm: LM) -> dict[Unit, Tensor] | None:
    """What stands in a dropped unit's place, as `sparse` takes it."""
    return get_means(cfg, lm) if fill_of(cfg) == "mean" and cfg.sparsity.level > 0 else None


def get_pruned_states(cfg: DictConfig, lm: LM, loggers: list) -> list[Traces]:
    """Of the windows and tokens of `get_traces`, the states that the predictor of the round before leaves of
    them: a store for each of `predictor.levels`."""
    if cfg.predictor.rounds == 0:
        return []
    before = cfg.copy()
    before.predictor.rounds -= 1
    predictor = load_predictor(get_predictor(before, lm, loggers), lm)
    stores = []
    fill = get_means(cfg, lm) if fill_of(cfg) == "mean" else None
    keeping = replace(keeping_of(cfg, lm), taps=predictor.taps)
    for level in cfg.predictor.levels:
        policy = SparsityPolicy(
            level,
            dense_layers=range(predictor.first),
            kinds=predictor.kinds,
            head_unit=cfg.sparsity.head_unit,
        )
        collector = PrunedStates(lm.model, keeping, predictor, policy, fill)
        folder, settings = pruned_folder(before, level), pruned_settings(before, level)
        manifest = complete(cfg, lm, folder, settings, [traces.FEATURES], collector)
        stores.append(open_store(cfg, folder, manifest))
    return stores


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
) -> dict:
    """The manifest of the store in this folder; what it misses of these parts is collected."""
    manifest = complete_manifest(cfg, lm, folder, parts)
    if manifest is None:
        with taking_turns(folder):
            manifest = complete_manifest(cfg, lm, folder, parts)  # another may have made it meanwhile
            if manifest is None:
                manifest = collect(cfg, lm, folder, settings, parts, collector)
    return manifest


def complete_manifest(cfg: DictConfig, lm: LM, folder: Path, parts: Sequence[str]) -> dict | None:
    """That of the store in this folder, if it misses nothing of these parts and nothing is damaged."""
    manifest = traces.read_manifest(folder)
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
    store = traces.store_of(folder)
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
            traces.verify(file, store)
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
) -> dict:
    """Collect what the store misses -> its manifest."""
    start = time.monotonic()
    examples = calibration_data(cfg).examples(lm)
    size, store = cfg.traces.shard_windows, traces.store_of(folder)
    require_windows(cfg, len(examples))
    found = shards_there(folder, store)
    ends = {shard: min((shard + 1) * size, len(examples)) for shard in range(-(-len(examples) // size))}
    missing = {
        shard: [
            part
            for part in parts
            if found.get((part, shard), 0) < min(end, traces.reach(part, end, size)) - shard * size
        ]
        for shard, end in ends.items()
    }
    missing = {shard: lacks for shard, lacks in missing.items() if lacks}
    if missing:
        log.info(
            "collecting %s on %d examples, %d of %d shards of %d are there -> %s",
            list(parts),
            len(examples),
            len(ends) - len(missing),
            len(ends),
            size,
            folder,
        )
        progress = [instantiate(callback) for callback in (cfg.callbacks or {}).values() if callback]
        shared = shares_weights(cfg)
        sharing = [ShareWeights(lm.model, find_layers(lm.model))] if shared else []
        trainer: pl.Trainer = instantiate(
            cfg.trainer,
            strategy=STRATEGIES[cfg.trainer.strategy],
            callbacks=[*sharing, ShardWriter(folder, store, size, ends), *progress],
            logger=False,
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
    sizes = (traces.read_manifest(folder) or {"sizes": {}})["sizes"] | {asked_size(cfg): len(examples)}
    shards = [(file, traces.inspect(file, store)) for file in traces.files_of(folder)]
    rank_zero_only(traces.finish)(folder, settings, facts, sizes, shards)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # the others read the manifest too
    log.info(
        "traces: %d examples, %s, %.2f GB, %.0f s, at most %.2f GB of memory -> %s",
        len(examples),
        sorted({shard.part for _, shard in shards}),
        sum(file.stat().st_size for file, _ in shards) / 1e9,
        time.monotonic() - start,
        peak_memory(),
        folder,
    )
    manifest = traces.read_manifest(folder)
    assert manifest is not None
    return manifest


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
    for file in traces.files_of(folder):
        if not sound(file, store):
            continue
        shard = traces.inspect(file, store)
        place = shard.part, shard.index
        windows, other = found.get(place, (0, None))
        if windows >= shard.windows:  # two runs of different processes were killed here
            file.unlink()
            continue
        if other is not None:
            other.unlink()
        found[place] = shard.windows, file
    return {place: windows for place, (windows, _) in found.items()}


# Predictors


def get_predictor(cfg: DictConfig, lm: LM, loggers: list) -> Path:
    """The folder of the finished predictor of these settings; what is missing of it is fitted."""
    folder = predictor_folder(cfg)
    if not (folder / hub.CONFIG).is_file():
        with taking_turns(folder):
            if not (folder / hub.CONFIG).is_file():  # else another job was faster
                fit(cfg, lm, get_traces(cfg, lm), get_pruned_states(cfg, lm, loggers), folder, loggers)
    (folder / "last.ckpt").unlink(missing_ok=True)  # it was for going on
    return folder


def fit(cfg: DictConfig, lm: LM, store: Traces, pruned: list[Traces], folder: Path, loggers: list) -> None:
    """pruned: stores of states of the same rows, to learn from beside those of `store`."""
    start = time.monotonic()
    keep_memory()
    settings, facts = cfg.predictor, store.manifest
    reading = reads(cfg)
    taps, kinds = predictor_taps(cfg, facts["layers"]), predictor_kinds(cfg)
    data = TraceData(
        [store, *pruned],
        cfg.criterion.name,
        taps,
        reading,
        settings.val_share,
        settings.batch_size,
        cfg.seed,
        settings.ahead,
        kinds,
    )
    torch.manual_seed(cfg.seed)  # the net starts alike whatever ran before
    units = {kind: facts["units"][kind] for kind in kinds}
    width = width_of(lm.model, settings.source)
    net = TapNet(taps, facts["layers"], width, units, predictor_shape(cfg), settings.ahead)
    descent = Descent(**{name: settings[name] for name in Descent._fields})
    norms = column_norms(find_sites(lm.model))
    module = PredictorModule(net, objective_of(cfg), descent, norms)
    log.info("fitting %s on %d %s rows -> %s", settings.name, len(data.train), reading.rows, folder)
    last = folder / "last.ckpt"
    if last.is_file() and not zipfile.is_zipfile(last):
        log.warning("%s is damaged: the fit begins anew", last)
        last.unlink()
    if not last.is_file():
        module.start(data, settings.ridge)
    keeper = ModelCheckpoint(folder, "last", save_top_k=1, enable_version_counter=False)
    extra = [instantiate(callback) for callback in (cfg.callbacks or {}).values() if callback]
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        strategy=STRATEGIES[cfg.trainer.strategy],
        callbacks=[keeper, *extra],
        logger=loggers,
        plugins=[WholeCheckpoints()],
        use_distributed_sampler=False,  # the data share their rows out themselves
    )
    require_shares(settings.batch_size, trainer.world_size)
    if settings.epochs:
        trainer.fit(module, data, ckpt_path=str(last) if last.is_file() else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    metrics = dict(trainer.validate(module, data, verbose=False)[0])
    parameters = sum(values.numel() for values in net.parameters() if values.requires_grad)
    means = traces.read_means(store.folder)
    config = {
        "model": model_label(cfg),
        "settings": predictor_settings(cfg),
        "taps": taps,
        "ahead": settings.ahead,
        "kinds": kinds,
        "net": net.shape._asdict(),
        "pooling": settings.pooling,
        "source": settings.source,
        "deviates": cfg.criterion.name in BESIDE_MEANS,
        "width": width,
        **{key: facts[key] for key in ("layers", "units", "weights")},
        "parameters": parameters,
        "means": sum(values.numel() for values in means.values()),
        "share_of_model": parameters / facts["parameters"],
        "rows": {"train": len(data.train), "val": module.validated},
        "metrics": metrics,
        "versions": versions(),
    }
    if trainer.is_global_zero:
        hub.save_metrics(folder, module.metrics_of_layers())
        hub.save_predictor(folder, net, config, means)
    trainer.strategy.barrier()  # the others read the predictor too
    log.info(
        "predictor: %.1f M parameters (%.1f %% of the model), %s, %.0f s -> %s",
        parameters / 1e6,
        100 * parameters / facts["parameters"],
        {name: round(value, 3) for name, value in sorted(metrics.items())},
        time.monotonic() - start,
        folder,
    )


def require_shares(rows: int, processes: int) -> None:
    if rows % processes:
        raise UserError(
            f"predictor.batch_size must be a multiple of the {processes} processes that share each batch, "
            f"got {rows}"
        )


def load_predictor(folder: Path, lm: LM) -> Predicted:
    require_weights(folder, hub.read_config(folder)["weights"], lm)
    return hub.load_predictor(folder)


# Scorers


def get_scorer(cfg: DictConfig, lm: LM, loggers: list) -> Scorer:
    name, sites = cfg.predictor.name, find_sites(lm.model)
    if name == "random" or cfg.sparsity.level == 0:
        return Fixed(random_scores(sites, cfg.seed))
    if name in ("oracle", "prompt_activation"):
        means = get_means(cfg, lm) if cfg.criterion.name in BESIDE_MEANS else None
        if name == "oracle":
            return Oracle(cfg.criterion.name, cfg.traces.loss, means)
        return PromptActivation(cfg.criterion.name, means)
    if name == "static":
        return Fixed(static_scores(cfg, lm))
    if name == "svd":
        return copy_weights(cfg, lm)
    predicted = load_predictor(get_predictor(cfg, lm, loggers), lm)
    if cfg.measure.raw_inputs:
        read_raw(predicted.net)
    return DenseFed(predicted) if cfg.measure.dense_fed else predicted


def get_policy(cfg: DictConfig, lm: LM, scorer: Scorer, fill: dict[Unit, Tensor] | None) -> SparsityPolicy:
    """With the budgets of these settings, levels or thresholds, which are learnt if they are missing."""
    policy = policy_of(cfg)
    if cfg.sparsity.budgets == "global" and cfg.sparsity.level > 0:
        levels = budgets.by_rank(static_scores(cfg, lm), policy, structure_of(lm.model))
        return replace(policy, levels=levels)
    if not learns_budgets(cfg):
        return policy
    file = budgets_file(cfg)
    if not file.is_file():
        with taking_turns(file):
            if not file.is_file():  # else another job was faster
                learn_budgets(cfg, lm, scorer, fill, file)
    known = json.loads(file.read_text(encoding="utf-8"))
    require_weights(file, known["weights"], lm)
    if policy.scope == "threshold":
        return replace(
            policy,
            thresholds={
                (layer, kind): -math.inf if value is None else value
                for layer, kind, value in known["thresholds"]
            },
        )
    return replace(policy, levels={(layer, kind): level for layer, kind, level in known["levels"]})


def learn_budgets(
    cfg: DictConfig, lm: LM, scorer: Scorer, fill: dict[Unit, Tensor] | None, file: Path
) -> None:
    """From the first windows of the calibration."""
    start = time.monotonic()
    windows = budget_data(cfg).examples(lm)[: cfg.sparsity.budget_windows]
    batches = list(batched(windows, cfg.traces.batch_size))
    policy, decided_at = policy_of(cfg), cfg.sparsity.decided_at
    learnt: dict[str, Any]
    if policy.scope == "threshold":
        values = thresholds.learn(lm.model, scorer, policy, decided_at, fill, batches)
        learnt = {
            # JSON has no infinity: null where none is to go
            "thresholds": [[*unit, None if value == -math.inf else value] for unit, value in values.items()],
            "passes": len(scorer.taps),
        }
    else:
        found = budgets.learn(lm.model, scorer, policy, decided_at, fill, batches)
        learnt = {
            "levels": [[*unit, level] for unit, level in found.levels.items()],
            "costs": [[*unit, *cost] for unit, costs in found.costs.items() for cost in costs],
            "passes": found.passes,
        }
    seconds = time.monotonic() - start
    content = learnt | {
        "settings": budgets_settings(cfg),
        "weights": digest(lm.model),
        "windows": len(windows),
        "seconds": round(seconds, 1),
    }
    write_json(file, content)
    passes = learnt["passes"]
    log.info("budgets: %d passes over %d windows, %.0f s -> %s", passes, len(windows), seconds, file)


def static_scores(cfg: DictConfig, lm: LM) -> dict[Unit, Tensor]:
    """The mean over the calibration's windows, [U] of each layer and kind."""
    sites = find_sites(lm.model)
    if cfg.criterion.name == RANDOM:
        return {(site.layer, site.kind): random_scores_of(site) for site in sites}
    store = get_traces(cfg, lm)
    means = {kind: store.static_scores(cfg.criterion.name, kind) for kind in KINDS}
    return {(site.layer, site.kind): means[site.kind][site.layer] for site in sites}


def copy_weights(cfg: DictConfig, lm: LM) -> LowRankCopy:
    heads = {layer: scores for (layer, kind), scores in static_scores(cfg, lm).items() if kind == "head"}
    start = time.monotonic()
    means = None
    if cfg.criterion.name in BESIDE_MEANS:
        found = get_means(cfg, lm)
        means = {layer: mean.flatten() for (layer, kind), mean in found.items() if kind == "neuron"}
    copy = LowRankCopy(lm.model, cfg.predictor.rank, heads, means)
    log.info(
        "copied the weights of %d layers at rank %d: %.1f M parameters (%.1f %% of the model), %.0f s",
        len(copy.taps),
        cfg.predictor.rank,
        copy.parameters / 1e6,
        100 * copy.parameters / lm.model.num_parameters(),
        time.monotonic() - start,
    )
    return copy

"""What is refused before work starts."""

import re
import shlex
from typing import Any, get_args

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig

from shadow import criteria
from shadow.artifacts.hub import CONFIG
from shadow.data.batches import Loss, Positions
from shadow.errors import UserError
from shadow.executors.gathered import KVPolicy, Storage
from shadow.executors.masked import Executor, FillName, Prefill
from shadow.jobs.measures import running_text
from shadow.jobs.numbers import check_numbers, require_whole
from shadow.jobs.settings import (
    NETS,
    STRATEGIES,
    are_levels,
    asked_criteria,
    asked_size,
    budgets_file,
    calibration_data,
    check_taps,
    data_label,
    device_of,
    first_scored,
    holds,
    learns_budgets,
    needs_means,
    needs_traces,
    objectives_of,
    policy_of,
    predictor_folder,
    predictor_kinds,
    predictor_shape,
    reads,
    require_choice,
    several_taps,
    shares_weights,
    traces_folder,
)
from shadow.plans.facts import DecidedAt
from shadow.traces.packing import Stored
from shadow.traces.store import FEATURES, MEANS, read_manifest

STAGES = ("plan", "traces", "predictor")
SCHEDULES = ("cosine", "constant_with_warmup")
BUDGETS = ("uniform", "greedy", "global")
UNGATHERED = ("oracle", "prompt_activation")  # they look at a sample first
SCORERS = (*NETS, "static", "random", "oracle", "prompt_activation", "svd")
# what an override of evaluate.py must begin with to concern the artifacts that train.py makes
TRAINS = [
    "model",
    "data",
    "traces",
    "criterion",
    "predictor",
    "sparsity.decided_at",
    "sparsity.fill",
    "sparsity.head_unit",
    "trainer",
    "seed",
    "paths",
    "experiment",
    "debug",
]


def check_train(cfg: DictConfig) -> None:
    """What can be known before the model is loaded."""
    require_choice("stage", cfg.stage, STAGES)
    check_devices(cfg)
    check_predictor(cfg)
    check_traces(cfg)
    calibration_data(cfg)


def check_devices(cfg: DictConfig) -> None:
    """Processes share the work out, and accelerate spreads one model: not both over the same devices."""
    trainer, device_map = cfg.trainer, cfg.model.device_map
    require_choice("trainer.strategy", trainer.strategy, list(STRATEGIES))
    if shares_weights(cfg):
        check_shared(cfg)
    if devices_of(cfg) not in (0, 1, [0]) and trainer.strategy == "auto":
        raise UserError(
            f"trainer.devices={trainer.devices} asks for several processes: give trainer.strategy=ddp, or "
            f"fsdp for them to share a model that is larger than one device, got {trainer.strategy}"
        )
    if trainer.strategy == "ddp" and trainer.devices not in (1, [0]) and device_map is not None:
        raise UserError(
            f"with trainer.devices={trainer.devices} each process holds the whole model: give "
            "model.device_map=null, or for a model larger than one device trainer=fsdp as well, or "
            f"trainer.devices=1, got {device_map!r}"
        )


def devices_of(cfg: DictConfig) -> Any:
    """How many, or which, with `auto` told."""
    trainer = cfg.trainer
    if trainer.devices != "auto":
        return trainer.devices
    return 1 if trainer.accelerator == "cpu" else torch.cuda.device_count()


def check_shared(cfg: DictConfig) -> None:
    trainer, asked = cfg.trainer, asked_criteria(cfg)
    if cfg.model.device_map is not None:
        raise UserError(
            "trainer.strategy=fsdp gives each process a part of every layer, and model.device_map gives "
            f"devices whole ones: give model.device_map=null, got {cfg.model.device_map!r}"
        )
    if devices_of(cfg) in (0, 1, [0]) and trainer.num_nodes == 1:
        raise UserError(
            "trainer.strategy=fsdp shares the weights among processes and needs several: give "
            f"trainer.devices=2 or more, or trainer=default, got trainer.devices={trainer.devices} with "
            f"trainer.accelerator={trainer.accelerator}, which is one"
        )
    if "grasp" in asked:
        raise UserError(
            "criterion=grasp differentiates twice, and what trainer.strategy=fsdp gathered of the weights is "
            f"gone by then: leave it out of traces.criteria, or give trainer=ddp, got {asked}"
        )


def check_traces(cfg: DictConfig) -> None:
    settings = cfg.traces
    for setting, allowed in (("loss", Loss), ("summed", Positions), ("dtype", Stored)):
        require_choice(f"traces.{setting}", settings[setting], get_args(allowed))
    if settings.top is not None and not 0 < settings.top < 1:
        raise UserError(f"traces.top is a share of the units and must be in (0, 1), got {settings.top}")
    if settings.criteria is not None and settings.criteria != "all":
        criteria.require("traces.criteria", list(settings.criteria))
    if settings.tokens_per_window < 0 or settings.statistic_tokens < 2:
        raise UserError(
            "traces.tokens_per_window must be at least 0 and traces.statistic_tokens at least 2, got "
            f"{settings.tokens_per_window} and {settings.statistic_tokens}"
        )
    if settings.batch_size < 1 or settings.shard_windows < 1 or settings.shard_windows % settings.batch_size:
        raise UserError(
            "traces.shard_windows must be a multiple of traces.batch_size, got "
            f"{settings.shard_windows} and {settings.batch_size}"
        )
    if "windows" in cfg.data:
        require_windows(cfg, int(cfg.data.windows))


def require_windows(cfg: DictConfig, windows: int) -> None:
    """Refuse a statistic that has less than a shard to compare."""
    statistics = [name for name in asked_criteria(cfg) if name in criteria.STATISTICS]
    if statistics and windows < cfg.traces.shard_windows:
        raise UserError(
            f"{', '.join(statistics)} compare the windows of a whole shard: traces.shard_windows="
            f"{cfg.traces.shard_windows} must be at most the {windows} windows that the data give"
        )


def check_predictor(cfg: DictConfig) -> None:
    name = cfg.predictor.name
    require_choice("predictor.name", name, SCORERS)
    check_sparsity(cfg)
    criterion = cfg.criterion.name
    if criterion not in (*criteria.CRITERIA, criteria.REMOVAL):
        criteria.require("criterion", [criterion])
    if criterion == criteria.REMOVAL and (name != "oracle" or cfg.sparsity.decided_at == "token"):
        raise UserError(
            "criterion=removal tries every unit on the sample itself, over windows: use predictor=oracle "
            f"and sparsity.decided_at=prompt or sequence, got {name} and {cfg.sparsity.decided_at}"
        )
    if name == "prompt_activation" and cfg.sparsity.decided_at != "prompt":
        raise UserError(
            "predictor=prompt_activation knows the prompt alone, all of it: use sparsity.decided_at=prompt, "
            f"got {cfg.sparsity.decided_at}"
        )
    if name == "svd":
        require_whole("predictor.rank", cfg.predictor.rank, 1)
    if criterion in criteria.STATISTICS and name in (*NETS, "oracle", "prompt_activation"):
        raise UserError(
            f"criterion={criterion} compares many windows and says nothing of one prompt: "
            f"use predictor=static, got predictor={name}"
        )
    require_choice("traces.loss", cfg.traces.loss, get_args(Loss))
    if name not in NETS:
        return
    if criterion in (criteria.RANDOM, "grasp"):
        raise UserError(
            f"a predictor learns how large a score is, and criterion={criterion} is "
            f"{'the same for every prompt' if criterion == criteria.RANDOM else 'of either sign'}: "
            f"use predictor=static or predictor=oracle, got predictor={name}"
        )
    check_numbers(cfg)
    reads(cfg)
    check_taps(cfg.predictor.taps, cfg.predictor.ahead)
    check_tapped(cfg)
    predictor_kinds(cfg)
    predictor_shape(cfg)
    check_epochs(cfg)
    require_choice("predictor.schedule", cfg.predictor.schedule, SCHEDULES)
    check_rounds(cfg)
    objectives_of(cfg)


def check_tapped(cfg: DictConfig) -> None:
    """Of taps that are named one by one, that their states are kept."""
    taps, kept = cfg.predictor.taps, cfg.traces.taps
    if isinstance(taps, ListConfig) and isinstance(kept, ListConfig) and not set(taps) <= set(kept):
        raise UserError(f"predictor.taps={taps} must be among traces.taps={kept}: add them, or give `all`")


def check_epochs(cfg: DictConfig) -> None:
    settings = cfg.predictor
    if settings.epochs == 0 and (settings.ridge is None or settings.depth):
        raise UserError(
            "predictor.epochs=0 leaves the ridge regression as it is, a linear map: give predictor.ridge a "
            f"number and predictor.depth=0, got {settings.ridge} and {settings.depth}"
        )


def check_rounds(cfg: DictConfig) -> None:
    settings, levels = cfg.predictor, cfg.predictor.levels
    if settings.rounds == 0:
        return
    if not isinstance(levels, ListConfig) or not are_levels(levels) or len(set(levels)) < len(levels):
        raise UserError(
            f"predictor.levels must be shares of units removed, each in (0, 1) and given once, got {levels}"
        )
    if settings.pooling != "scores":
        raise UserError(
            f"predictor.rounds={settings.rounds} needs predictor.pooling=scores, got {settings.pooling!r}: "
            "later rounds learn from the states of single tokens"
        )


def check_sparsity(cfg: DictConfig) -> None:
    policy_of(cfg)  # refuses what is no policy
    settings = cfg.sparsity
    require_choice("sparsity.decided_at", settings.decided_at, get_args(DecidedAt))
    require_choice("sparsity.fill", settings.fill, get_args(FillName))
    require_choice("sparsity.budgets", settings.budgets, BUDGETS)
    if settings.budgets != "uniform" and settings.scope != "layer":
        raise UserError(
            f"sparsity.budgets={settings.budgets} says what each layer loses and needs sparsity.scope=layer, "
            f"got {settings.scope}"
        )
    if settings.budgets == "global" and settings.min_units < 1:
        raise UserError(
            "sparsity.budgets=global may rank a whole layer last, which no level of a layer removes: give "
            f"sparsity.min_units=1, got {settings.min_units}"
        )
    if settings.scope == "threshold" and settings.level > 0 and cfg.predictor.name in ("static", "random"):
        raise UserError(
            "sparsity.scope=threshold needs scores that differ between tokens, or prompts, and those of "
            f"predictor={cfg.predictor.name} are the same for all: use sparsity.scope=layer or global"
        )
    if settings.budget_windows < 1:
        raise UserError(f"sparsity.budget_windows must be at least 1, got {settings.budget_windows}")
    if settings.budget_fewshot is not None and ("num_fewshot" not in cfg.data or settings.budget_fewshot < 0):
        raise UserError(
            "sparsity.budget_fewshot counts the shots of tasks' prompts, at least 0, and needs data=tasks, "
            f"got {settings.budget_fewshot} with data={data_label(cfg)}"
        )


def check_executor(cfg: DictConfig) -> None:
    settings, measure = cfg.executor, cfg.measure
    require_choice("executor.name", settings.name, get_args(Executor))
    require_choice("executor.kv_policy", settings.kv_policy, get_args(KVPolicy))
    require_choice("executor.prefill", settings.prefill, get_args(Prefill))
    if settings.storage is not None:
        require_choice("executor.storage", settings.storage, get_args(Storage))
    if settings.compact and settings.name != "gathered":
        raise UserError(
            f"executor.compact copies what executor=gathered reads, got executor={settings.name}: give "
            "executor=gathered, or executor.compact=false"
        )
    if settings.name == "gathered" and cfg.sparsity.level > 0:
        check_gathered(cfg)
    if not measure.latency:
        return
    if device_of(cfg).type != "cpu":
        raise UserError(
            "measure.latency times what runs on the CPU, and this job's model lies on a GPU: give "
            f"trainer=cpu, got trainer.accelerator={cfg.trainer.accelerator}"
        )
    if settings.name != "gathered":
        raise UserError(
            "measure.latency times an executor that leaves out what plans drop, and "
            f"executor={settings.name} computes everything: give executor=gathered"
        )
    for name, least in (("prompt_tokens", 2), ("new_tokens", 2), ("rounds", 2)):
        if measure[name] < least:
            raise UserError(f"measure.{name} must be at least {least}, got {measure[name]}")


def check_gathered(cfg: DictConfig) -> None:
    """Refuse plans that executor=gathered cannot follow."""
    name, by_token = cfg.predictor.name, cfg.sparsity.decided_at == "token"
    if name in UNGATHERED:
        raise UserError(
            f"executor=gathered runs no predictor={name}, which must see a sample first: give executor=masked"
        )
    if name == "svd" and by_token:
        raise UserError(
            "executor=gathered decides at each token by nets alone, and predictor=svd is none: give "
            "sparsity.decided_at=prompt, or executor=masked"
        )
    if name not in NETS:
        return
    if cfg.predictor.source != "state" or cfg.measure.dense_fed:
        raise UserError(
            "executor=gathered needs a predictor that reads states, as it runs: give executor=masked, "
            f"got predictor.source={cfg.predictor.source} and measure.dense_fed={cfg.measure.dense_fed}"
        )
    if cfg.sparsity.scope == "global" and by_token:
        raise UserError(
            "executor=gathered needs sparsity.scope=layer or threshold where each token decides, got "
            "global: use one of these, sparsity.decided_at=prompt, or executor=masked"
        )
    if cfg.executor.compact and by_token:
        raise UserError(
            "executor.compact copies rows once a prompt, and needs plans that stay: give "
            f"sparsity.decided_at=prompt, got token with predictor={name}"
        )


def check_scorer(cfg: DictConfig) -> None:
    """Before the model is loaded: an unknown scorer, a missing artifact and the command that makes it."""
    check_predictor(cfg)
    if cfg.trainer.strategy != "auto" or devices_of(cfg) not in (0, 1, [0]):
        raise UserError(
            "evaluate.py measures in one process: give trainer.devices=1 and trainer.strategy=auto, got "
            f"{cfg.trainer.devices} and {cfg.trainer.strategy}; train.py collects and fits in several"
        )
    name = cfg.predictor.name
    if cfg.sparsity.level == 0:
        return
    if name in NETS:
        check_scored(cfg)
    if name in NETS or needs_traces(cfg) or needs_means(cfg):
        check_made(cfg)
    if learns_budgets(cfg) and not cfg.make_missing and not budgets_file(cfg).is_file():
        greedy = cfg.sparsity.budgets == "greedy"
        what, without = (
            ("budgets", "sparsity.budgets=uniform") if greedy else ("thresholds", "sparsity.scope=layer")
        )
        raise UserError(
            f"there are no {what} {budgets_file(cfg)}: learn them on the way with make_missing=true, or "
            f"give {without}"
        )


def check_made(cfg: DictConfig) -> None:
    """That the predictor, or what is needed of the traces, is there or may be made."""
    name = cfg.predictor.name
    check_traces(cfg)
    if cfg.make_missing:
        return
    cure = f"make it with `{train_command()}`, or set make_missing=true"
    if name in NETS and not (predictor_folder(cfg) / CONFIG).is_file():
        raise UserError(f"there is no predictor {predictor_folder(cfg)}: {cure}")
    parts = [MEANS] if needs_means(cfg) else []
    if needs_traces(cfg) and (name not in NETS or cfg.sparsity.budgets == "global"):
        parts += [FEATURES, *asked_criteria(cfg)]
    if parts and not holds(read_manifest(traces_folder(cfg)), asked_size(cfg), parts):
        raise UserError(f"there is no trace store with all that is asked for in {traces_folder(cfg)}: {cure}")


def check_disjoint(cfg: DictConfig) -> None:
    """Refuse to measure on what was calibrated on. Of tasks lm-eval's splits see to that."""
    name, measure = cfg.predictor.name, cfg.measure
    calibrated = name in NETS or needs_traces(cfg) or needs_means(cfg) or learns_budgets(cfg)
    if cfg.sparsity.level == 0 or not calibrated:
        return
    if "tasks" in cfg.data or not (measure.perplexity or measure.choices):
        return
    seen, texts = set(calibration_data(cfg).documents("train")), running_text(cfg)
    lengths = {
        "perplexity": measure.tokens,
        "choices": measure.context_tokens + measure.continuation_tokens,
    }
    # of fewer bytes than tokens no window is cut: titles and empty lines may stand in both
    shortest = min(tokens for name, tokens in lengths.items() if measure[name])
    both = sum(text in seen and len(text.encode()) >= shortest for text in texts)
    if both:
        measured = "data.eval" if measure.text is None else "measure.text"
        raise UserError(
            f"{measured} must have no document of data.train, by which plans are calibrated, and {both} of "
            f"its {len(texts)} are such: take them out of either file, or give another"
        )


def check_scored(cfg: DictConfig) -> None:
    """Refuse plans of what the predictor says nothing about, or not in time."""
    kinds, first = predictor_kinds(cfg), first_scored(cfg)
    if not set(range(first)) <= set(cfg.sparsity.dense_layers):
        raise UserError(
            "sparsity.dense_layers must hold every layer before the first that the predictor scores "
            f"({first}), got {cfg.sparsity.dense_layers}"
        )
    if cfg.sparsity.scope == "global" and several_taps(cfg):
        raise UserError(
            "sparsity.scope=global ranks over layers that a predictor with several taps has not scored yet: "
            f"use sparsity.scope=layer, or a predictor with one tap, got predictor.taps={cfg.predictor.taps}"
        )
    if not set(cfg.sparsity.kinds) <= set(kinds):
        raise UserError(
            f"sparsity.kinds must be among predictor.kinds={kinds}, which are all that predictor="
            f"{cfg.predictor.name} scores, got {cfg.sparsity.kinds}"
        )
    mlp = cfg.predictor.mlp
    if cfg.measure.raw_inputs and (mlp is None or not mlp.scaled):
        raise UserError(
            "measure.raw_inputs leaves out the scaling that the paper's nets were trained with, and "
            f"predictor={cfg.predictor.name} has none: give measure.raw_inputs=false"
        )
    if cfg.sparsity.scope == "global" and cfg.predictor.loss == "bce":
        raise UserError(
            "predictor.loss=bce learns which units of a layer are active, and its logits do not compare "
            f"across layers: give sparsity.scope=layer, got {cfg.sparsity.scope}"
        )
    if cfg.sparsity.scope != "layer" and cfg.predictor.loss in ("listwise", "pairwise", "cutoff"):
        others = "layers" if cfg.sparsity.scope == "global" else "tokens"
        raise UserError(
            f"predictor.loss={cfg.predictor.loss} learns the order within a layer, and not how {others} "
            f"compare: give sparsity.scope=layer, got {cfg.sparsity.scope}"
        )


def train_command() -> str:
    """The `python train.py ...` that makes what this job misses, from this job's own overrides."""
    kept = [
        override
        for override in HydraConfig.get().overrides.task
        if any(re.match(rf"[+~]*{re.escape(start)}[=.@]", override) for start in TRAINS)
    ]
    return shlex.join(["python", "train.py", *kept])

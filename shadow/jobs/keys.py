"""What decides a result: all settings but those that say where, as they name it, and where it lies."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from shadow.artifacts.files import key_of
from shadow.artifacts.usual import differences, in_name, usual_job
from shadow.errors import UserError
from shadow.jobs.calibration import (
    GROWS,
    asked_size,
    calibration_data,
    needs_means,
    needs_traces,
    reads_criterion,
)
from shadow.jobs.config import model_label, plain
from shadow.jobs.method import (
    is_trained,
    learns_budgets,
    learns_stand_in,
    needs_of,
    net_of,
    policy_of,
    stand_in_of,
)
from shadow.models.load import describe_folder

# a change of code that changes what one of them holds makes a new name; nothing else of the code is in a name
TRACE_FORMAT, PREDICTOR_FORMAT, POINT_FORMAT = 2, 3, 3

# settings that decide no figure, each with the reason; every other one is in a name
WHERE: dict[str, dict[str, str]] = {
    "model": {
        "path": "the folder's content counts, in place of the source",
        "shape": "follows from the source",
        "device_map": "on which devices",
    },
    "source": {"cache": "a place", "install": "a hint for people"},
    "data": {
        "train": "the file's content counts",
        "eval": "the file's content counts",
        "root": "the files' content counts",
        **dict.fromkeys(GROWS, "a store of fewer becomes one of more; counts as `size` in all else"),
    },
    "traces": {
        "criteria": "a store is added what it misses; counts as `criterion` in all else",
        "batch_size": "how it is computed",
    },
    "trainer": {
        "_target_": "always Lightning's",
        "accelerator": "on which devices",
        "devices": "their batches together are those of one",
        "num_nodes": "their batches together are those of one",
        "strategy": "on which devices",
        "default_root_dir": "a place",
        "log_every_n_steps": "what is shown",
        "enable_model_summary": "what is shown",
    },
    "measure": {
        "root": "the files' content counts",
        "text": "the file's content counts",
        "column": "the file's content counts",
    },
}


def counted(cfg: DictConfig, group: str) -> dict[str, Any]:
    """The settings of a group without those of WHERE."""
    return {name: value for name, value in plain(cfg[group]).items() if name not in WHERE.get(group, {})}


def model_settings(cfg: DictConfig) -> dict[str, Any]:
    settings = counted(cfg, "model")
    if cfg.model.path:
        settings["source"] = describe_folder(cfg.model.path)
    else:
        source = settings["source"].items()
        settings["source"] = {name: value for name, value in source if name not in WHERE["source"]}
    if not settings["trust_remote_code"]:
        del settings["trust_remote_code"]
    return settings


def trace_settings(cfg: DictConfig) -> dict[str, Any]:
    """What names a store: not how many windows or which criteria, for those are added to it."""
    return {
        "format": TRACE_FORMAT,
        "model": model_settings(cfg),
        "data": counted(cfg, "data"),
        "content": calibration_data(cfg).fingerprint(),
        "traces": counted(cfg, "traces"),
        "seed": cfg.seed,
    }


def predictor_settings(cfg: DictConfig) -> dict[str, Any]:
    """What names a predictor that is trained: not how it is used then."""
    net, settings = net_of(cfg), plain(cfg.predictor)
    return {
        "format": PREDICTOR_FORMAT,
        "traces": trace_settings(cfg),
        "size": asked_size(cfg),
        "criterion": cfg.criterion.name,
        "predictor": {name: value for name, value in settings.items() if name not in net.IN_USE},
        "reads": net.reading(cfg.sparsity.decided_at),
        "trainer": counted(cfg, "trainer"),
    } | (pruned_by(cfg) if net.rounds > 0 else {})


def pruned_by(cfg: DictConfig) -> dict[str, Any]:
    """What plans of later rounds take from `sparsity` beside their levels."""
    return {"stand_in": stand_in_of(cfg), "head_unit": cfg.sparsity.head_unit}


def pruned_settings(before: DictConfig, level: float) -> dict[str, Any]:
    """What names the states that the predictor of `before` leaves of the same windows at this level."""
    found = trace_settings(before) | {"predictor": predictor_settings(before), "level": level}
    return found | pruned_by(before)


def method_settings(cfg: DictConfig) -> dict[str, Any]:
    """What decides the plans of a job that prunes: recipe, policy, stand-in, and what they are made of.

    What is left open, `sparsity.kinds=null` and `sparsity.stand_in=auto`, counts as what it stands for; a
    criterion that nobody reads, as the usual one.
    """
    sparsity = counted(cfg, "sparsity")
    if not learns_stand_in(cfg):
        del sparsity["learnt"]
    if cfg.sparsity.slot_levels is None:
        del sparsity["slot_levels"]
    for budgets, setting in (("block", "block"), ("divergence", "slot_probes")):
        if cfg.sparsity.budgets != budgets:
            del sparsity[setting]
    settings: dict[str, Any] = {
        "predictor": counted(cfg, "predictor"),
        "sparsity": sparsity | {"kinds": list(policy_of(cfg).kinds or ()), "stand_in": stand_in_of(cfg)},
        "criterion": cfg.criterion.name if reads_criterion(cfg) else usual_job()["criterion"],
        "loss": cfg.traces.loss,
    }
    if is_trained(cfg):
        settings["fit"] = predictor_settings(cfg)
    elif needs_traces(cfg) or needs_means(cfg):
        settings |= {"traces": trace_settings(cfg), "size": asked_size(cfg)}
    if needs_of(cfg).sample:
        settings["sample"] = of_calibration(cfg)
    if needs_of(cfg).router:
        settings["router"] = router_settings(cfg)
    asked = [cfg.sparsity.budget_windows] if learns_budgets(cfg) else []
    asked += [cfg.sparsity.learnt.windows] if learns_stand_in(cfg) else []
    if int(asked_size(cfg)) < max(asked, default=0):  # it is learnt from all that there are
        settings["size"] = asked_size(cfg)
    return settings


def learnt_settings(cfg: DictConfig) -> dict[str, Any]:
    """What names a learnt stand-in."""
    return method_settings(cfg) | of_calibration(cfg)


def router_settings(cfg: DictConfig) -> dict[str, Any]:
    """What names routers: not what is pruned by them, which their recipe asks for itself."""
    return {"predictor": counted(cfg, "predictor"), "size": asked_size(cfg)} | of_calibration(cfg)


def budgets_settings(cfg: DictConfig) -> dict[str, Any]:
    """What names budgets and thresholds, which know nothing of what is learnt after them."""
    settings = method_settings(cfg)
    settings["sparsity"].pop("learnt", None)
    return settings | of_calibration(cfg)


def paths_settings(cfg: DictConfig) -> dict[str, Any]:
    """What names the paths of greedy budgets: they are the same for all levels and rules."""
    settings = budgets_settings(cfg)
    for name in ("level", "scope"):
        del settings["sparsity"][name]
    return settings


def of_calibration(cfg: DictConfig) -> dict[str, Any]:
    """What decides the windows that something is learnt from, and the model that reads them."""
    return {
        "format": POINT_FORMAT,
        "model": model_settings(cfg),
        "data": counted(cfg, "data"),
        "content": calibration_data(cfg).fingerprint(),
        "seed": cfg.seed,
    }


def named(setting: str, label: object) -> str:
    """The label as a part of a file's name, which leads nowhere else."""
    text = str(label)
    if not text.isprintable() or any(sign in text for sign in "/\\") or len(text.encode()) > 80:
        raise UserError(
            f"{setting} becomes part of a folder's name and must be at most 80 printable letters without / "
            f"and \\, got {text!r}"
        )
    return text


def model_part(cfg: DictConfig) -> str:
    return named("model.path" if cfg.model.path else "model.name", model_label(cfg))


def method_part(cfg: DictConfig) -> str:
    return f"{model_part(cfg)}-{named('predictor.name', cfg.predictor.name)}"


def place(cfg: DictConfig, kind: str, label: str, settings: dict[str, Any], ending: str = "") -> Path:
    """Where an artifact lies: under its key, whatever it was called when it was made."""
    shelf, key = Path(cfg.paths.artifact_dir) / kind, f"{key_of(settings)}{ending}"
    there = sorted(path for path in shelf.glob(f"*-{key}") if not path.name.startswith("."))
    told = in_name(differences(settings))
    return there[0] if there else shelf / "-".join([label, *([told] if told else []), key])


def traces_folder(cfg: DictConfig) -> Path:
    return place(cfg, "traces", f"{model_part(cfg)}-traces", trace_settings(cfg))


def pruned_folder(before: DictConfig, level: float) -> Path:
    return place(before, "traces", f"{method_part(before)}-pruned", pruned_settings(before, level))


def predictor_folder(cfg: DictConfig) -> Path:
    return place(cfg, "predictors", method_part(cfg), predictor_settings(cfg))


def budgets_file(cfg: DictConfig) -> Path:
    return place(cfg, "budgets", method_part(cfg), budgets_settings(cfg), ".json")


def paths_file(cfg: DictConfig) -> Path:
    return place(cfg, "budgets", f"{method_part(cfg)}-paths", paths_settings(cfg), ".json")


def router_folder(cfg: DictConfig) -> Path:
    return place(cfg, "routers", method_part(cfg), router_settings(cfg))


def learnt_folder(cfg: DictConfig) -> Path:
    return place(cfg, "stand_ins", method_part(cfg), learnt_settings(cfg))

"""`shadow export`: from a composed config to a folder that is sparse when it is loaded."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

log = logging.getLogger("export")


@hydra.main(version_base="1.3", config_path="pkg://shadow.conf", config_name="export")
def run(cfg: DictConfig) -> None:
    from shadow.jobs.run import job

    with job(cfg) as this:
        folder = make(cfg, this.loggers)
        this.record["checkpoint"] = str(folder)
        log.info("checkpoint: %s, %.1f MB", folder, size_of(folder) / 1e6)


def make(cfg: DictConfig, loggers: list) -> Path:
    """The folder of these settings, found or written."""
    from shadow.checkpoint.export import export
    from shadow.jobs import checks, loading
    from shadow.jobs.method import executor_of
    from shadow.jobs.prepared import prepared

    checks.check_scorer(cfg)
    folder = folder_of(cfg)
    require_free(cfg)
    if cfg.folder is None and folder.is_dir():
        log.info("written before")
        return folder
    lm = loading.placed(cfg, loading.load_lm(cfg))
    scorer, policy, stand_in = prepared(cfg, lm, loggers)
    lm = loading.measured_lm(cfg)
    return export(
        lm.model,
        folder,
        scorer,
        policy,
        cfg.sparsity.decided_at,
        stand_in=stand_in,
        executor=executor_of(cfg),
        tokenizer=lm.tokenizer,
        about=about(cfg),
        curve=list(curve(cfg)),
    )


def folder_of(cfg: DictConfig) -> Path:
    from shadow.artifacts.files import key_of
    from shadow.checkpoint.folder import FORMAT
    from shadow.jobs.config import plain
    from shadow.jobs.keys import learnt_settings, method_part, method_settings, model_settings
    from shadow.jobs.method import learns

    if cfg.folder is not None:
        return Path(str(cfg.folder)).expanduser()
    settings: dict[str, Any] = {"model": model_settings(cfg), "executor": plain(cfg.executor)}
    settings["checkpoint"] = FORMAT
    settings |= {"dtype": cfg.measure.dtype, "level": cfg.sparsity.level, "seed": cfg.seed}
    if cfg.sparsity.level > 0:
        settings |= learnt_settings(cfg) if learns(cfg) else method_settings(cfg)
    name = f"{method_part(cfg)}-{cfg.sparsity.level:g}-{key_of(settings)}"
    return Path(cfg.paths.artifact_dir) / "checkpoints" / name


def require_free(cfg: DictConfig) -> None:
    """Before any work: a folder that the user names is written whole."""
    from shadow.errors import UserError

    if cfg.folder is not None and folder_of(cfg).exists():
        raise UserError(f"folder={cfg.folder} exists: remove it, or name another one")


def about(cfg: DictConfig) -> dict[str, str]:
    from shadow.jobs.config import data_label, model_label

    found = {"model": model_label(cfg), "predictor": cfg.predictor.name, "calibration": data_label(cfg)}
    found |= {"criterion": cfg.criterion.name, "budgets": cfg.sparsity.budgets, "seed": str(cfg.seed)}
    return found | ({"terms of use of the model": cfg.model.terms} if cfg.model.get("terms") else {})


def curve(cfg: DictConfig) -> Iterator[Mapping[str, str]]:
    """Of this method on this model, the points that were measured, by level; on running text, those of the
    text that was measured last: figures of several would stand side by side as if they were of one."""
    from shadow.artifacts.files import points_in
    from shadow.jobs.keys import method_settings, model_settings

    if cfg.sparsity.level == 0:
        return
    # JSON's lists and numbers, as a point's file has them
    asked = json.loads(json.dumps([but_level(method_settings(cfg)), model_settings(cfg)]))
    files = sorted(points_in(Path(cfg.paths.artifact_dir)), key=lambda file: file.stat().st_mtime_ns)
    points = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    alike = [
        point
        for point in points
        if "predictor" in point["settings"]
        and {name: value for name, value in but_level(point["settings"]).items() if name in asked[0]}
        == asked[0]
        and point["settings"]["model"] == asked[1]
    ]
    texts = [point["settings"]["content"] for point in alike if point["settings"]["content"] is not None]
    alike = [point for point in alike if point["settings"]["content"] in (None, *texts[-1:])]
    for point in sorted(alike, key=lambda point: point["settings"]["sparsity"]["level"]):
        row = {
            "level": point["settings"]["sparsity"]["level"],
            "decided_at": point["settings"]["decided_at"],
            "bytes_skipped": point["bytes"]["skipped"],
            "bytes_skipped_of_layers": point["bytes"]["skipped_of_layers"],
            **{f"achieved_{kind}": share for kind, share in point["achieved"].items()},
        }
        for name, metric in point["metrics"].items():
            row |= {name: metric["value"], f"{name}_stderr": metric["stderr"]}
        yield {name: "" if value is None else str(value) for name, value in row.items()}


def but_level(settings: Mapping[str, Any]) -> dict[str, Any]:
    sparsity = {name: value for name, value in settings["sparsity"].items() if name != "level"}
    return {**settings, "sparsity": sparsity}


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def main(argv: Sequence[str] | None = None) -> None:
    """argv: Hydra's overrides; None: those of the command line."""
    from shadow.jobs.command_line import prepare_for

    prepare_for("export", argv)
    run()


if __name__ == "__main__":
    main()

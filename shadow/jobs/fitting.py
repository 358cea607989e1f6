"""From a composed config to the folder of its fitted predictor, and the stores of later rounds."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from shadow.artifacts import hub
from shadow.criteria import BESIDE_MEANS
from shadow.errors import UserError
from shadow.fit.checkpoints import resumable
from shadow.fit.module import PredictorModule
from shadow.fit.rows import TraceData
from shadow.jobs.config import model_label
from shadow.jobs.keys import predictor_folder, predictor_settings, pruned_folder, pruned_settings
from shadow.jobs.loading import require_weights
from shadow.jobs.memory import keep_memory
from shadow.jobs.method import net_of, stand_in_of
from shadow.jobs.run import versions
from shadow.jobs.stores import complete, get_means, get_traces, keeping_of, open_store, taking_turns
from shadow.jobs.trainers import trainer_of
from shadow.models.kinds import find_sites, width_of
from shadow.models.load import LM
from shadow.models.sites import column_norms
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Mean, Zero
from shadow.scorers.nets import TapNet
from shadow.scorers.predicted import Predicted
from shadow.terminal.digits import digits
from shadow.traces import shards
from shadow.traces.sparse_states import PrunedStates
from shadow.traces.store import Traces

log = logging.getLogger(__name__)

RANKS = {
    "mass@50": "mass@50",
    "recall@50": "recall@50",
    "spearman": "Spearman",
}  # of the line that ends a fit


def get_predictor(cfg: DictConfig, lm: LM, loggers: list) -> Path:
    """The folder of the finished predictor of these settings; what is missing of it is fitted."""
    folder = predictor_folder(cfg)
    if not (folder / hub.CONFIG).is_file():
        with taking_turns(folder):
            if not (folder / hub.CONFIG).is_file():  # else another job was faster
                fit(cfg, lm, get_traces(cfg, lm), get_pruned_states(cfg, lm), folder, loggers)
    (folder / "last.ckpt").unlink(missing_ok=True)  # it was for going on
    return folder


def get_pruned_states(cfg: DictConfig, lm: LM) -> list[Traces]:
    """Of the windows and tokens of `get_traces`, the states that the predictor of the round before leaves of
    them: a store for each of `predictor.levels`. Its fit is not logged: the steps of rounds would mix."""
    if net_of(cfg).rounds == 0:
        return []
    before = cfg.copy()
    before.predictor.rounds -= 1
    predictor = load_predictor(get_predictor(before, lm, []), lm)
    stores = []
    stand_in = Mean(get_means(cfg, lm)) if stand_in_of(cfg) == "mean" else Zero()
    keeping = replace(keeping_of(cfg, lm), taps=predictor.taps)
    for level in cfg.predictor.levels:
        policy = SparsityPolicy(
            level,
            dense_layers=predictor.dense_layers,
            kinds=predictor.net.kinds,
            head_unit=cfg.sparsity.head_unit,
        )
        collector = PrunedStates(lm.model, keeping, predictor, policy, stand_in)
        folder, settings = pruned_folder(before, level), pruned_settings(before, level)
        manifest = complete(cfg, lm, folder, settings, [shards.FEATURES], collector)
        stores.append(open_store(cfg, folder, manifest))
    return stores


def fit(cfg: DictConfig, lm: LM, store: Traces, pruned: list[Traces], folder: Path, loggers: list) -> None:
    """pruned: stores of states of the same rows, to learn from beside those of `store`."""
    start = time.monotonic()
    keep_memory()
    recipe, facts = net_of(cfg), store.manifest
    reading = recipe.reading(cfg.sparsity.decided_at)
    taps, kinds = recipe.taps_in(facts["layers"]), recipe.scored
    data = TraceData(
        [store, *pruned],
        cfg.criterion.name,
        taps,
        reading,
        recipe.val_share,
        recipe.batch_size,
        cfg.seed,
        recipe.ahead,
        kinds,
    )
    torch.manual_seed(cfg.seed)  # the net starts alike whatever ran before
    units = {kind: facts["units"][kind] for kind in kinds}
    width = width_of(lm.model, recipe.source)
    net = TapNet(taps, facts["layers"], width, units, recipe.shape(), recipe.ahead)
    norms = column_norms(find_sites(lm.model))
    module = PredictorModule(net, recipe.objectives(), recipe.descent(), norms)
    log.info("fitting %s on %d %s rows", cfg.predictor.name, len(data.train), reading.rows)
    last = resumable(folder)
    if last is None:
        module.start(data, recipe.ridge)
    trainer = trainer_of(cfg, folder, loggers)
    require_shares(recipe.batch_size, trainer.world_size)
    if recipe.epochs:
        trainer.fit(module, data, ckpt_path=last)
    if trainer.interrupted:
        raise KeyboardInterrupt
    metrics = dict(trainer.validate(module, data, verbose=False)[0])
    parameters = sum(values.numel() for values in net.parameters() if values.requires_grad)
    means = shards.read_means(store.folder)
    config = {
        "model": model_label(cfg),
        "terms": cfg.model.get("terms"),
        "settings": predictor_settings(cfg),
        "taps": taps,
        "ahead": recipe.ahead,
        "kinds": kinds,
        "net": net.shape._asdict(),
        "pooling": recipe.pooling,
        "source": recipe.source,
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
    log.info("fitted in %.0f s", time.monotonic() - start)


def in_words(config: dict[str, Any]) -> str:
    """Its size, and how well it ranks at half the units, beside the best constant. config: of its folder."""
    metrics, words = config["metrics"], []
    for name, title in RANKS.items():
        if f"val/{name}" in metrics:
            words.append(f"{title} {metrics[f'val/{name}']:.3f} (static {metrics[f'val/static_{name}']:.3f})")
    share = digits(100 * config["share_of_model"])
    size = f"{digits(config['parameters'] / 1e6)} M parameters, {share} % of the model"
    return "; ".join([size, *words])


def require_shares(rows: int, processes: int) -> None:
    if rows % processes:
        raise UserError(
            f"predictor.batch_size must be a multiple of the {processes} processes that share each batch, "
            f"got {rows}"
        )


def load_predictor(folder: Path, lm: LM) -> Predicted:
    require_weights(folder, hub.read_config(folder)["weights"], lm)
    return hub.load_predictor(folder)

"""The learnt stand-in of a job, and the thresholds that moved with it: found, or fitted on the calibration's
first windows."""

import logging
import time
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from shadow.artifacts import learnt_stand_ins
from shadow.artifacts.learnt_policies import rows_of, thresholds_of
from shadow.executors.masked import Masked, MaskedRun
from shadow.fit.checkpoints import resumable
from shadow.fit.stand_ins import StandInModule, loader
from shadow.front import open_run
from shadow.jobs.calibration import calibration_data
from shadow.jobs.keys import learnt_folder, learnt_settings
from shadow.jobs.loading import digest, require_weights
from shadow.jobs.method import learns_stand_in
from shadow.jobs.run import versions
from shadow.jobs.stores import taking_turns
from shadow.jobs.trainers import trainer_of
from shadow.models.kinds import find_sites
from shadow.models.load import LM
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Learnt, StandIn
from shadow.scorers.protocol import Scorer

log = logging.getLogger(__name__)


def with_learnt(
    cfg: DictConfig, lm: LM, scorer: Scorer, policy: SparsityPolicy, within: StandIn, loggers: list
) -> tuple[SparsityPolicy, StandIn]:
    """within: what speaks for dropped units -> the same, with what is learnt of these settings around it, and
    the policy with its thresholds."""
    if not learns_stand_in(cfg):
        return policy, within
    folder = learnt_folder(cfg)
    if not (folder / learnt_stand_ins.CONFIG).is_file():
        with taking_turns(folder):
            if not (folder / learnt_stand_ins.CONFIG).is_file():  # else another job was faster
                fit(cfg, lm, scorer, policy, within, folder, loggers)
    (folder / "last.ckpt").unlink(missing_ok=True)  # it was for going on
    config = learnt_stand_ins.read_config(folder)
    require_weights(folder, config["weights"], lm)
    if config["thresholds"] is not None:
        policy = replace(policy, thresholds=thresholds_of(config["thresholds"]))
    return policy, learnt_stand_ins.read(folder, unlearnt(lm, scorer, policy, within))


def unlearnt(lm: LM, scorer: Scorer, policy: SparsityPolicy, within: StandIn) -> Learnt:
    return Learnt(
        [site for site in find_sites(lm.model, sorted(scorer.kinds)) if policy.corrects(site)], within
    )


def fit(
    cfg: DictConfig,
    lm: LM,
    scorer: Scorer,
    policy: SparsityPolicy,
    within: StandIn,
    folder: Path,
    loggers: list,
) -> None:
    start, settings = time.monotonic(), cfg.sparsity.learnt
    windows = calibration_data(cfg).examples(lm)[: settings.windows]
    stand_in = unlearnt(lm, scorer, policy, within)
    trainer = trainer_of(cfg, folder, loggers, max_epochs=settings.epochs, gradient_clip_val=None)
    plural = "" if settings.epochs == 1 else "s"
    log.info("fitting stand-ins on %d windows, %d epoch%s", len(windows), settings.epochs, plural)
    with open_run(lm.model, scorer, policy, cfg.sparsity.decided_at, stand_in, Masked()) as run:
        assert isinstance(run, MaskedRun)
        moves = settings.move_thresholds and policy.scope == "threshold"
        module = StandInModule(run, stand_in, settings.lr, moves)
        data = loader(windows, settings.batch_size, cfg.seed)
        trainer.fit(module, data, ckpt_path=resumable(folder))
    if trainer.interrupted:
        raise KeyboardInterrupt
    config = {
        "settings": learnt_settings(cfg),
        "weights": digest(lm.model),
        "windows": len(windows),
        "numbers": stand_in.weights,
        "thresholds": rows_of(module.thresholds) if moves else None,
        "kl": float(trainer.callback_metrics["train/kl"]),
        "seconds": round(time.monotonic() - start, 1),
        "versions": versions(),
    }
    learnt_stand_ins.write(folder, stand_in, config)
    log.info(
        "stand-in: %d numbers from %d windows, %.0f s -> %s",
        *(stand_in.weights, len(windows), config["seconds"], folder),
    )

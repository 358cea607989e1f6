"""Load the language model, and make or find all that the method learns: traces, predictor, thresholds."""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="pkg://shadow.conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    import logging
    import os

    from shadow.artifacts import hub
    from shadow.jobs import checks, estimate, fitting, loading, stores
    from shadow.jobs.calibration import reads_store
    from shadow.jobs.method import is_trained, learns
    from shadow.jobs.missing import evaluate_command
    from shadow.jobs.prepared import prepared
    from shadow.jobs.run import job

    log = logging.getLogger("train")
    with job(cfg) as this:
        checks.check_train(cfg)
        if cfg.stage == "estimate":
            log.info("what it will take:\n%s", estimate.in_lines(cfg, estimate.estimate_of(cfg)))
            return None
        lm = loading.load_lm(cfg)
        if cfg.stage == "traces" or reads_store(cfg):
            log.info("traces -> %s", stores.get_traces(cfg, lm).folder)
        if cfg.stage == "traces":
            return None
        metrics: dict[str, float] = {}
        if is_trained(cfg):
            folder = fitting.get_predictor(cfg, lm, this.loggers)
            config = hub.read_config(folder)
            metrics = config["metrics"]
            log.info("predictor: %s -> %s", fitting.in_words(config), folder)
            this.record["predictor"] = {"folder": os.path.relpath(folder, cfg.paths.root_dir)}
        if learns(cfg):
            prepared(cfg, loading.placed(cfg, lm), this.loggers)
        elif not is_trained(cfg):
            log.info("predictor=%s sparsity.scope=%s: nothing to fit", cfg.predictor.name, cfg.sparsity.scope)
        this.record["metrics"] = {name: {"value": value, "stderr": None} for name, value in metrics.items()}
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            log.info("measure it: %s", evaluate_command())
        return metrics.get("val/mass@50")


if __name__ == "__main__":
    from shadow.jobs.command_line import prepare

    sys.path.append(sys.path.pop(0))  # lm-eval's "import evaluate" means Hugging Face's, not the script here
    prepare("train", sys.argv[1:])
    main()

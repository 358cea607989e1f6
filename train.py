"""Load the language model, collect traces or reuse them, fit the predictor or reuse it."""

import sys

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="pkg://shadow.conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    import logging

    from shadow.artifacts import hub
    from shadow.jobs import checks, estimate, fitting, loading, stores
    from shadow.jobs.method import is_trained
    from shadow.jobs.run import job

    log = logging.getLogger("train")
    with job(cfg) as this:
        checks.check_train(cfg)
        if cfg.stage == "estimate":
            log.info("what it will take:\n%s", estimate.in_lines(cfg, estimate.estimate_of(cfg)))
            return None
        lm = loading.load_lm(cfg)
        store = stores.get_traces(cfg, lm)
        log.info("traces: %s", store.folder)
        if cfg.stage == "traces" or not is_trained(cfg):
            log.info("stage=%s predictor=%s: nothing to fit", cfg.stage, cfg.predictor.name)
            return None
        folder = fitting.get_predictor(cfg, lm, this.loggers)
        metrics = hub.read_config(folder)["metrics"]
        log.info("predictor: %s", folder)
        this.record["metrics"] = {name: {"value": value, "stderr": None} for name, value in metrics.items()}
        return metrics["val/mass@50"]


if __name__ == "__main__":
    from shadow.jobs.command_line import prepare

    sys.path.append(sys.path.pop(0))  # lm-eval's "import evaluate" means Hugging Face's, not the script here
    prepare("train", sys.argv[1:])
    main()

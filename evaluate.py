"""Load the language model, make it sparse by a scorer's plan, measure it, and write run.json."""

import sys

sys.path.append(sys.path.pop(0))  # lm-eval's "import evaluate" means Hugging Face's, not this script

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="pkg://shadow.conf", config_name="evaluate")
def main(cfg: DictConfig) -> float | None:
    import logging

    from shadow.executors.masked import sparse
    from shadow.jobs import checks, loading, measures, points, scorers, settings, stores
    from shadow.jobs.run import job

    log = logging.getLogger("evaluate")
    with job(cfg) as this:
        this.record["point"] = points.describe(cfg)
        settings.policy_of(cfg)  # refuses what is no policy before anything long begins
        measures.check_measure(cfg)
        checks.check_executor(cfg)
        checks.check_scorer(cfg)
        checks.check_disjoint(cfg)
        this.record["content"] = measures.content_of(cfg)
        known = points.find(cfg, this.record)
        if known is None:
            lm = loading.placed(cfg, loading.load_lm(cfg))
            scorer = scorers.get_scorer(cfg, lm, this.loggers)
            fill = stores.get_fill(cfg, lm)
            policy = scorers.get_policy(cfg, lm, scorer, fill)
            lm = loading.measured_lm(cfg)
            with sparse(
                lm.model,
                scorer,
                policy,
                cfg.sparsity.decided_at,
                fill=fill,
                executor=cfg.executor.name,
                storage=cfg.executor.storage,
                kv_policy=cfg.executor.kv_policy,
                compact=cfg.executor.compact,
                prefill=cfg.executor.prefill,
            ) as run:
                metrics = measures.measure(cfg, lm, run)
            achieved = {kind: run.achieved(kind) for kind in ("head", "neuron")}
            points.keep(cfg, this.record, achieved, metrics)
        else:
            log.info("measured before: %s", known)
            points.tell(cfg, this.record)  # a kill may have come before the predictor's curve was told
        figures = {name: metric["value"] for name, metric in this.record["metrics"].items()}
        this.log_metrics(
            figures | {f"achieved/{kind}": share for kind, share in this.record["achieved"].items()}
        )
        log.info("%s level %s: %s", cfg.predictor.name, cfg.sparsity.level, figures)
        return next(iter(figures.values()), None)  # the perplexity, where measured: for sweepers that ask


if __name__ == "__main__":
    from shadow.jobs.command_line import refuse_null_groups

    refuse_null_groups(sys.argv[1:])
    main()

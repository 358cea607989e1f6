"""Load the language model, make it sparse by a scorer's plan, measure it, and write run.json."""

import sys

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="pkg://shadow.conf", config_name="evaluate")
def main(cfg: DictConfig) -> float | None:
    import logging

    from shadow.front import sparse
    from shadow.jobs import checks, loading, measures, point_records, predictor_curve, results
    from shadow.jobs.method import executor_of
    from shadow.jobs.prepared import prepared
    from shadow.jobs.run import job

    log = logging.getLogger("evaluate")
    with job(cfg) as this:
        this.record["point"] = point_records.describe(cfg)
        checks.check_evaluate(cfg)
        this.record["content"] = measures.content_of(cfg)
        known = point_records.find(cfg, this.record)
        if known is None:
            lm = loading.placed(cfg, loading.load_lm(cfg))
            scorer, policy, stand_in = prepared(cfg, lm, this.loggers)
            lm = loading.measured_lm(cfg)
            executor, decided_at = executor_of(cfg), cfg.sparsity.decided_at
            with sparse(lm.model, scorer, policy, decided_at, stand_in=stand_in, executor=executor) as run:
                metrics = measures.measure(cfg, lm, run)
            achieved = {kind: run.achieved(kind) for kind in policy.kinds or ()}
            point_records.keep(cfg, this.record, achieved, run.bytes(), metrics)
        else:
            log.debug("measured before: %s", known)
        predictor_curve.add_to_curve(cfg, this.record)  # a kill may have come between a point and its curve
        figures = {name: metric["value"] for name, metric in this.record["metrics"].items()}
        shares = {f"achieved/{kind}": share for kind, share in this.record["achieved"].items()}
        this.log_metrics(figures | shares | {"bytes/skipped": this.record["bytes"]["skipped"]})
        results.tell(cfg, this.record)
        return next(iter(figures.values()), None)  # the perplexity, where measured: for sweepers that ask


if __name__ == "__main__":
    from shadow.jobs.command_line import prepare

    sys.path.append(sys.path.pop(0))  # lm-eval's "import evaluate" means Hugging Face's, not the script here
    prepare(sys.argv[1:])
    main()

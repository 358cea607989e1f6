"""Do learnt stand-ins make up for what is dropped, or learn the text? The same vectors with nothing dropped.

    python benchmarks/learnt_control.py model=opt-mini sparsity.level=0.5 make_missing=true

The words are those of evaluate.py; `measure.text=FILE` measures on another text. Prints nats over dense.
"""

import math
import sys
import tempfile
from dataclasses import replace

import numpy as np
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

import shadow
from shadow.jobs import checks, loading, measures
from shadow.jobs.prepared import prepared
from shadow.measures.evaluation import Metric, perplexity
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Learnt, StandIn


def main() -> None:
    with initialize_config_module("shadow.conf", version_base="1.3"), tempfile.TemporaryDirectory() as place:
        cfg = compose("evaluate", sys.argv[1:], return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir, cfg.hydra.job.num = place, 0
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        checks.check_evaluate(cfg)
        lm = loading.load_lm(cfg)
        scorer, policy, stand_in = prepared(cfg, lm, [])
        assert isinstance(stand_in, Learnt), "give settings that learn a stand-in"
        assert policy.thresholds is not None, "give sparsity.scope=threshold"
        none = replace(policy, thresholds=dict.fromkeys(policy.thresholds, -math.inf))
        texts = measures.running_text(cfg)
        windows = measures.eval_windows(cfg, lm, texts, "windows", cfg.measure.tokens, 0.0)

        def measured(plans: SparsityPolicy, within: StandIn) -> tuple[Metric, float]:
            decided_at = cfg.sparsity.decided_at
            with shadow.sparse(lm.model, scorer, plans, decided_at, stand_in=within) as run:
                found = perplexity(run, lm, windows, cfg.measure.batch_size)["perplexity"]
            return found, run.achieved("channel")

        dense, _ = measured(none, stand_in.within)
        print(f"{cfg.model.name} at level {cfg.sparsity.level:g} {sys.argv[1:]}")
        print(f"dense: perplexity {dense.value:.2f} on {len(windows)} windows")
        for name, plans, within in (
            ("vectors alone, nothing dropped", none, stand_in),
            ("plans alone", policy, stand_in.within),
            ("plans and vectors", policy, stand_in),
        ):
            found, dropped = measured(plans, within)
            gaps = np.subtract(found.samples or [], dense.samples or [])
            error = gaps.std(ddof=1) / math.sqrt(len(gaps))
            share = f"{100 * dropped:.1f} % of inputs dropped"
            print(f"{name:<32} {gaps.mean():+.3f} ± {error:.3f} nats, {share}")


if __name__ == "__main__":
    main()

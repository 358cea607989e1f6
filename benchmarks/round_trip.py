"""A checkpoint against the sparse model that it was written of: perplexity and text, to the last digit.

    python benchmarks/round_trip.py model=opt-mini predictor=teal sparsity=threshold make_missing=true

The words are those of `shadow export`. Prints the folder's size beside the dense model's, in MB.
"""

import sys
import tempfile

import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import shadow
from shadow.checkpoint.folder import TENSORS
from shadow.checkpoint.opened import opened_of
from shadow.data.batches import Batch
from shadow.jobs import export, loading, measures
from shadow.measures.evaluation import Metric, perplexity

PROMPT, NEW = "The river ran through the", 32


class Plain:
    """Calls the model as anybody does."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @torch.no_grad()
    def logits(self, batch: Batch) -> torch.Tensor:
        return self.model(**batch.arguments()).logits


def main() -> None:
    with initialize_config_module("shadow.conf", version_base="1.3"), tempfile.TemporaryDirectory() as place:
        cfg = compose("export", sys.argv[1:], return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir, cfg.hydra.job.num = place, 0
            cfg.folder = f"{place}/checkpoint"
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        torch.set_num_threads(1)
        folder = export.make(cfg, [])
        lm = loading.measured_lm(cfg)
        windows = measures.eval_windows(
            cfg, lm, measures.running_text(cfg), "windows", cfg.measure.tokens, 0.0
        )

        def measured(run: object) -> Metric:
            return perplexity(run, lm, windows, cfg.measure.batch_size)["perplexity"]  # type: ignore[arg-type]

        found = AutoModelForCausalLM.from_pretrained(folder)
        opened = opened_of(found)
        method = opened.method
        prompt = lm.tokenizer(PROMPT, return_tensors="pt")
        asked = {**prompt, "max_new_tokens": NEW, "do_sample": False}
        with shadow.sparse(
            lm.model,
            method.scorer,
            method.policy,
            method.decided_at,
            stand_in=method.stand_in,
            executor=method.executor,
        ) as run:
            inside, text = measured(run), lm.model.generate(**asked)
        outside, again = measured(Plain(found)), found.generate(**asked)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        size = {
            name: (folder / name).stat().st_size / 1e6
            for name in ("model.safetensors", TENSORS)
            if (folder / name).is_file()
        }
        print(f"{cfg.model.name} {cfg.predictor.name} level {cfg.sparsity.level:g} {sys.argv[1:]}")
        print("perplexity in `sparse`        ", repr(inside.value))
        print("perplexity of the checkpoint  ", repr(outside.value))
        print("equal                         ", inside.value == outside.value, torch.equal(text, again))
        print("weight bytes skipped          ", round(opened.run.bytes()["skipped"], 4))
        print(
            "MB",
            {name: round(of, 3) for name, of in size.items()},
            "all",
            round(export.size_of(folder) / 1e6, 1),
        )
        print(
            "tokens of the saved tokenizer ",
            tokenizer(PROMPT)["input_ids"] == prompt["input_ids"][0].tolist(),
        )
        print(repr(tokenizer.decode(again[0])))


if __name__ == "__main__":
    main()

"""A model that accelerate spreads over memory and disk gives the numbers of one in one place."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shadow.front import sparse
from shadow.jobs import ingredients, loading, measures, method
from shadow.models.digest import digest
from shadow.models.kinds import find_sites
from shadow.models.load import LM, load, random_llama, random_opt
from shadow.models.sites import column_norms, values_of
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Learnt, Zero
from shadow.scorers.inputs import InputMagnitude
from shadow.scorers.low_rank import LowRankCopy
from shadow.scorers.oracle import Oracle
from shadow.signals import Signal

SOURCES = {
    "opt": partial(random_opt, 4, 32, 4, 64, 512, 0),
    "llama": partial(random_llama, 4, 32, 4, 2, 64, 512, 0),
}
STACK = {"opt": "model.decoder", "llama": "model"}
ALONE = {
    "opt": ["embed_tokens", "embed_positions", "final_layer_norm"],
    "llama": ["embed_tokens", "norm", "rotary_emb"],
}
SMALL = [
    "data.windows=16",
    "data.tokens=24",
    "traces.criteria=[l2_norm,fisher,plainact_weight]",
    "traces.batch_size=4",
    "traces.shard_windows=8",
    "traces.tokens_per_window=6",
    "predictor.epochs=1",
    "predictor.rank=4",
    "predictor.batch_size=32",
    "measure.windows=4",
    "measure.tokens=24",
    "measure.choices=false",
    "callbacks.progress=null",
    "trainer.accelerator=cpu",
]


def spread(family: str) -> dict[str, str]:
    """Layers 1 and 2 on disk, all else in memory."""
    places = {f"{STACK[family]}.{name}": "cpu" for name in ALONE[family]} | {"lm_head": "cpu"}
    where = ("cpu", "disk", "disk", "cpu")
    return places | {f"{STACK[family]}.layers.{layer}": place for layer, place in enumerate(where)}


@pytest.fixture(params=["opt", "llama"])
def family(request) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path, family) -> Path:
    lm = load(SOURCES[family], None, "float32", None)
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def whole_and_spread(folder, family) -> tuple[LM, LM]:
    whole, over = (load(SOURCES[family], str(folder), "float32", where) for where in (None, spread(family)))
    assert sum(values.is_meta for values in over.model.parameters()) > 10  # it is on disk
    return whole, over


def test_weights_are_the_same_wherever_they_lie(whole_and_spread):
    whole, over = whole_and_spread
    assert digest(whole.model) == digest(over.model)
    sites = [find_sites(lm.model) for lm in whole_and_spread]
    for one, other in zip(*sites):
        assert torch.equal(values_of(one.reader), values_of(other.reader))
        assert other.reader.weight.is_meta == (other.layer in (1, 2))  # and it lies there again
    norms = [column_norms(of) for of in sites]
    assert all(torch.equal(norms[0][kind], norms[1][kind]) for kind in norms[0])


@pytest.mark.parametrize("name", ["l2_norm", "plainact_weight", "grasp", "griffin"])
def test_every_kind_of_criterion_prunes_alike(whole_and_spread, batch, name, hooks_on):
    found, before = [], hooks_on(whole_and_spread[1].model)
    for lm in whole_and_spread:
        with sparse(lm.model, Oracle(name, "answer", None), SparsityPolicy(0.5), "sequence") as run:
            found.append(run.logits(batch))
    assert torch.equal(*found)
    assert hooks_on(whole_and_spread[1].model) == before


@pytest.mark.parametrize("family", ["llama"])
def test_a_learnt_stand_in_is_the_same(whole_and_spread, batch):
    found = []
    for lm in whole_and_spread:
        learnt = Learnt(find_sites(lm.model, ["channel"]), Zero())
        for values in learnt.parameters():
            values.data += 0.1
        with sparse(lm.model, InputMagnitude(), level=0.5, stand_in=learnt) as run:
            found.append(run.logits(batch))
    assert torch.equal(*found)


@pytest.mark.parametrize("family", ["llama"])  # the copy is of gates
def test_a_low_rank_copy_is_the_same(whole_and_spread):
    heads = {layer: torch.ones(4) for layer in range(4)}
    copies = [LowRankCopy(lm.model, 4, heads) for lm in whole_and_spread]
    state = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    one, other = (copy.scores(Signal(copy.layers[0], "layer_input"), state, None) for copy in copies)
    assert all(torch.equal(one[unit], other[unit]) for unit in one)


def test_a_job_collects_fits_and_measures_the_same(compose, folder, family, monkeypatch, tmp_path):
    left = []
    for name, where in (("whole", None), ("spread", spread(family))):
        monkeypatch.setenv("SHADOW_ROOT", str(tmp_path / name))
        cfg = compose("evaluate", *SMALL, f"model.path={folder}", "make_missing=true")
        cfg.model.device_map = where
        lm = loading.load_lm(cfg)
        assert hasattr(lm.model, "hf_device_map") == (where is not None)
        scorer = ingredients.get_scorer(cfg, lm, [])
        with sparse(lm.model, scorer, method.policy_of(cfg)) as run:
            metrics = measures.measure(cfg, lm, run)
        files = sorted((tmp_path / name / "artifacts").rglob("*.safetensors"))
        left.append(({file.name: load_file(file) for file in files}, metrics, run.achieved("neuron")))
    assert left[0][1:] == left[1][1:]
    assert left[0][0].keys() == left[1][0].keys()
    for name, tensors in left[0][0].items():
        assert all(torch.equal(values, left[1][0][name][key]) for key, values in tensors.items()), name

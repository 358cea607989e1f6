"""What a block leaves on the model: nothing; and what is copied or saved meanwhile is right, or refused."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.executors.masked import Masked
from shadow.front import sparse
from shadow.models.kinds import find_sites
from shadow.models.load import LM
from shadow.scorers.fixed import Fixed, random_scores

EXECUTORS = {"masked": Masked(), "gathered": Gathered(), "int8": Gathered("int8")}


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Masked | Gathered:
    return EXECUTORS[request.param]


def laid_out(model: nn.Module) -> dict[str, tuple]:
    return {
        name: (weight.stride(), weight.is_contiguous(), weight.dtype)
        for name, weight in model.named_parameters()
    }


def test_the_model_is_as_it_was_after_a_block_and_after_a_second(lm, executor, tmp_path):
    before, plain = copy.deepcopy(lm.model.state_dict()), laid_out(lm.model)
    attributes = {name: set(vars(module)) for name, module in lm.model.named_modules()}
    taken = lm.model.state_dict()  # shows the same memory as the weights
    for _ in range(2):
        with sparse(lm.model, random_of(lm), level=0.5, executor=executor) as run:
            lm.model(torch.ones(1, 4, dtype=torch.long))
        assert laid_out(lm.model) == plain
        for name, weight in (lm.model.state_dict() | taken).items():
            assert torch.equal(weight, before[name]), name
        taken = lm.model.state_dict()
    assert {name: set(vars(module)) for name, module in lm.model.named_modules()} == attributes
    lm.model.save_pretrained(tmp_path)
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path), before)
    assert same(copy.deepcopy(lm.model), before)
    assert same(pickle.loads(pickle.dumps(lm.model)), before)
    assert run.achieved("neuron") > 0


def test_what_is_saved_inside_a_block_is_the_whole_model(lm, executor, tmp_path):
    before = copy.deepcopy(lm.model.state_dict())
    with sparse(lm.model, random_of(lm), level=0.5, executor=executor):
        lm.model.save_pretrained(tmp_path / "whole")
        layer = lm.model.get_decoder().layers[1].state_dict(prefix="x.")
        save_file({name: weight.contiguous() for name, weight in layer.items()}, tmp_path / "layer")
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "whole"), before)
    assert all(torch.equal(value, layer[name]) for name, value in load_file(tmp_path / "layer").items())


def parts_of(model: nn.Module) -> dict[str, nn.Module]:
    return {"model": model, "decoder": model.get_decoder(), "layer": model.get_decoder().layers[1]}


@pytest.mark.parametrize("what", ["model", "decoder", "layer"])
def test_a_copy_inside_a_block_is_dense_and_a_pickle_refused(lm, executor, what, hooks_on):
    before = parts_of(copy.deepcopy(lm.model))[what]
    with sparse(lm.model, random_of(lm), level=0.5, executor=executor):
        found = copy.deepcopy(parts_of(lm.model)[what])
        with pytest.raises(UserError, match=r"cannot be pickled inside a sparse block.*before the block"):
            pickle.dumps(parts_of(lm.model)[what])
    assert hooks_on(found) == 0
    assert {name: set(vars(module)) for name, module in found.named_modules()} == {
        name: set(vars(module)) for name, module in before.named_modules()
    }
    assert same(found, before.state_dict())
    if what == "model":
        ids = torch.arange(1, 9)[None]
        torch.testing.assert_close(found(ids).logits, before(ids).logits)


def test_a_gathered_run_whose_block_has_ended_says_so(lm):
    with sparse(lm.model, random_of(lm), level=0.5, executor=Gathered()) as run:
        pass
    with pytest.raises(UserError, match="block has ended"):
        run.forward(torch.ones(1, 4, dtype=torch.long))


def random_of(lm: LM) -> Fixed:
    return Fixed(random_scores(find_sites(lm.model), 0))


def same(model: nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())

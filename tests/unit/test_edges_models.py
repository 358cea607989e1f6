"""Models that are not what they seem: adapted, quantised, on disk, without norms; other default dtypes."""

import copy
import json

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import OPTConfig

from shadow.artifacts import hub
from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.executors.masked import Masked
from shadow.front import sparse
from shadow.models import load
from shadow.models.kinds import find_sites
from shadow.models.numbers import require_dtype
from shadow.plans.stand_ins import Zero
from shadow.scorers.fixed import Fixed, random_scores

EITHER = pytest.mark.parametrize("executor", [Masked(), Gathered()], ids=["masked", "gathered"])


def opened(model, executor, level=0.5):
    return sparse(model, Fixed(SCORES), level=level, executor=executor)


SCORES = {
    (layer, kind): torch.arange(float(units))
    for layer in range(4)
    for kind, units in (("head", 4), ("neuron", 64))
}


# Projections that are none


class Adapted(nn.Module):
    """As an adapter stands in a projection's place."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.in_features, self.out_features = linear, linear.in_features, linear.out_features

    def forward(self, x):
        return self.base_layer(x)


@EITHER
@pytest.mark.parametrize("path", ["self_attn.o_proj", "self_attn.q_proj", "mlp.down_proj", "mlp.gate_proj"])
def test_a_projection_with_an_adapter_is_refused_by_name(tiny_llama, executor, path):
    layer = tiny_llama.model.model.layers[2]
    layer.set_submodule(path, Adapted(layer.get_submodule(path)))
    with (
        pytest.raises(UserError, match=rf"{path} of this model is a .*Adapted: merge an adapter"),
        opened(tiny_llama.model, executor),
    ):
        pytest.fail("it opened")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
@EITHER
@pytest.mark.parametrize("level", [0.0, 0.5])
def test_a_model_that_another_wraps_is_refused(tiny_llama, executor, level):
    for wrapped in (
        get_peft_model(tiny_llama.model, LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM")),
        nn.Sequential(tiny_llama.model),
    ):
        with (
            pytest.raises(UserError, match=f"got a {type(wrapped).__name__}: give the model"),
            opened(wrapped, executor, level),
        ):
            pytest.fail("it opened")


def test_what_is_no_object_of_its_kind_is_refused(tiny_llama):
    model, scorer = tiny_llama.model, Fixed(SCORES)
    for message, given in {
        "LlamaModel has no model.layers: load it by AutoModelForCausalLM": (model.model, scorer, {}),
        "the scorer must be an object, got the class Fixed": (model, Fixed, {}),
        r"executor must be shadow.executors.masked.Masked\(\) or": (model, scorer, {"executor": Gathered}),
        "stand_in must be one of .* got None": (model, scorer, {"stand_in": None}),
        "or a StandIn, got <class .*Zero": (model, scorer, {"stand_in": Zero}),
    }.items():
        with pytest.raises(UserError, match=message):
            sparse(given[0], given[1], level=0.5, **given[2]).__enter__()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@EITHER
def test_dynamic_int8_is_refused_by_name(tiny_opt, executor):
    with pytest.warns(DeprecationWarning, match=r"torch\.ao"):
        quantised = torch.ao.quantization.quantize_dynamic(tiny_opt.model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(UserError, match=r"is a torch\.ao.*without quantisation"), opened(quantised, executor):
        pytest.fail("it opened")


def test_an_lm_head_with_an_adapter_is_refused(tiny_llama):
    tiny_llama.model.lm_head = Adapted(tiny_llama.model.lm_head)
    with (
        pytest.raises(UserError, match=r"the lm_head of this model is a .*Adapted"),
        opened(tiny_llama.model, Masked()),
    ):
        pytest.fail("it opened")


# The gathered executor


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"layer_norm_elementwise_affine": False},
            r"norms with weights.*layer_norm_elementwise_affine=false",
        ),
        ({"_remove_final_layer_norm": True}, r"a norm behind the last layer.*_remove_final_layer_norm=true"),
        ({"do_layer_norm_before": False}, r"norms before attention and neurons"),
        ({"activation_function": "gelu"}, r"needs relu, and has 'gelu'"),
    ],
)
def test_opt_models_that_the_gathered_executor_cannot_follow_are_refused(tiny_opt, changed, message):
    config = OPTConfig(**tiny_opt.model.config.to_dict() | changed)
    model = load.random_weights(config, 0, torch.float32).eval().requires_grad_(False)
    with pytest.raises(UserError, match=message + ".* use executor=masked"), opened(model, Gathered()):
        pytest.fail("it opened")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.to("meta"), "down_proj.weight lies on disk"),
        (
            lambda weight: weight.to(torch.int8),
            "down_proj.weight is a Parameter of int8: load the model without",
        ),
    ],
)
def test_weights_that_the_gathered_executor_cannot_read_are_refused(tiny_llama, change, message):
    down = tiny_llama.model.model.layers[1].mlp.down_proj
    down.weight = nn.Parameter(change(down.weight), requires_grad=False)
    with pytest.raises(UserError, match=message), opened(tiny_llama.model, Gathered()):
        pytest.fail("it opened")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_dtype_that_is_not_stored_is_refused_unless_a_storage_is_given(make_lm, dtype):
    model = make_lm("llama", dtype=dtype).model
    with (
        pytest.raises(UserError, match=r"give storage, .* got storage=None and dtype=float"),
        opened(model, Gathered()),
    ):
        pytest.fail("it opened")
    with opened(model, Gathered(storage="float32")):
        assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


# Defaults that a program has set


@EITHER
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_torchs_default_dtype_changes_nothing(make_lm, make_net, config_of, tmp_path, executor, default):
    lm = make_lm("llama")
    net = make_net(lm, [1])
    hub.save_predictor(tmp_path, net, config_of(net, lm))
    ids = torch.arange(1, 13)[None]

    def logits():
        model = copy.deepcopy(lm.model)
        with sparse(model, hub.load_predictor(tmp_path), level=0.5, executor=executor):
            return model.generate(ids, max_new_tokens=4, output_logits=True, return_dict_in_generate=True)

    expected = logits()
    torch.set_default_dtype(default)
    try:
        found = logits()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.sequences, expected.sequences)
    assert all(torch.equal(one, other) for one, other in zip(found.logits, expected.logits))


def test_torchs_default_device_is_not_where_a_predictor_is_loaded(tiny_llama, make_net, config_of, tmp_path):
    net = make_net(tiny_llama, [1])
    hub.save_predictor(tmp_path, net, config_of(net, tiny_llama))
    with torch.device("meta"):
        found = hub.load_predictor(tmp_path).net
    assert all(torch.equal(found.state_dict()[name], values) for name, values in net.state_dict().items())


def test_random_scores_are_those_of_any_default_dtype(tiny_llama):
    sites = find_sites(tiny_llama.model)
    expected = random_scores(sites, 0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = random_scores(sites, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[key], values) for key, values in expected.items())


# What is not verified, and what comes from a cache


def test_a_predictor_without_a_checksum_is_refused(tiny_llama, make_net, config_of, tmp_path):
    net = make_net(tiny_llama, [1])
    hub.save_predictor(tmp_path, net, config_of(net, tiny_llama))
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for checksum in (None, 7, "0" * 64):
        file.write_text(json.dumps(config | {"sha256": checksum}))
        with pytest.raises(UserError, match="does not match the checksum"):
            hub.load_predictor(tmp_path)
    del config["sha256"]
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="no predictor's, for it has no 'sha256'"):
        hub.load_predictor(tmp_path)


def test_a_cached_revision_is_told_where_the_hub_cannot_be_reached(tiny_llama, tmp_path, monkeypatch, caplog):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--someone--tiny"
    tiny_llama.model.save_pretrained(cached / "snapshots" / commit)
    tiny_llama.tokenizer.save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        load,
        "try_to_load_from_cache",
        lambda *args, **kwargs: str(cached / "snapshots" / commit / "config.json"),
    )

    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(load.urllib.request, "urlopen", unreachable)
    assert not load._reachable("someone/tiny", None)
    assert (
        f"no route to host): someone/tiny at revision main is the one in the cache, {commit}" in caplog.text
    )


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "bool", "complex64", None, 32])
def test_a_dtype_in_which_nothing_computes_is_refused(dtype):
    with pytest.raises(
        UserError, match=rf"measure\.dtype must name a torch dtype that computes.*got {dtype!r}"
    ):
        require_dtype("measure.dtype", dtype)

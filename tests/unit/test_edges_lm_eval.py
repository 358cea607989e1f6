"""What `hf` of lm-eval takes: right by `--model shadow`, or refused by name before the model is loaded."""

import json
import shutil
from importlib.metadata import version

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from packaging.version import Version
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadow.artifacts import hub
from shadow.data.texts import cut
from shadow.errors import UserError
from shadow.measures.harness import ShadowLM
from shadow.measures.kept_answers import WHERE
from shadow.models import load

PAIRS = [("Where is it?", " Here."), ("Where is it?", " There."), ("Why", "?"), ("", "From nothing.")]


def spoken(*pairs):
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


def answers(model):
    whole = [Instance("loglikelihood_rolling", {}, ("A whole text.",), 0)]
    return model.loglikelihood(spoken(*PAIRS)), model.loglikelihood_rolling(whole)


@pytest.fixture
def folder(tiny_llama, tmp_path):
    tiny_llama.model.save_pretrained(tmp_path / "model")
    tiny_llama.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sparse_args(tiny_llama, make_net, config_of, tmp_path):
    net = make_net(tiny_llama, [1])
    hub.save_predictor(tmp_path / "predictor", net, config_of(net, tiny_llama))
    return {"predictor": str(tmp_path / "predictor"), "level": 0.5, "device": "cpu"}


def adapter(model, folder, **config):
    found = get_peft_model(model.requires_grad_(True), config.pop("kind")(task_type="CAUSAL_LM", **config))
    found.save_pretrained(folder)
    return found


LORA = {"kind": LoraConfig, "r": 4, "init_lora_weights": False}
LORA |= {"target_modules": ["q_proj", "o_proj", "gate_proj", "down_proj"]}
adapters = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it


@pytest.mark.parametrize(
    "given",
    [
        {"add_bos_token": True, "prefix_token_id": 5, "max_length": 30},
        {"logits_cache": False, "truncation": True},
        {"mixed_precision_dtype": "bfloat16"},
        {"softmax_dtype": "float64", "dtype": "bfloat16", "use_fast_tokenizer": False},
        {"parallelize": True, "max_cpu_memory": "1GiB"},
        {"delta": True},
    ],
    ids=lambda given: next(iter(given)),
)
def test_arguments_of_hf_do_what_they_do_there(folder, make_lm, tmp_path, given):
    if "parallelize" in given:
        given["offload_folder"] = str(tmp_path / "offload")
    if "delta" in given:
        make_lm("llama", seed=1).model.save_pretrained(tmp_path / "delta")
        given["delta"] = str(tmp_path / "delta")
    expected = answers(HFLM(str(folder), **({"device": "cpu", "batch_size": 3} | given)))
    assert answers(ShadowLM(str(folder), **({"device": "cpu", "batch_size": 3} | given))) == expected


@pytest.mark.parametrize("batch_size", ["auto", "auto:2", "auto:40"])
def test_batches_as_large_as_fit_give_the_same_answers(folder, batch_size):
    expected = answers(ShadowLM(str(folder), device="cpu", batch_size=1))
    found = answers(ShadowLM(str(folder), device="cpu", batch_size=batch_size, max_batch_size=2))
    assert [value for value, _ in found[0]] == pytest.approx([value for value, _ in expected[0]], rel=1e-5)
    assert found[1] == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.skipif(
    Version(version("accelerate")) < Version("1.15"),
    reason="accelerate before 1.15 refuses a model that lies on disk as a whole",
)
def test_weights_that_lie_on_disk_give_the_same_sparse_answers(folder, sparse_args, tmp_path):
    expected = answers(ShadowLM(str(folder), **sparse_args))
    found = ShadowLM(str(folder), **sparse_args, parallelize=True, offload_folder=str(tmp_path / "offload"))
    assert answers(found) == expected


@adapters
def test_a_lora_adapter_is_merged_into_the_weights_and_either_executor_reads_them(
    tiny_llama, folder, sparse_args, tmp_path
):
    adapter(tiny_llama.model, tmp_path / "adapter", **LORA)
    peft = {"peft": str(tmp_path / "adapter")}
    (expected, dense) = (answers(HFLM(str(folder), device="cpu", **more))[0] for more in (peft, {}))
    found = answers(ShadowLM(str(folder), device="cpu", **peft))[0]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert abs(found[0][0] - dense[0][0]) > 0.01
    masked, gathered = (
        ShadowLM(str(folder), **sparse_args, **peft, executor=executor).loglikelihood(spoken(*PAIRS), True)
        for executor in ("masked", "gathered")
    )
    assert [value for value, _ in masked] == pytest.approx([value for value, _ in gathered], rel=1e-4)
    assert abs(masked[0][0] - found[0][0]) > 0.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"autogptq": True}, "autogptq=True cannot be sparse"),
        ({"gptqmodel": True}, "gptqmodel=True cannot be sparse"),
        ({"load_in_4bit": True}, "load_in_4bit=True cannot be sparse"),
        ({"tp_plan": "auto"}, "tp_plan=auto cannot be sparse"),
        ({"backend": "seq2seq"}, "backend must be default or causal"),
        ({"device": "gpu"}, "device must be as cpu or cuda:0, got 'gpu'"),
        ({"device": "meta"}, "device must be as cpu or cuda:0, got 'meta'"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config=.* cannot be sparse"),
        ({"gpus": 2}, "gpus=2 is what hf counts by itself"),
        ({"max_length": 0}, "max_length must be a whole number of at least 1, got 0"),
        ({"max_length": "12"}, "max_length must be a whole number of at least 1, got '12'"),
        ({"pretrained": None}, "pretrained must be a model's folder, .* got None"),
        ({"subfolder": "nosuch"}, "must be a model's folder"),
        ({"dtype": "int8"}, "dtype must name .* got 'int8'"),
        ({"softmax_dtype": "nosuch"}, "softmax_dtype must name .* got 'nosuch'"),
        ({"batch_size": "auto:x"}, "batch_size must be .* got 'auto:x'"),
        ({"batch_size": 0}, "batch_size must be .* got 0"),
        ({"enable_thinking": True}, "enable_thinking needs think_end_token"),
        ({"mixed_precision_dtype": "bfloat16", "executor": "gathered"}, "leave mixed_precision_dtype out"),
        ({"parallelize": True, "executor": "gathered"}, "leave parallelize out"),
        ({"peft": "/nowhere", "delta": "/nowhere"}, "leave one of peft and delta out"),
        ({"peft": "/nowhere/at/all"}, "peft=/nowhere/at/all must be a folder"),
        ({"gguf_file": "nosuch.gguf"}, "nosuch.gguf"),
        ({"pretrained": "/nowhere/at/all"}, "pretrained=/nowhere/at/all must be a model's folder"),
        ({"tokenizer": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name_before_the_model_is_loaded(
    folder, monkeypatch, given, message
):
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded")
    )
    with pytest.raises(UserError, match=message) as refused:
        ShadowLM(**({"pretrained": str(folder), "device": "cpu"} | given))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given", [{"attn_implementation": "nosuch"}, {"delta": "/no/model"}])
def test_what_transformers_refuses_to_load_is_one_sentence(folder, given):
    with pytest.raises(UserError, match=rf"cannot be loaded so \(.*{next(iter(given.values()))}") as refused:
        ShadowLM(str(folder), device="cpu", **given)
    assert "\n" not in str(refused.value)


@adapters
def test_adapters_that_are_no_weights_are_refused(tiny_llama, folder, tmp_path, monkeypatch):
    adapter(tiny_llama.model, tmp_path / "prompts", kind=PromptTuningConfig, num_virtual_tokens=2)
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded")
    )
    with pytest.raises(UserError, match=r"peft must be a LoRA adapter.*PROMPT_TUNING"):
        ShadowLM(str(folder), device="cpu", peft=str(tmp_path / "prompts"))


def test_an_argument_that_nobody_knows_is_refused(folder):
    with pytest.raises(UserError, match=r"argument of that name .*levle"):
        ShadowLM(str(folder), device="cpu", levle=0.5)


def test_an_answer_longer_than_max_length_is_refused(folder):
    model = ShadowLM(str(folder), device="cpu", max_length=4)
    with pytest.raises(UserError, match="max_length must be at least the 6 tokens"):
        model.loglikelihood(spoken(("Where", " Here.")), disable_tqdm=True)


def test_kept_answers_are_those_of_the_same_settings(folder, sparse_args, tmp_path, monkeypatch):
    """One file of --use_cache for all of them; where and in what batches is no setting of an answer."""
    assert {"device", "batch_size"} <= set(WHERE)
    alone = {level: answers(ShadowLM(str(folder), **sparse_args | {"level": level})) for level in (0.25, 0.5)}
    assert alone[0.25] != alone[0.5]

    def kept(**given):
        return CachingLM(ShadowLM(str(folder), **sparse_args | given), str(tmp_path / "answers.db"))

    for _ in range(2):
        for level, expected in alone.items():
            assert answers(kept(level=level)) == expected
    again, calls = kept(batch_size=2), []
    monkeypatch.setattr(again.lm, "_model_call", lambda *args: calls.append(args))
    assert answers(again) == alone[0.5]
    assert not calls
    keys = {
        kept(**given).lm.answers_key
        for given in ({}, {"batch_size": 2}, {"stand_in": "zero"}, {"dtype": "bfloat16"}, {"tokens": 2})
    }
    assert len(keys) == 4
    config = json.loads((tmp_path / "predictor" / "config.json").read_text())
    (tmp_path / "predictor" / "config.json").write_text(json.dumps(config | {"note": "no weight"}))
    assert kept().lm.answers_key in keys


# Tokenizers


def test_a_folder_without_a_tokenizer_is_refused(folder):
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match="must come with its tokenizer") as refused:
        load.from_folder(str(folder), torch.float32, None)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="must come with its tokenizer"):
        ShadowLM(str(folder), device="cpu")


def test_a_folder_for_which_transformers_makes_an_empty_tokenizer_is_refused(tiny_opt, tmp_path):
    tiny_opt.model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="must come with its tokenizer"):
        load.from_folder(str(tmp_path), torch.float32, None)


def test_windows_begin_as_texts_do_and_never_with_their_end(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "ending")
    tokenizer = AutoTokenizer.from_pretrained(folder, add_bos_token=True, add_eos_token=True)
    tokenizer.save_pretrained(tmp_path / "ending")
    lm = load.from_folder(str(tmp_path / "ending"), torch.float32, None)
    assert lm.tokenizer("")["input_ids"] == [0, 0]
    windows = cut(["abcdefgh"], lm.tokenizer, 4)
    assert [window[0] for window in windows] == [0, 0]
    assert all(0 not in window[1:] for window in windows)
    with pytest.raises(UserError, match=r"ends each with \[0\].*add_eos_token=False"):
        ShadowLM(str(tmp_path / "ending"), device="cpu")

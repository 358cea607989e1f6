"""A model whose sequences begin with BOS: windows, questions and tasks do, and BOS is never scored."""

from functools import partial

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from shadow.data.batches import IGNORED, collate
from shadow.data.calibration import TextFiles
from shadow.data.tasks import few_shot_examples, last_tokens
from shadow.data.texts import cut, questions
from shadow.front import sparse
from shadow.jobs.keys import model_settings, traces_folder
from shadow.jobs.point_records import settings_of
from shadow.measures.sparse_hf import SparseHFLM
from shadow.models.load import beginning_with_bos, byte_tokenizer, from_package, load
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed

DENSE = SparsityPolicy(0.0)
TEXT = " ".join(f"word{number}" for number in range(200))
BOS = 0  # the byte tokenizer's


@pytest.fixture
def begun(tiny_llama):
    """The tiny model with a tokenizer that begins texts with BOS."""
    return beginning_with_bos(tiny_llama)


def test_a_tokenizer_begins_with_bos_only_where_the_model_option_says_so(tmp_path, make_lm):
    lm = make_lm("llama")
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    source = partial(from_package, package="none", gguf_file="x", install="", cache=str(tmp_path / "model"))
    plain, begun = (load(partial(source, bos=bos), None, "float32", None) for bos in (False, True))
    assert (plain.bos, begun.bos) == (False, True)
    assert plain.tokenizer("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]
    assert begun.tokenizer("ab")["input_ids"] == [BOS, *plain.tokenizer("ab")["input_ids"]]


def test_a_saved_tokenizer_still_begins_with_bos(begun, tmp_path):
    """As whoever opens the cache's folder needs it: model.path, lm-eval, a card's example."""
    begun.model.save_pretrained(tmp_path)
    begun.tokenizer.save_pretrained(tmp_path)
    again = load(begun, str(tmp_path), "float32", None)
    assert again.tokenizer("ab")["input_ids"] == begun.tokenizer("ab")["input_ids"]


def test_windows_of_calibration_begin_with_bos_and_hold_as_many_tokens_as_asked_for(begun, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    data = TextFiles(str(tmp_path / "text.txt"), None, "page", 9, 16, 0.5, 0)
    found = data.examples(begun)
    assert [len(window.ids) for window in found] == [16] * 9
    assert all(window.ids[0] == BOS and BOS not in window.ids[1:] for window in found)
    labels = collate(found).labels
    assert not (labels == BOS).any()
    assert (labels[:, -1] == IGNORED).all()


def test_windows_are_cut_so_that_no_token_of_the_text_is_lost(begun):
    windows = cut([TEXT], begun.tokenizer, 16)
    text = [token for window in windows for token in window[1:]]
    assert begun.tokenizer.decode(text) == TEXT[: len(text)]


def test_the_context_of_a_question_begins_with_bos_and_no_continuation_does(begun):
    for question in questions([TEXT], begun.tokenizer, 5, 3, 12, 4, 0):
        assert len(question.context) == 12
        assert question.context[0] == BOS
        assert BOS not in question.context[1:]
        assert all(len(option) == 4 and BOS not in option for option in question.options)


@pytest.mark.parametrize(
    ("tokens", "bos", "kept"),
    [
        (5, True, [0, 1, 2, 3]),
        (4, True, [0, 1, 2, 3]),
        (3, True, [0, 2, 3]),
        (2, True, [0, 3]),
        (3, False, [1, 2, 3]),
        (5, False, [0, 1, 2, 3]),
    ],
)
def test_a_prompt_that_is_too_long_loses_what_follows_bos(tokens, bos, kept):
    assert last_tokens([0, 1, 2, 3], tokens, bos) == kept


@pytest.mark.usefixtures("tasks")
def test_prompts_of_tasks_begin_with_bos_however_they_are_cut(begun, make_lm, task_root):
    plain = make_lm("llama")
    long, short = (few_shot_examples(begun, ["piqa"], str(task_root), 5, 2, size, 0) for size in (4096, 40))
    before = few_shot_examples(plain, ["piqa"], str(task_root), 5, 2, 4096, 0)
    assert [example.ids for example in long] == [[BOS, *example.ids] for example in before]
    assert [example.prompt for example in long] == [example.prompt + 1 for example in before]
    assert [example.ids for example in short] == [[BOS, *example.ids[-39:]] for example in before]


@pytest.mark.usefixtures("tasks")
def test_a_request_of_a_task_begins_with_bos(begun):
    ids = begun.tokenizer.encode
    with sparse(begun.model, Fixed({}), DENSE) as run:
        model = SparseHFLM(run, begun, 1)
        context, answer = model._encode_pair("Where is it?", " Here")
    assert context == [BOS, *ids("Where is it?", add_special_tokens=False)]
    assert answer == ids(" Here", add_special_tokens=False)


@pytest.mark.usefixtures("tasks")
def test_whole_documents_are_scored_without_the_bos_that_stock_lm_eval_scores(begun):
    asked = [Instance("loglikelihood_rolling", {}, ("One day it rained.",), 0)]
    text = begun.tokenizer("One day it rained.", add_special_tokens=False)["input_ids"]
    with sparse(begun.model, Fixed({}), DENSE) as run:
        model = SparseHFLM(run, begun, 1)
        assert model.scored("One day it rained.") == text
        found = model.loglikelihood_rolling(asked, disable_tqdm=True)
        assert model.add_bos_token is None
    stock = HFLM(pretrained=begun.model, tokenizer=begun.tokenizer)
    assert found == pytest.approx([log_likelihood(begun, text)])
    assert stock.loglikelihood_rolling(asked, disable_tqdm=True) == pytest.approx(
        [log_likelihood(begun, [BOS, *text])]
    )


def log_likelihood(lm, ids):
    """Of these tokens after BOS."""
    logits = lm.model(torch.tensor([[BOS, *ids[:-1]]])).logits[0].log_softmax(-1)
    return logits.gather(1, torch.tensor(ids)[:, None]).sum().item()


# Names of results


def settings_with(compose, *overrides):
    cfg = compose("evaluate", *overrides, "measure=perplexity", "sparsity.level=0")
    record = {"code": "c", "content": {"text": "t", "tasks": {}}}
    return cfg, settings_of(cfg, record)


def test_a_run_with_bos_shares_no_name_with_one_without(compose):
    one, with_bos = settings_with(compose, "model=gemma-3-270m")
    other, without = settings_with(compose, "model=gemma-3-270m", "model.source.bos=false")
    assert with_bos != without
    assert traces_folder(one) != traces_folder(other)


def test_the_names_of_models_without_bos_are_what_they_were(compose):
    source = model_settings(compose("evaluate", "model=smollm2-135m"))["source"]
    assert sorted(source) == ["_partial_", "_target_", "gguf_file", "package"]

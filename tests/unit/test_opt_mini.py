"""opt-mini, the trained model that lies in models/: what its card says is so."""

import platform
import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from shadow.opt_mini import corpus
from shadow.opt_mini.ngrams import bigram_loss, unigram_loss
from torch.nn.functional import cross_entropy

from shadow.data.texts import builtin_topics
from shadow.errors import UserError
from shadow.models.kinds import find_sites
from shadow.models.load import from_installed, load
from shadow.models.sites import count_units
from shadow.signals import hook_sites

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "models" / "opt-mini"


@pytest.fixture(scope="module")
def mini():
    return load(partial(from_installed, module="shadow.opt_mini"), None, "float32", None)


@pytest.fixture(scope="module")
def card():
    return (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def held_out(mini):
    """Token ids [N, 256] of the validation documents."""
    return corpus.pack(corpus.documents("validation"), mini.tokenizer, 256)


@pytest.fixture(scope="module")
def learnt():
    """The training documents, which take some seconds to gather."""
    return corpus.documents("train")


def stated(card, row) -> float:
    """The nats a token in the card's row that begins with `row`."""
    found = re.search(rf"^\| {row}[^|]*\| ([0-9.]+) \|", card, re.MULTILINE)
    assert found, row
    return float(found[1])


@torch.no_grad()
def loss_of(lm, rows) -> float:
    losses = [
        cross_entropy(lm.model(input_ids=part).logits[:, :-1].flatten(0, 1), part[:, 1:].flatten())
        for part in rows.split(1)
    ]
    return torch.stack(losses).mean().item()


# The model


def test_the_installed_package_is_the_folder_of_the_repository():
    assert [Path(place) for place in find_spec("shadow.opt_mini").submodule_search_locations] == [FOLDER]


def test_a_package_that_is_not_installed_is_named_with_the_cure():
    with pytest.raises(UserError, match=r"shadow\.no_such_model.*pip install"):
        load(partial(from_installed, module="shadow.no_such_model"), None, "float32", None)


def test_it_is_an_opt_with_relu_and_tied_embeddings(mini):
    assert (mini.model.config.model_type, mini.model.config.activation_function) == ("opt", "relu")
    assert mini.model.get_output_embeddings().weight is mini.model.get_input_embeddings().weight
    assert count_units(find_sites(mini.model)) == {"head": 6, "neuron": 768}


def test_it_is_small_and_the_card_says_how_small(mini, card):
    parameters = mini.model.num_parameters()
    assert 2e6 < parameters < 4e6
    assert f"{parameters:,}" in card
    assert (FOLDER / "model.safetensors").stat().st_size <= 8e6


def test_the_options_shape_is_the_models(mini):
    shape = yaml.safe_load((ROOT / "conf" / "model" / "opt-mini.yaml").read_text())["shape"]
    assert shape == {key: getattr(mini.model.config, key) for key in shape}


def test_many_of_its_neurons_are_silent_at_a_token_as_relu_has_it(mini, held_out):
    silent = {"head": [], "neuron": []}

    def look(site, x):
        silent[site.kind].append((x == 0).float().mean())

    with torch.no_grad(), hook_sites(mini.model, find_sites(mini.model), look):
        mini.model(input_ids=held_out[:2])
    assert torch.stack(silent["neuron"]).mean() > 0.6


# The tokenizer


@pytest.mark.parametrize(
    "text", ["plain", " two  spaces\n\n    indent\ttab", "it's x == y[0], isn't it .", "Zürich, 北京 🦙", ""]
)
def test_the_tokenizer_gives_back_what_it_read_after_a_beginning(mini, text):
    ids = mini.tokenizer(text)["input_ids"]
    assert ids[0] == mini.tokenizer.bos_token_id == mini.model.config.bos_token_id
    assert mini.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert mini.tokenizer.pad_token_id not in ids
    assert len(mini.tokenizer) == mini.model.config.vocab_size


def test_its_pieces_are_longer_than_bytes(mini):
    text = "Return a list of the words in the string, using the given separator."
    assert len(mini.tokenizer(text)["input_ids"]) < len(text) / 3


# The text


def test_what_the_framework_evaluates_on_by_default_is_what_was_left_out():
    data = yaml.safe_load((ROOT / "conf" / "data" / "builtin.yaml").read_text())
    assert (data["eval_share"], data["split_seed"]) == (corpus.EVAL_SHARE, corpus.SPLIT_SEED)


def assert_unseen(documents) -> None:
    """No paragraph of them occurs in the topics for evaluation, however it is broken into lines."""
    unseen = corpus.plain("\n\n".join(builtin_topics("eval", corpus.EVAL_SHARE, corpus.SPLIT_SEED)))
    for text in documents:
        for paragraph in text.split("\n\n"):
            assert corpus.plain(paragraph) not in unseen


def test_the_validation_documents_have_nothing_of_the_topics_for_evaluation():
    assert_unseen(corpus.documents("validation"))


@pytest.mark.slow
def test_the_training_documents_have_nothing_of_those_for_evaluation_or_validation(learnt):
    assert_unseen(learnt)
    paragraphs = [corpus.plain(paragraph) for text in learnt for paragraph in text.split("\n\n")]
    held_out = {corpus.plain(part) for text in corpus.documents("validation") for part in text.split("\n\n")}
    assert len(paragraphs) == len(set(paragraphs))
    assert not held_out.intersection(paragraphs)
    assert 0.02 < len(held_out) / len(paragraphs) < 0.1


def test_sequences_hold_the_text_in_order_and_each_begins_as_a_text_does(mini):
    texts = ["one two three four five six seven", "eight nine ten"]
    stream = [id for text in texts for id in mini.tokenizer(text)["input_ids"]]
    for skip in (0, 3):
        rows = corpus.pack(texts, mini.tokenizer, 5, skip)
        assert rows[:, 0].tolist() == [mini.tokenizer.bos_token_id] * len(rows)
        assert rows[:, 1:].flatten().tolist() == stream[skip:][: 4 * len(rows)]


# The losses


def test_counts_predict_what_they_counted():
    """Of two tokens in turn, the unigram knows a bit, the bigram nearly all."""
    rows = torch.tensor([0, 1]).repeat(4, 50)
    assert unigram_loss(rows, rows, 2) == pytest.approx(0.693, abs=0.01)
    assert bigram_loss(rows, rows, 2) < 0.05


def test_a_bigram_that_has_seen_nothing_of_use_is_no_worse_than_the_unigram():
    rows = torch.randint(50, (4, 100), generator=torch.Generator().manual_seed(0))
    other = torch.randint(50, (4, 100), generator=torch.Generator().manual_seed(1))
    assert bigram_loss(rows, other, 50) <= unigram_loss(rows, other, 50)


def test_it_predicts_held_out_text_far_better_than_a_bigram(mini, held_out, card):
    """The documentation of another Python is another text than that of the card."""
    better = 0.7 if f"Python {platform.python_version()}," in card else 0.5
    assert loss_of(mini, held_out[::8]) < stated(card, "bigram") - better


@pytest.mark.slow
def test_the_cards_losses_are_those_of_the_files(mini, held_out, learnt, card):
    if f"Python {platform.python_version()}," not in card:
        pytest.skip("the card was written with another version of Python: its documentation is another text")
    train = corpus.pack(learnt, mini.tokenizer, 256)
    vocabulary = len(mini.tokenizer)
    assert loss_of(mini, held_out) == pytest.approx(stated(card, "opt-mini"), abs=2e-3)
    assert bigram_loss(train, held_out, vocabulary) == pytest.approx(stated(card, "bigram"), abs=2e-3)
    assert unigram_loss(train, held_out, vocabulary) == pytest.approx(stated(card, "unigram"), abs=2e-3)

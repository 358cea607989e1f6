"""One text, dense beside sparse."""

import logging
import re
import signal
from pathlib import Path

import pytest
import torch
from shadow.sweeps.one_text import Names, write_page

from shadow.errors import UserError
from shadow.executors.masked import Masked
from shadow.front import sparse
from shadow.jobs import compare as command
from shadow.jobs.method import facts_of
from shadow.measures import one_text
from shadow.scorers.inputs import InputMagnitude

TEXT = "<b>one</b> </script> & two"


def seen(lm, level, continuation=6):
    scorer = InputMagnitude()
    blocks = (sparse(lm.model, scorer, level=level, executor=Masked()) for _ in range(2))
    ids = one_text.require_text(lm, TEXT, continuation)
    return one_text.compare(lm, ids, continuation, *blocks)


def test_what_a_text_loses_is_the_difference_of_its_losses_under_one_plan(make_lm):
    lm = make_lm("llama")
    found = seen(lm, 0.5)
    text = "".join(found.tokens)
    assert text == TEXT + found.dense  # of the dense model, each token once
    assert found.prompt == len(lm.tokenizer(TEXT)["input_ids"])
    ids = torch.tensor([lm.tokenizer(TEXT)["input_ids"]])
    with sparse(lm.model, InputMagnitude(), level=0.5):
        after = lm.model(ids, labels=ids, use_cache=False).loss
    before = lm.model(ids, labels=ids).loss
    of_prompt = found.lost[: found.prompt - 1]
    assert sum(of_prompt) / len(of_prompt) == pytest.approx((after - before).item(), abs=1e-5)
    assert 0 < found.skipped < 0.5
    kept = {key: stays.float().mean().item() for key, stays in found.stays.items()}
    assert {stays.shape[0] for stays in found.stays.values()} == {len(found.tokens)}
    assert kept == pytest.approx(dict.fromkeys(kept, 0.5), abs=0.02)


def test_level_0_is_the_dense_model(make_lm):
    found = seen(make_lm("llama"), 0.0)
    assert found.sparse == found.dense
    assert found.nats == found.skipped == 0


def test_a_page_of_a_text_shows_it_as_text_and_not_as_markup(make_lm, tmp_path):
    found = seen(make_lm("llama"), 0.5)
    write_page(found, Names("<i>mine</i>", "teal"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "&lt;i&gt;mine" in page
    assert "<i>mine" not in page
    body = page[page.index("<body>") :]
    assert body.count('<span title="lost') + body.count('<span title="gained') > 20
    assert "<b>one" not in body
    assert not re.search(r"</script>\s*&amp; two", body)


@pytest.mark.parametrize(
    ("argv", "texts", "words"),
    [
        (["a text", "predictor=teal", "+x.y=1", "-m"], ["a text"], ["predictor=teal", "+x.y=1", "-m"]),
        (["--cfg", "job", "x is = 3"], ["x is = 3"], ["--cfg", "job"]),
        (["seed=1", "--", "a=b"], ["a=b"], ["seed=1"]),
    ],
)
def test_a_text_is_told_from_settings(argv, texts, words):
    assert command.parted(argv) == (texts, words)


def test_an_oracle_goes_on_with_nothing(compose):
    facts = facts_of(compose("evaluate", "model=tiny-llama", "predictor=oracle", "sparsity.level=0.5"))
    with pytest.raises(UserError, match="set continuation=0"):
        command.check_going_on(facts, 4)
    command.check_going_on(facts, 0)


@pytest.mark.parametrize(
    ("texts", "continuation", "told"),
    [
        ([], 5, "one text, in quotation marks"),
        (["a", "b"], 5, "one text"),
        (["a"], -1, "continuation must be"),
    ],
)
def test_what_is_no_text_is_refused(texts, continuation, told):
    with pytest.raises(UserError, match=told):
        command.the_text(texts, continuation)


def test_a_text_that_is_too_long_or_too_short_is_refused(make_lm):
    lm = make_lm("llama")
    with pytest.raises(UserError, match="leave room for continuation=600 in the 512 tokens"):
        one_text.require_text(lm, TEXT, 600)
    with pytest.raises(UserError, match="a text of one token"):
        one_text.require_text(lm, "a", 0)


@pytest.fixture
def job_in_this_process(monkeypatch, tmp_path):
    """What a job changes of its process, and of the next tests, is as before afterwards."""
    root, stops = (
        logging.getLogger(),
        {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)},
    )
    level, handlers = root.level, list(root.handlers)
    monkeypatch.setenv("SHADOW_ROOT", str(tmp_path))
    monkeypatch.setenv("SHADOW_RUN_NAME", "")
    yield
    root.setLevel(level)
    for handler in [one for one in root.handlers if one not in handlers]:
        root.removeHandler(handler)
        handler.close()
    for name, before in stops.items():
        signal.signal(name, before)


@pytest.mark.usefixtures("job_in_this_process")
def test_the_command_prints_both_continuations_and_writes_a_page(tmp_path, capsys):
    command.main(["a text", "model=tiny-llama", "predictor=teal", "sparsity.level=0.5", "continuation=4"])
    told = capsys.readouterr().out
    assert re.search(r"^dense +teal at level 0\.5$", told, re.MULTILINE)
    assert re.search(r"skipped [0-9.]+ % of the weight bytes, cost -?[0-9.]+ nats a token", told)
    (page,) = Path(tmp_path).rglob("compare.html")
    assert str(page) in told

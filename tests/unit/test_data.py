"""Where calibration examples come from."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from shadow.data.batches import Example, collate
from shadow.data.calibration import BuiltinText, CalibrationExamples, TaskPrompts, TextFiles
from shadow.errors import UserError


def builtin(**changes):
    settings = {
        "windows": 20,
        "tokens": 32,
        "prompt_share": 0.5,
        "eval_share": 0.3,
        "split_seed": 0,
        "seed": 1,
    }
    return BuiltinText(**settings | changes)


def files(tmp_path, **changes):
    pages = {"train": ["calibration " * 40, "more of it " * 30], "eval": ["evaluation " * 40]}
    for part, texts in pages.items():
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps({"page": text}) + "\n" for text in texts))
    settings = {
        "train": str(tmp_path / "train.jsonl"),
        "eval": str(tmp_path / "eval.jsonl"),
        "column": "page",
        "windows": 10,
        "tokens": 32,
        "prompt_share": 0.5,
        "seed": 1,
    }
    return TextFiles(**settings | changes)


def test_builtin_examples_come_from_the_train_topics_alone(tiny_opt):
    data = builtin(tokens=120)  # long enough not to be a line that occurs everywhere
    for example in data.examples(tiny_opt):
        text = tiny_opt.tokenizer.decode(example.ids)
        assert any(text in topic for topic in data.documents("train"))
        assert not any(text in topic for topic in data.documents("eval"))


def test_examples_are_as_many_and_as_long_as_asked_for(tiny_opt, tmp_path):
    for data in (builtin(windows=7, tokens=20), files(tmp_path, windows=7, tokens=20)):
        found = data.examples(tiny_opt)
        assert len(found) == 7
        assert {len(example.ids) for example in found} == {20}
        assert {example.prompt for example in found} == {10}


def test_text_files_keep_calibration_and_evaluation_apart(tiny_opt, tmp_path):
    data = files(tmp_path)
    assert data.documents("eval") == ["evaluation " * 40]
    for example in data.examples(tiny_opt):
        assert "evaluation" not in tiny_opt.tokenizer.decode(example.ids)


def test_a_plain_text_file_will_do(tiny_opt, tmp_path):
    (tmp_path / "a.txt").write_text("plain words " * 100)
    found = files(tmp_path, train=str(tmp_path / "a.txt")).examples(tiny_opt)
    assert "plain words" in tiny_opt.tokenizer.decode(found[0].ids)


def test_a_missing_file_names_its_setting(tiny_opt, tmp_path):
    with pytest.raises(UserError, match=r"data\.train"):
        files(tmp_path, train=None).examples(tiny_opt)
    with pytest.raises(UserError, match=r"data\.eval.*nowhere"):
        files(tmp_path, eval="nowhere.txt").documents("eval")


def test_too_many_windows_name_their_setting(tiny_opt, tmp_path):
    for data in (builtin(windows=10**6), files(tmp_path, windows=10**6)):
        with pytest.raises(UserError, match=r"data\.windows.*\d+.*1000000"):
            data.examples(tiny_opt)


def test_the_fingerprint_follows_the_content_of_the_file_and_not_its_place(tmp_path):
    data = files(tmp_path)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((tmp_path / "train.jsonl").read_bytes())
    moved = replace(data, train=str(copy))
    assert moved.fingerprint() == data.fingerprint()
    with copy.open("a") as file:
        file.write('{"page": "one more"}\n')
    assert moved.fingerprint() != data.fingerprint()


def test_the_fingerprint_of_tasks_follows_their_files(tmp_path):
    (tmp_path / "copa").mkdir()
    file = tmp_path / "copa" / "train.jsonl"
    file.write_text("{}\n")
    data = TaskPrompts(["copa"], str(tmp_path), 1, 0, 64, 0)
    before = data.fingerprint()
    file.write_text("{}\n{}\n")
    assert data.fingerprint() != before


def test_tasks_have_no_running_text_and_say_what_to_use():
    with pytest.raises(UserError, match="measure=tasks"):
        TaskPrompts(["copa"], None, 1, 0, 64, 0).documents("eval")


@pytest.mark.parametrize("seed", [0, 1])
def test_more_windows_begin_with_the_fewer(tiny_opt, tmp_path, seed):
    """A store of the fewer becomes one of the more."""
    for few, more in (
        (builtin(windows=6, seed=seed), builtin(windows=20, seed=seed)),
        (files(tmp_path, windows=6, seed=seed), files(tmp_path, windows=20, seed=seed)),
    ):
        assert more.examples(tiny_opt)[:6] == few.examples(tiny_opt)
        assert few.fingerprint() == more.fingerprint()


# Served to the collector

ROWS = [Example([i + 1] * (i + 1), 1) for i in range(11)]


def served(missing, batch_size=2, process=None, in_step=False):
    """What comes out for shards of 4 windows; process: (its number, of how many)."""
    data = CalibrationExamples(ROWS, batch_size, 4, missing, in_step)
    if process:
        data.trainer = SimpleNamespace(global_rank=process[0], world_size=process[1])
    return list(data.predict_dataloader())


def assert_batch(batch, examples):
    for got, want in zip(batch, collate(examples), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_windows_of_the_shards_that_miss_anything_are_served_in_order(batch_size):
    found = served({2: ["fisher"], 0: ["features", "l2_norm"]}, batch_size)
    firsts = [*range(0, 4, batch_size), *range(8, 11, batch_size)]
    assert [numbered.first for numbered in found] == firsts
    for first, batch, parts, kept in found:
        assert_batch(batch, ROWS[first : min(first + batch_size, 4 if first < 4 else 11)])
        assert parts == kept == (["features", "l2_norm"] if first < 4 else ["fisher"])


def test_a_batch_never_reaches_into_the_next_shard():
    for numbered in served({0: ["fisher"], 1: ["fisher"]}, batch_size=3):
        last = numbered.first + len(numbered.batch.ids) - 1
        assert numbered.first // 4 == last // 4


def test_nothing_is_served_where_nothing_is_missing():
    assert served({}) == []


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_processes_share_the_shards_out_and_no_shard_is_of_two(world):
    missing = {shard: ["fisher"] for shard in range(3)}
    shards = [
        {numbered.first // 4 for numbered in served(missing, 2, (rank, world))} for rank in range(world)
    ]
    assert sorted(shard for mine in shards for shard in mine) == [0, 1, 2]
    sizes = [len(mine) for mine in shards]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "missing", [{0: ["fisher"], 1: ["l2_norm", "fisher"], 2: ["l2_norm"]}, {2: ["features"]}, {}], ids=str
)
def test_processes_in_step_pass_as_often_and_keep_what_they_would_keep_alone(missing, world):
    """Shard 2 has 3 windows, in batches of 2 and 1; the others 4."""
    apart = [served(missing, 2, (rank, world)) for rank in range(world)]
    together = [served(missing, 2, (rank, world), in_step=True) for rank in range(world)]
    assert {len(mine) for mine in together} == {max(map(len, apart))}
    assert len({tuple(sorted(numbered.parts)) for mine in together for numbered in mine}) <= 1
    for alone, mine in zip(apart, together, strict=True):
        own = [numbered for numbered in mine if numbered.kept]
        assert [(numbered.first, numbered.kept) for numbered in own] == [
            (numbered.first, numbered.kept) for numbered in alone
        ]
        for numbered in mine:
            assert set(numbered.kept) <= set(numbered.parts)


def test_wikitext_is_read_from_json_lines(shared_data, tiny_opt):
    wikitext = shared_data / "wikitext"
    data = TextFiles(str(wikitext / "train.jsonl"), str(wikitext / "test.jsonl"), "page", 50, 64, 0.5, 0)
    assert len(data.documents("train")) == len(data.documents("eval")) == 31
    assert not set(data.documents("train")) & set(data.documents("eval"))
    assert len(data.examples(tiny_opt)) == 50

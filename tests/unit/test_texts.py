"""Text to windows and questions: disjoint parts, right answers, and errors that name the setting."""

import json
import random
from string import ascii_lowercase

import pytest

from shadow.data.text_files import read_documents
from shadow.data.texts import (
    builtin_topics,
    choose,
    cut,
    fingerprint,
    questions,
    text_windows,
)
from shadow.errors import UserError
from shadow.models.load import byte_tokenizer

TEXT = "".join(random.Random(0).choices(ascii_lowercase, k=1000))  # no two windows of it look alike


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


class WithStart:
    """A tokenizer that begins every text with a token of its own, as OPT's and Llama's do."""

    def __call__(self, text, add_special_tokens=True, verbose=True):
        return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text]}


# The text that ships with Python


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_train_and_eval_topics_are_disjoint_and_share_no_paragraph(seed, share):
    train, evaluation = (builtin_topics(part, share, seed) for part in ("train", "eval"))
    paragraphs = [
        {" ".join(paragraph.split()) for topic in topics for paragraph in topic.split("\n\n")} - {""}
        for topics in (train, evaluation)
    ]
    assert not set(train) & set(evaluation)
    assert not paragraphs[0] & paragraphs[1]
    assert all(paragraphs)


def test_eval_share_is_the_share_of_topics_and_all_topics_are_used():
    train, evaluation = (builtin_topics(part, 0.3, 0) for part in ("train", "eval"))
    topics = len(train) + len(evaluation)
    assert len(evaluation) == round(0.3 * topics)
    assert topics > 50


def test_the_split_depends_on_the_seed_alone():
    assert builtin_topics("eval", 0.3, 0) == builtin_topics("eval", 0.3, 0)
    assert builtin_topics("eval", 0.3, 0) != builtin_topics("eval", 0.3, 1)


# Files


def test_a_text_file_is_one_document(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("first\n\nsecond\n")
    assert read_documents("data.train", str(file), "page") == ["first\n\nsecond\n"]


def test_json_lines_are_a_document_each(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"page": "first\\nline", "n": 1}\n\n{"page": "second"}\n')
    assert read_documents("data.train", str(file), "page") == ["first\nline", "second"]


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x1c"])
def test_json_lines_end_at_line_feeds_alone(tmp_path, inside):
    """str.splitlines also splits at these, which may stand unescaped inside a JSON string."""
    page = f"before{inside}after"
    line = '{"page": "before%safter"}' % (inside if inside != "\x1c" else "\\u001c")
    file = tmp_path / "a.jsonl"
    file.write_text(f"{line}\n", encoding="utf-8")
    assert json.loads(line) == {"page": page}
    assert read_documents("data.train", str(file), "page") == [page]


def test_a_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("text")
    assert read_documents("data.train", "~/a.txt", "page") == ["text"]


@pytest.mark.parametrize("setting", ["data.train", "data.eval"])
@pytest.mark.parametrize("file", [None, "/nowhere/a.txt"])
def test_a_missing_file_is_refused_by_the_settings_name(setting, file):
    with pytest.raises(UserError, match=rf"{setting}.*{file}"):
        read_documents(setting, file, "page")


@pytest.mark.parametrize(
    "content", ["", "\n", '{"text": "x"}\n', '{"page": "x"}\n{"text": "y"}\n', '{"page": "x"\n', "[1]\n"]
)
def test_json_lines_without_the_column_are_refused_by_the_settings_name(tmp_path, content):
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=r"data\.train.*page"):
        read_documents("data.train", str(file), "page")


def test_a_fingerprint_tells_texts_and_their_borders_apart():
    prints = {fingerprint(texts) for texts in (["ab"], ["a", "b"], ["b", "a"], ["ab", ""], ["ac"])}
    assert len(prints) == 5
    assert fingerprint(["a", "b"]) == fingerprint(("a", "b"))


# Windows


def test_windows_are_whole_and_disjoint_and_in_order(tokenizer):
    windows = cut([TEXT, "short", TEXT[:33]], tokenizer, 16)
    assert all(len(window) == 16 for window in windows)
    assert [tokenizer.decode(window) for window in windows] == [
        *(TEXT[i : i + 16] for i in range(0, 992, 16)),
        TEXT[:16],
        TEXT[16:32],
    ]


def test_a_window_begins_as_the_tokenizer_begins_a_text():
    windows = cut(["abcdefgh"], WithStart(), 4)
    assert windows == [[1, 97, 98, 99], [1, 100, 101, 102]]


def test_windows_are_drawn_by_the_seed_without_repeating_any(tokenizer):
    draws = [text_windows([TEXT], tokenizer, 30, 16, 0.5, seed, "data.windows") for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert len({tuple(example.ids) for example in draws[0]}) == 30


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_more_windows_begin_with_the_fewer(seed):
    """So that traces of the fewer can become traces of the more."""
    windows = list(range(50))
    whole = choose(windows, 50, seed, "data.windows")
    assert sorted(whole) == windows
    assert whole != windows  # spread over the texts
    for count in range(1, 50):
        assert choose(windows, count, seed, "data.windows") == whole[:count]


@pytest.mark.parametrize(("share", "prompt"), [(0.5, 8), (0.25, 4), (0.0, 0), (1.0, 16)])
def test_the_prompt_is_its_share_of_the_window(tokenizer, share, prompt):
    (example,) = text_windows([TEXT], tokenizer, 1, 16, share, 0, "data.windows")
    assert example.prompt == prompt


@pytest.mark.parametrize("setting", ["data.windows", "measure.windows"])
def test_more_windows_than_the_text_holds_are_refused_by_the_settings_name(tokenizer, setting):
    with pytest.raises(UserError, match=rf"{setting}.*62.*63"):
        text_windows([TEXT], tokenizer, 63, 16, 0.5, 0, setting)


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_1_is_refused_by_the_settings_name(count):
    with pytest.raises(UserError, match=r"data\.windows"):
        choose(list(range(10)), count, 0, "data.windows")


# Questions


def ask(tokenizer, count=20, options=4, seed=0, texts=(TEXT,)):
    return questions(list(texts), tokenizer, count, options, 12, 4, seed)


def test_the_gold_option_is_the_true_continuation_and_the_others_are_not(tokenizer):
    for question in ask(tokenizer):
        text = tokenizer.decode(question.context)
        true = TEXT[TEXT.index(text) + 12 :][:4]
        assert tokenizer.decode(question.options[question.gold]) == true
        wrong = [option for index, option in enumerate(question.options) if index != question.gold]
        assert true not in [tokenizer.decode(option) for option in wrong]
        assert all(tokenizer.decode(option) in TEXT for option in wrong)


def test_options_are_as_many_as_asked_for_and_equally_long(tokenizer):
    for question in ask(tokenizer, options=3):
        assert [len(option) for option in question.options] == [4, 4, 4]
        assert len(question.context) == 12


def test_questions_depend_on_the_seed_alone(tokenizer):
    assert ask(tokenizer) == ask(tokenizer)
    assert ask(tokenizer) != ask(tokenizer, seed=1)


def test_the_right_answer_stands_at_every_place(tokenizer):
    assert {question.gold for question in ask(tokenizer, count=60)} == {0, 1, 2, 3}


def test_the_options_of_a_question_differ(tokenizer):
    """Though text repeats itself."""
    repeating = ["abcdefghijklmnop" * 3 + TEXT[:100]]
    for question in ask(tokenizer, count=8, texts=repeating):
        assert len({tuple(option) for option in question.options}) == 4


def test_too_many_questions_are_refused_by_the_settings_name(tokenizer):
    with pytest.raises(UserError, match=r"measure\.questions.*62.*63"):
        ask(tokenizer, count=63)


def test_too_many_options_are_refused_by_the_settings_name(tokenizer):
    with pytest.raises(UserError, match=r"measure\.options"):
        ask(tokenizer, count=2, options=63)


def test_the_builtin_text_gives_questions_whose_gold_follows_its_context(tokenizer):
    topics = builtin_topics("eval", 0.3, 0)
    for question in questions(topics, tokenizer, 25, 4, 24, 8, 0):
        passage = tokenizer.decode(question.context + question.options[question.gold])
        assert any(passage in topic for topic in topics)

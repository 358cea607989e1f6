"""Padding, prompts and labels of a batch."""

import pytest
import torch

from shadow.data.batches import IGNORED, Example, batched, collate

ROWS = [Example([5, 6, 7, 8], 2), Example([9], 1), Example([3, 4], 0)]


def test_rows_are_padded_on_the_right():
    batch = collate(ROWS)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [9, 0, 0, 0], [3, 4, 0, 0]]
    assert batch.lengths.tolist() == [4, 1, 2]
    assert batch.real().tolist() == [[True] * 4, [True, False, False, False], [True, True, False, False]]


def test_the_prompt_is_what_has_been_read():
    batch = collate(ROWS)
    assert batch.prompt.tolist() == [2, 1, 0]
    assert batch.in_prompt().tolist() == [
        [True, True, False, False],
        [True, False, False, False],
        [False, False, False, False],
    ]


def test_labels_are_the_next_tokens_after_the_prompt_alone():
    assert collate(ROWS).labels.tolist() == [
        [IGNORED, 7, 8, IGNORED],
        [IGNORED] * 4,
        [4, IGNORED, IGNORED, IGNORED],  # without a prompt nothing predicts the first token
    ]


def test_batches_hold_every_example_once_and_in_order():
    rows = [Example([i + 1] * (i + 1), 0) for i in range(7)]
    batches = list(batched(rows, 3))
    assert [len(batch.ids) for batch in batches] == [3, 3, 1]
    assert [length for batch in batches for length in batch.lengths.tolist()] == [1, 2, 3, 4, 5, 6, 7]


def test_a_row_has_the_same_labels_alone_and_in_a_batch(examples):
    rows = examples([12, 5, 9])
    together = collate(rows)
    for row, example in enumerate(rows):
        alone = collate([example])
        assert torch.equal(together.labels[row, : len(example.ids)], alone.labels[0])
        assert (together.labels[row, len(example.ids) :] == IGNORED).all()


def test_rows_cut_to_their_prompts_are_batches_of_the_prompts_alone(examples):
    """No token of an answer is left, and what counts for the loss is every next token of the prompt."""
    rows = examples([12, 5, 9], prompts=[4, 5, 1])
    cut = collate(rows).prompts()
    assert cut.lengths.tolist() == [4, 5, 1]
    for row, example in enumerate(rows):
        prompt = example.ids[: example.prompt]
        assert cut.ids[row].tolist() == prompt + [0] * (5 - len(prompt))
        assert cut.labels[row].tolist() == prompt[1:] + [IGNORED] * (6 - len(prompt))


# Targets and positions


def test_the_targets_of_the_answer_are_the_labels():
    batch = collate(ROWS)
    assert torch.equal(batch.targets("answer"), batch.labels)


def test_every_next_token_is_known_but_that_of_a_rows_last():
    assert collate(ROWS).targets("next_token").tolist() == [
        [6, 7, 8, IGNORED],
        [IGNORED] * 4,  # nothing follows a single token
        [4, IGNORED, IGNORED, IGNORED],
    ]


def test_every_next_token_is_told_by_the_ids_in_a_loop(examples):
    rows = examples([12, 5, 9, 1, 16])
    targets = collate(rows).targets("next_token")
    for row, example in enumerate(rows):
        for position in range(16):
            follows = position + 1 < len(example.ids)
            assert targets[row, position] == (example.ids[position + 1] if follows else IGNORED)


def test_targets_are_what_the_padding_is_not(examples):
    """A pad token is a token like others: where rows end is told by their lengths."""
    batch = collate([Example([5, 0, 0, 7], 2), Example([0, 0], 1)])
    assert batch.targets("next_token").tolist() == [[0, 0, 7, IGNORED], [0, IGNORED, IGNORED, IGNORED]]


def test_an_answers_last_token_that_is_not_among_the_ids_is_a_target_of_both_losses():
    batch = collate(ROWS)
    labels = batch.labels.clone()
    labels[0, 3], labels[1, 0] = 77, 88  # what lm-eval's rows end with, in the widest row and in a padded one
    batch = batch._replace(labels=labels)
    assert batch.targets("answer").tolist()[:2] == [[IGNORED, 7, 8, 77], [88, IGNORED, IGNORED, IGNORED]]
    assert batch.targets("next_token").tolist()[:2] == [[6, 7, 8, 77], [88, IGNORED, IGNORED, IGNORED]]


def test_prompt_and_answer_are_all_real_positions_and_share_none(examples):
    batch = collate(examples([12, 5, 9, 3], prompts=[4, 5, 0, 1]))
    prompt, answer, every = (batch.positions(which) for which in ("prompt", "answer", "all"))
    assert torch.equal(prompt | answer, every)
    assert not (prompt & answer).any()
    assert torch.equal(every, batch.real())
    assert prompt.sum(1).tolist() == [4, 5, 0, 1]
    assert answer.sum(1).tolist() == [8, 0, 9, 2]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("prompt", [[True, True, False, False], [True, False, False, False], [False] * 4]),
        ("answer", [[False, False, True, True], [False] * 4, [True, True, False, False]]),
        ("all", [[True] * 4, [True, False, False, False], [True, True, False, False]]),
    ],
)
def test_positions_are_of_the_tokens_themselves_not_of_what_predicts_them(which, expected):
    assert collate(ROWS).positions(which).tolist() == expected


@pytest.mark.parametrize("loss", ["answer", "next_token"])
def test_a_row_has_the_same_targets_alone_and_in_a_batch(examples, loss):
    rows = examples([12, 5, 9])
    targets = collate(rows).targets(loss)
    for row, example in enumerate(rows):
        assert torch.equal(targets[row, : len(example.ids)], collate([example]).targets(loss)[0])
        assert (targets[row, len(example.ids) :] == IGNORED).all()

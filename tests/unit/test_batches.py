"""Padding, prompts and labels of a batch."""

import torch

from shadow.batches import IGNORED, Example, batched, collate

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

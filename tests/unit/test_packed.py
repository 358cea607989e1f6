"""Packed weights that a later start reads from disk."""

import logging

import numpy as np
import pytest
import torch

from shadow.executors.cpu import packed as kept
from shadow.executors.cpu.channels import pack_channels
from shadow.executors.cpu.weights import pack
from shadow.models.load import random_llama


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "LARGE", 0)
    monkeypatch.setattr(kept, "cached_assets_path", lambda *names: tmp_path)
    return tmp_path


@pytest.fixture
def model():
    return random_llama(2, 64, 4, 2, 128, 300, 0, torch.float32, None).model.eval().requires_grad_(False)


def not_again(packs):
    def fails(*_):
        raise AssertionError("packed again")

    fails.__name__ = packs.__name__
    return fails


def same(one, other):
    assert type(one) is type(other)
    for mine, its in zip(one, other, strict=True):
        if isinstance(mine, tuple):
            same(mine, its)
        elif isinstance(mine, np.ndarray):
            assert mine.dtype == its.dtype
            assert np.array_equal(mine, its)
            assert its.flags.writeable
            assert its.ctypes.data % 64 == 0 or not its.size
        else:
            assert mine == its


@pytest.mark.parametrize(("packs", "storage"), [(pack, "int8"), (pack_channels, "int4")])
def test_the_second_start_reads_what_the_first_kept(folder, model, packs, storage):
    first = kept.packed(model, storage, packs)
    second = kept.packed(model, storage, not_again(packs))
    same(first, second)
    assert (second.vocabulary is second.embedding) == (first.vocabulary is first.embedding)


def test_other_weights_are_packed_anew(folder, model):
    before = kept.packed(model, "int8", pack)
    model.model.layers[1].mlp.up_proj.weight.data[7, 9] += 0.5  # one number of all
    assert not np.array_equal(kept.packed(model, "int8", pack).up.records, before.up.records)
    assert len(list(folder.iterdir())) == 2


def test_a_damaged_file_is_told_and_replaced(folder, model, caplog):
    first = kept.packed(model, "int8", pack)
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        same(first, kept.packed(model, "int8", pack))
    assert "packed anew" in caplog.text
    same(first, kept.packed(model, "int8", not_again(pack)))


def test_a_folder_that_cannot_be_written_is_told(model, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(kept, "LARGE", 0)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(kept, "cached_assets_path", lambda *names: tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        kept.packed(model, "int8", pack)
    assert "not kept for the next start" in caplog.text

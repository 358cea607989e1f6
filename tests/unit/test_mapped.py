"""Weights that were read from a file are not counted once more after they are copied."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shadow.executors.cpu.mapped import file_ranges, let_go

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes pages back")
MEGABYTE = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file({"weight": torch.randn(4 * MEGABYTE)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def resident(file: Path) -> int:
    """-> bytes of this file that count as this process's memory"""
    sections = Path("/proc/self/smaps").read_text().split(f"{file}\n")[1:]
    return 1024 * sum(int(section.split("Rss:")[1].split()[0]) for section in sections)


def test_pages_of_a_copied_weight_go_back_and_its_values_stay(file: Path) -> None:
    weight = load_file(file)["weight"]
    copy = weight.clone()
    assert resident(file) > 15 * MEGABYTE
    let_go(weight, file_ranges())
    assert resident(file) < MEGABYTE
    assert torch.equal(weight, copy)  # read from the file again


def test_what_was_written_to_a_weight_stays(file: Path) -> None:
    weight = load_file(file)["weight"]
    copy = weight.mul_(2).clone()
    let_go(weight, file_ranges())
    assert torch.equal(weight, copy)


def test_memory_that_shows_no_file_is_left_alone() -> None:
    weight = torch.randn(4 * MEGABYTE)
    copy = weight.clone()
    assert not any(weight.data_ptr() in files for files in file_ranges())
    let_go(weight, file_ranges())
    assert torch.equal(weight, copy)

"""What is prepared for a GPU runs on a CPU with tiny models, and tells of a part that fails."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install -e .[gpu] (Linux)")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu_day(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/gpu_day.py, whose parts import one another and train.py."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_day

    return gpu_day


def test_the_dry_run_of_a_gpu_day_writes_its_tables(gpu_day: ModuleType, tmp_path: Path) -> None:
    """Executors agree, everything that stays is dense, and every part has rows that are not broken."""
    assert gpu_day.main([str(tmp_path), "--dry"]) == 0
    parts = json.loads((tmp_path / "gpu_day.json").read_text())["parts"]
    assert list(parts) == list(gpu_day.PARTS)
    same = parts["same"]["rows"]
    equal = [row for row in same if row["compared"] == "gathered, masked" or row["level"] == 0]
    assert len(equal) == 4
    for row in equal:
        assert row["of the largest logit, %"] < 1e-3, row
    assert {row["same greedy tokens, %"] for row in equal} == {100}
    assert all(0 < row["skipped %"] < 50 for row in same if row["level"])
    plans = [row["plan"] for row in parts["times"]["rows"]]
    assert plans == ["dense transformers", "heads and neurons", "dense transformers", "channels"]
    assert all(row["from"] <= row["ms a token"] <= row["to"] for row in parts["times"]["rows"])
    assert [row["stage"] for row in parts["fit"]["rows"]] == ["traces", "predictor"]
    assert "predictors" in parts["fit"]["rows"][1]["what"]
    assert (tmp_path / "gpu_day.png").stat().st_size > 0
    assert "no speed" in (tmp_path / "gpu_day.md").read_text()


def test_a_part_that_fails_says_so_and_the_others_go_on(
    gpu_day: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_same

    def run(dry: bool) -> Iterator[dict]:
        yield {"model": "one that went well"}
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu_same, "run", run)
    assert gpu_day.main([str(tmp_path), "--dry", "--part", "same", "tests"]) == 1
    said = (tmp_path / "gpu_day.md").read_text()
    assert "one that went well" in said
    assert "RuntimeError: out of memory" in said
    assert "tests/unit/test_gpu_kernels.py" in said

"""W&B's own sweeps start the scripts with overrides that compose."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from shadow.jobs import settings

FOLDER = Path(__file__).parents[2] / "sweeps" / "wandb"


def words_of(sweep: dict) -> list[list[str]]:
    """The command line of an agent for the first and for the last value of every parameter."""
    lines = []
    for which in (0, -1):
        chosen = {}
        for name, of in sweep["parameters"].items():
            ends = of.get("values") or ([of["value"]] if "value" in of else [of["min"], of["max"]])
            chosen[name] = ends[which]
        args = [f"{name}={value}" for name, value in chosen.items()]  # what ${args_no_hyphens} stands for
        told = {"${env}": [], "${interpreter}": [], "${program}": [], "${args_no_hyphens}": args}
        lines.append([word for part in sweep["command"] for word in told[part]])
    return lines


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_command_of_a_wandb_sweep_composes(file: Path, compose: Callable) -> None:
    sweep = yaml.safe_load(file.read_text())
    script = Path(sweep["program"]).stem
    first, last = [compose(script, *words) for words in words_of(sweep)]
    for cfg in (first, last):
        settings.check_predictor(cfg)
        settings.policy_of(cfg)
        assert "wandb" in cfg.logger
    assert first != last

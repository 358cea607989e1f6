"""Each figure of the paper is a sweep that runs to its figure, here on opt-mini at the smallest sizes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SMALL = [
    *("model=opt-mini", "make_missing=true", "data.tokens=16", "data.windows=16", "traces.batch_size=4"),
    *(
        "traces.shard_windows=8",
        "traces.tokens_per_window=4",
        "trainer.max_epochs=1",
    ),
    *("measure.windows=4", "measure.tokens=16", "measure.questions=4", "measure.context_windows=4"),
    *("callbacks.progress=null", "+trainer.enable_progress_bar=false", "sparsity.level=0.0,0.5"),
]
TASKS = [one for one in SMALL if not one.startswith(("data.", "measure.", "sparsity.level"))] + [
    *(
        "data.tasks=[piqa,copa]",
        "measure.tasks=[piqa,copa]",
        "data.examples_per_task=3",
        "data.max_tokens=200",
    ),
    *("measure.limit=2", "sparsity.level=0.0,0.5"),
]
CRITERION = ["criterion=l2_norm", "traces.criteria=[l2_norm]"]
CONTENDERS = ["contender=[static,l2_norm],[oracle,l2_norm]", "sparsity.kinds=[head,neuron]"]
TARGETS = ["criterion=l2_norm,plainact", "traces.criteria=[l2_norm,plainact]"]
GAP = ["predictor=static,random", "hydra.callbacks.curve.against=static"]
SEVEN = [
    "contender=[static,token],[prompt_activation,prompt]",
    "measure.dtype=bfloat16",
    "data.num_fewshot=1",
]
OF_EACH_KIND = ["criteria", "context"]  # the others are made nightly
# sweep: the stem of its report, and how it is made small
SWEEPS = {
    "criteria": ("criteria", [*SMALL, *CONTENDERS, "traces.criteria=[l2_norm]"]),
    "local_global": ("report", [*SMALL, *CRITERION]),
    "perplexity": ("report", [*SMALL, *CRITERION, "predictor=static,random"]),
    "predictor_design": (
        "grid",
        [*SMALL, *CRITERION, "predictor=unified_paper,unified_sequence,layerwise_paper"],
    ),
    "predictor_target": ("grid", [*SMALL, *TARGETS]),
    "context": ("context", [*SMALL[:-1], "sparsity.level=0.0", "measure.context=[l2_norm,plainact]"]),
    "fewshot": ("report", [*TASKS, *CRITERION, "data.num_fewshot=0,1", "sparsity.level=0.5"]),
    "seven_tasks": ("report", [*TASKS, *CRITERION, *SEVEN]),
    "task_gap": ("task_gap", [*TASKS, *CRITERION, *GAP, "data.num_fewshot=1", "sparsity.level=0.5"]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of them keep what they make."""
    return tmp_path_factory.mktemp("made")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in OF_EACH_KIND else pytest.mark.nightly) for name in SWEEPS],
)
def test_every_sweep_of_the_paper_runs_to_its_figure(
    run: Callable, task_root: Path, made: Path, tmp_path: Path, name: str
) -> None:
    report, more = SWEEPS[name]
    root = [f"data.root={task_root}"] if "measure.tasks=[piqa,copa]" in more else []
    done = run(made, "evaluate.py", f"sweep={name}", *more, *root, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "could not redraw" not in done.stdout, done.stdout[-3000:]
    records = [json.loads(file.read_text()) for file in tmp_path.glob("*/run.json")]
    assert records
    assert {record["status"] for record in records} == {"done"}
    (figure,) = tmp_path.glob("*.png")
    assert figure.read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / f"{report}.html").read_text()
    assert "Plotly.newPlot" in page
    assert f"]({figure.name})" in (tmp_path / f"{report}.md").read_text()

"""Every command of README.md and docs/, page by page, on a tiny model; settings behind it make it small."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from forked import Script

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# commands that cannot run here, by what stands in them, and why
NOT_RUN = {
    "make setup": "sets up what runs this",
    "pip install": "likewise",
    "--wandb-report": "needs an account; test_sweeps_wandb.py looks at all that would be sent",
    "launch=slurm": "needs a cluster; test_commands.py has its refusal",
    "srun": "likewise; test_processes.py and test_fsdp.py run two processes",
    "trainer=": "likewise",
    "benchmarks/": "needs a GPU; test_gpu_day.py has its parts",
    "curl": "asks a server; test_serving.py does",
    "shadow serve": "likewise",
    "shadow rm": "a name of another machine; test_commands.py removes",
    "shadow lm-eval": "tasks of the hub; test_harness.py runs the command on a local one",
    "[wikitext]": "likewise",
    "sweep=accuracy_latency": "minutes of compiling; test_sweeps_latency.py and test_latency.py have parts",
}
PLUGINS = {"launch=joblib": "hydra-joblib-launcher", "hparams_search=optuna": "hydra-optuna-sweeper"}
MODEL = ["model=tiny-llama"]
SMALL = [
    *("data.windows=16", "data.tokens=24", "traces.batch_size=4", "traces.shard_windows=8"),
    *("traces.tokens_per_window=6", "trainer.max_epochs=1", "sparsity.learnt.epochs=1"),
    *("sparsity.budget_windows=4", "callbacks.progress=null"),
]
MEASURED = [
    *("measure.windows=4", "measure.tokens=24", "measure.questions=4", "measure.context_tokens=8"),
    *("measure.continuation_tokens=4", "measure.quality_windows=2", "measure.quality_neurons=2"),
]
TASKS = {
    "train": SMALL,
    "evaluate": [*SMALL, *MEASURED],
    "export": [*SMALL, *MEASURED],
    "compare": [*SMALL, *MEASURED, "continuation=4"],
    "recommend": [*SMALL, *MEASURED, "windows=4", "levels=[0.5]", "budget=9"],
}
# of commands with these words, settings that leave fewer jobs
FEWER = {
    "sweep=methods": ["contender=[static,layer],[teal,learnt]", "sparsity.level=0,0.5"],
    "sweep=criteria": ["contender=[static,l2_norm],[oracle,l2_norm]", "sparsity.level=0,0.5"],
    "sweep=accuracy_curve": ["predictor=static,unified", "sparsity.level=0,0.5"],
    "hparams_search=optuna": ["hydra.sweeper.n_trials=2"],
    "model.path=": ["model.name=mine"],  # and no other model in its place
}


def commands() -> Iterator[tuple[str, str]]:
    """Page and line of each, in the pages' order."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for language, code in FENCE.findall(page.read_text(encoding="utf-8")):
            for line in code.replace("\\\n", " ").splitlines() if language == "bash" else ():
                command = line.partition(" # ")[0].strip()
                if command and not command.startswith("#"):
                    yield page.relative_to(ROOT).as_posix(), command


def run_here() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for page, command in commands():
        if not any(words in command for words in NOT_RUN):
            found.setdefault(page, []).append(command)
    return found


def script_of(words: list[str]) -> tuple[str, list[str]]:
    """Of `python train.py ...` or `shadow train ...` the task, and how it is started in this checkout."""
    if words[0] == "python":
        return Path(words[1]).stem, [str(ROOT / words[1])]
    return words[1], [str(ROOT / "shadow" / "__main__.py"), words[1]]


def reduced(task: str, given: list[str]) -> list[str]:
    """The given words without those that are set anew behind them."""
    fewer = [word for sign, words in FEWER.items() if sign in " ".join(given) for word in words]
    model = [] if any(word.startswith("model.path=") for word in given) else MODEL
    anew = [*model, *TASKS[task], *fewer] if task in TASKS else []
    keys = {word.partition("=")[0] for word in anew}
    return [word for word in given if word.partition("=")[0] not in keys] + anew


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, saved_model: Path) -> Path:
    """A folder with the files that the pages speak of."""
    folder = tmp_path_factory.mktemp("place")
    texts = sorted(set(topics.values()))  # some topics have one text, and no document may be in both files
    for part, chosen in (("train", texts[::2]), ("test", texts[1::2])):
        lines = "".join(json.dumps({"page": text}) + "\n" for text in chosen)
        (folder / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    page = FENCE.findall((ROOT / "docs" / "own_method.md").read_text(encoding="utf-8"))
    (folder / "my_method.py").write_text(next(code for language, code in page if language == "python"))
    (folder / "predictor").mkdir()
    option = next(code for language, code in page if language == "yaml")
    (folder / "predictor" / "mine.yaml").write_text(option)
    (folder / "model").symlink_to(saved_model)
    return folder


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from shadow import load_model

    folder = tmp_path_factory.mktemp("saved")
    for part in load_model("tiny-llama"):
        part.save_pretrained(folder)
    return folder


def test_a_command_that_is_not_run_is_there_and_the_others_are_many():
    lines = [command for _, command in commands()]
    assert [words for words in NOT_RUN if not any(words in line for line in lines)] == []
    assert sum(map(len, run_here().values())) > 20


@pytest.mark.nightly
@pytest.mark.parametrize("page", run_here())
def test_the_commands_of_a_page_run_one_after_the_other(place: Path, tmp_path: Path, page: str) -> None:
    lacking, installed = [], {one.name for one in distributions()}
    for number, command in enumerate(run_here()[page]):
        if any(sign in command and plugin not in installed for sign, plugin in PLUGINS.items()):
            lacking.append(command)
            continue
        words = shlex.split(command.replace("/some/folder", str(place / "model")))
        env = {"SHADOW_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            env[name] = value
        task, started = script_of(words)
        given = [word.replace("/fast/disk", str(tmp_path)) for word in words[2:]]
        log = tmp_path / f"{number}.txt"
        job = Script([*started, *reduced(task, given)], place, os.environ | env, log)
        code, said = job.wait(), log.read_text()
        assert code == 0, f"{command}\n{said[-3000:]}"
        assert "Traceback" not in said, f"{command}\n{said[-3000:]}"
    if lacking:
        pytest.skip(f"the others ran; the extra `launchers` is not installed for {lacking}")

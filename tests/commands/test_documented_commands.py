"""Every command and snippet of README.md and docs/, page by page: settings behind a command make it small."""

import json
import os
import re
import shlex
import socket
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import metadata
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import yaml
from documented import QUESTIONS, README, ROOT, blocks_of, commands_in, name_of
from forked import Script

from shadow import load_model
from shadow.data.tasks import task_specs

pytestmark = pytest.mark.commands
# commands that are not run, by what stands in them, and why
NOT_RUN = {
    "make setup": "made the environment that runs this",
    "pip install": "likewise; the extras' names are compared with pyproject.toml",
    "benchmarks/gpu_day": "eight minutes of a GPU; test_gpu_day.py does its dry run",
    "benchmarks/serving.py": "minutes of two other servers, with a file of llama.cpp's",
}
# what cannot be had here, and the words that a job ends with in its place
REFUSED = {
    "launch=slurm": "there is no such command here",  # sbatch
    "--wandb-report": "needs an account",
    "benchmarks/gpu_kernels.py": "needs CUDA",
}
SNIPPETS = {"docs/serving.md", "docs/speed.md"}  # whose Python needs a checkpoint or a server, or compiles
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
# of commands with these words, settings that leave fewer jobs, or take the place of what is not here
FEWER = {
    "sweep=methods": ["contender=[teal,threshold]", "sparsity.level=0,0.5"],
    "sweep=criteria": ["contender=[static,l2_norm]", "sparsity.level=0,0.5", "sparsity.kinds=[head]"],
    "sweep=accuracy_curve": ["predictor=unified", "sparsity.level=0,0.5"],
    "sweep=accuracy_latency": [
        "predictor=static",
        "sparsity.level=0.5",
        "measure.rounds=2",
        "measure.new_tokens=4",
    ],
    "sparsity.level=0.2,0.4": ["sparsity.level=0.2"],
    "sparsity.level=0,0.3,0.5": ["sparsity.level=0,0.5"],
    "hparams_search=optuna": ["hydra.sweeper.n_trials=2"],
    "model.path=": ["model.name=mine"],  # and no other model in its place
    "[wikitext]": ["data.tasks=[piqa,copa]"],
    "data=tasks": ["data.examples_per_task=4", "data.num_fewshot=2", "data.max_tokens=24"],
    "trainer=": ["stage=estimate"],  # all that is known before processes start; test_processes.py starts two
    "trainer=fsdp": ["trainer.devices=2"],
    "trainer.strategy=ddp": ["stage=estimate"],
}


@dataclass
class Player:
    """Plays the commands of a page: each is given what the ones before it have left.

    place: where it runs, with the files that pages speak of. results: SHADOW_ROOT.
    """

    place: Path
    results: Path
    servers: list[Script] = field(default_factory=list)
    port: int = 0
    number: int = 0

    def start(self, words: list[str], **more: str) -> Script:
        self.number += 1
        env = {"SHADOW_ROOT": str(self.results), "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
        return Script(words, self.place, os.environ | env | more, self.log)

    @property
    def log(self) -> Path:
        return self.results / f"{self.number}.txt"

    def ends(self, what: str, job: Script, refused: str | None = None) -> None:
        code, said = job.wait(), self.log.read_text()
        assert code == (0 if refused is None else 1), f"{what}\n{said[-3000:]}"
        assert "Traceback" not in said, f"{what}\n{said[-3000:]}"
        assert refused is None or refused in said.splitlines()[-1], f"{what}\n{said[-3000:]}"
        print(f"{job.seconds:6.1f} s of a processor: {what.splitlines()[0]}")

    def python(self, code: str) -> None:
        file = self.results / "snippet.py"
        file.write_text(self.filled(code))
        self.ends(code, self.start([str(file)]))
        assert self.log.read_text().strip()

    def bash(self, command: str) -> None:
        words = [self.filled(word) for word in shlex.split(command)]
        more = {}
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            more[name] = value
        if words[0] == "curl":
            return self.ask(words[1:])
        if words[0] == "srun":
            words = words[words.index("python") :]
        task, started = script_of(words)
        job = self.start([*started, *reduced(task, words[2:])], **more)
        if task == "serve":
            return self.wait_for(job)
        return self.ends(
            command, job, next((told for sign, told in REFUSED.items() if sign in command), None)
        )

    def filled(self, text: str) -> str:
        """With what there is in the place of names."""
        text = text.replace("pretrained=FOLDER_OR_ID,predictor=FOLDER_OR_ID", self.pair())
        text = text.replace("/some/folder", str(self.place / "model")).replace(
            "/fast/disk", str(self.results)
        )
        text = text.replace("data.root=FOLDER", f"data.root={self.place / 'tasks'}")
        if text == "piqa":
            return str(self.place / "piqa.yaml")
        if re.fullmatch(r"opt-mini-\w+-.*-[0-9a-f]{10}", text):
            return self.newest("artifacts/*/*-*").name
        if "FOLDER" in text:
            text = text.replace(
                "FOLDER", str(self.newest("artifacts/checkpoints/*", "logs/evaluate/multiruns/*"))
            )
        if "8000" in text:
            self.port = self.port or free_port()
        return text.replace("8000", str(self.port))

    def pair(self) -> str:
        return f"pretrained={ROOT / 'models' / 'opt-mini'},predictor=opt-mini"

    def newest(self, *patterns: str) -> Path:
        found = [file for pattern in patterns for file in self.results.glob(pattern) if file.is_dir()]
        assert found, f"no command before this one has left {patterns}"
        return max(found, key=lambda file: file.stat().st_mtime_ns)

    def wait_for(self, server: Script) -> None:
        """Until it listens."""
        self.servers.append(server)
        while server.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health"):
                return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text()[-3000:])

    def ask(self, words: list[str]) -> None:
        """What curl would be answered: an address, -H a header, -d what is sent."""
        address, header, sent = words[0], words[words.index("-H") + 1], words[words.index("-d") + 1]
        asked = urllib.request.Request(address, sent.encode(), dict([header.split(": ")]))
        with urllib.request.urlopen(asked) as answer:
            assert json.load(answer)["choices"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def script_of(words: list[str]) -> tuple[str, list[str]]:
    """Of `python train.py ...` or `shadow train ...` the task, and how it is started in this checkout."""
    if words[0] == "python":
        return Path(words[1]).stem, [str(ROOT / words[1])]
    return words[1], [str(ROOT / "shadow" / "__main__.py"), words[1]]


def reduced(task: str, given: list[str]) -> list[str]:
    """The given words without those that are set anew behind them."""
    if task == "rm":
        return [*given, "--yes"]
    fewer = [word for sign, words in FEWER.items() if sign in " ".join(given) for word in words]
    model = [] if any(word.startswith("model.path=") for word in given) else MODEL
    anew = [*model, *TASKS[task], *fewer] if task in TASKS else []
    if "data=tasks" in given:  # prompts are no windows
        anew = [word for word in anew if not word.startswith(("data.windows=", "data.tokens="))]
    keys = {word.partition("=")[0] for word in anew}
    return [word for word in given if word.partition("=")[0] not in keys] + anew


def steps_of(page: Path) -> list[tuple[str, str]]:
    """Its commands, and the Python of SNIPPETS."""
    steps = []
    for language, code in blocks_of(page):
        if language == "bash":
            steps += [("bash", one) for one in commands_in(code) if not any(sign in one for sign in NOT_RUN)]
        elif language == "python" and name_of(page) in SNIPPETS:
            steps.append(("python", code))
    return steps


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, task_root: Path) -> Path:
    """A folder with the files that the pages speak of."""
    folder = tmp_path_factory.mktemp("place")
    texts = sorted(set(topics.values()))  # some topics have one text, and no document may be in both files
    for part, chosen in (("train", texts[::2]), ("test", texts[1::2])):
        lines = "".join(json.dumps({"page": text}) + "\n" for text in chosen)
        (folder / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    page = blocks_of(ROOT / "docs" / "own_method.md")
    (folder / "my_method.py").write_text(next(code for language, code in page if language == "python"))
    (folder / "predictor").mkdir()
    option = next(code for language, code in page if language == "yaml")
    (folder / "predictor" / "mine.yaml").write_text(option)
    for part in load_model("tiny-llama"):
        part.save_pretrained(folder / "model")
    (folder / "tasks").mkdir()
    for task in task_root.iterdir():
        (folder / "tasks" / task.name).symlink_to(task)
    (folder / "tasks" / "wikitext").mkdir()
    for part in ("train", "test"):
        (folder / "tasks" / "wikitext" / f"{part}.jsonl").symlink_to(folder / f"{part}.jsonl")
    (spec,) = task_specs(["piqa"], str(folder / "tasks"))
    (folder / "piqa.yaml").write_text(yaml.safe_dump(spec))
    return folder


def test_a_command_that_is_not_run_is_there_and_its_extra_too():
    lines = [
        one
        for page in QUESTIONS
        for language, code in blocks_of(page)
        if language == "bash"
        for one in commands_in(code)
    ]
    assert [words for words in [*NOT_RUN, *REFUSED] if not any(words in line for line in lines)] == []
    named = {extra for line in lines if line.startswith("pip") for extra in re.findall(r"\[(\S+)\]", line)}
    assert named
    assert named <= set(metadata("shadow-llm").get_all("Provides-Extra"))


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=name_of(page)) for page in QUESTIONS if steps_of(page)]
)
def test_the_commands_of_a_page_run_one_after_the_other(place: Path, tmp_path: Path, page: Path) -> None:
    player = Player(place, tmp_path)
    try:
        for language, code in steps_of(page):
            player.bash(code) if language == "bash" else player.python(code)
    finally:
        for server in player.servers:
            server.kill()


def test_the_readmes_snippet_runs_on_smollm2_with_the_lines_that_it_changes(place, tmp_path):
    whole, changed = (code for language, code in blocks_of(README) if language == "python")
    for line in changed.splitlines():
        name = line.partition(" = ")[0]
        whole = re.sub(rf"^{re.escape(name)} = .*$", line, whole, flags=re.MULTILINE)
    whole = whole.replace("The return statement", "What is the capital of France?")
    Player(place, tmp_path).python(whole)

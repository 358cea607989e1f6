"""Models of random weights made on the device, and what is compared on them: for the parts of a GPU day."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PreTrainedModel

from shadow.data.batches import Batch, Example, collate
from shadow.executors.gathered import Gathered
from shadow.executors.planner import Planner
from shadow.executors.run import Run
from shadow.fit.thresholds import learn
from shadow.front import sparse
from shadow.models import load
from shadow.models.cache_name import cache_of, named_cache
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers
from shadow.models.sites import count_units
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Zero
from shadow.scorers.inputs import InputMagnitude
from shadow.scorers.nets import NetShape, TapNet
from shadow.scorers.predicted import Predicted
from shadow.scorers.protocol import Scorer

PROMPT = 32  # tokens before those that are compared or timed


class Shape(NamedTuple):
    width: int
    heads: int
    groups: int
    neurons: int
    gated: bool
    layers: int = 2
    vocabulary: int = 32000


SHAPES = {
    "opt-1.3b": Shape(2048, 32, 32, 8192, False, 24, 50272),
    "opt-6.7b": Shape(4096, 32, 32, 16384, False, 32, 50272),
    "opt-13b": Shape(5120, 40, 40, 20480, False, 40, 50272),
    "llama-2-7b": Shape(4096, 32, 32, 11008, True, 32, 32000),
    "llama-3-8b": Shape(4096, 32, 8, 14336, True, 32, 128256),
}
SHOWN = ("opt-6.7b", "opt-13b", "llama-2-7b")
DRY = {
    "opt-13b": Shape(32, 4, 4, 64, False, 2, 64),
    "llama-2-7b": Shape(32, 4, 2, 48, True, 2, 64),
}


class Way(NamedTuple):
    """A method whose plans both executors can follow."""

    name: str
    scorer: Scorer
    policy: SparsityPolicy


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def shapes(dry: bool) -> dict[str, Shape]:
    return {"llama-2-7b": DRY["llama-2-7b"]} if dry else {name: SHAPES[name] for name in SHOWN}


def config_of(shape: Shape) -> OPTConfig | LlamaConfig:
    """No token ends a text: what is timed is as long as asked."""
    shared: dict[str, Any] = {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    }
    if shape.gated:
        return LlamaConfig(
            num_key_value_heads=shape.groups, intermediate_size=shape.neurons, **shared
        )  # fmt: skip
    return OPTConfig(ffn_dim=shape.neurons, word_embed_proj_dim=shape.width, **shared)


def fitting(shape: Shape, dtype: torch.dtype, copies: int) -> Shape:
    """With as many layers as so many copies of the model leave the device a quarter of its free memory."""
    if device().type == "cpu":
        return shape
    free, _ = torch.cuda.mem_get_info()
    layer = (2 + 2 * shape.groups / shape.heads) * shape.width**2
    layer += (3 if shape.gated else 2) * shape.width * shape.neurons
    outside = 2 * shape.vocabulary * shape.width
    room = 0.75 * free / dtype.itemsize / copies - outside
    return shape._replace(layers=max(2, min(shape.layers, int(room / layer))))


@torch.no_grad()
def build(shape: Shape, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """On the device, nothing on the host: of a fixed seed, each matrix keeps the size of what it reads."""
    with torch.device(device()):
        model = AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype)
        draw = torch.Generator(device()).manual_seed(seed)
        for values in model.parameters():
            if values.dim() == 2:
                values.normal_(0, values.shape[1] ** -0.5, generator=draw)
    return model.eval().requires_grad_(False)


def random_on_device(
    layers: int,
    hidden: int,
    heads: int,
    neurons: int,
    positions: int,
    seed: int,
    dtype: torch.dtype,
    device_map: load.DeviceMap,
) -> load.LM:
    """As `shadow.models.load.random_opt`, made on the device: for `model.source._target_` of a job."""
    tokenizer = load.byte_tokenizer()
    shape = Shape(hidden, heads, heads, neurons, False, layers, len(tokenizer))
    return load.LM(build(shape, dtype, seed), tokenizer)


def ids_of(model: PreTrainedModel, rows: int, tokens: int) -> Tensor:
    """-> int64 [rows, tokens], random, of a fixed seed."""
    draw = torch.Generator().manual_seed(rows)
    return torch.randint(1, model.config.vocab_size, (rows, tokens), generator=draw).to(model.device)


def by_units(model: PreTrainedModel, level: float) -> Way:
    """Heads and neurons, by a random net with one tap: it costs and chooses as much as a trained one."""
    layers, width = len(find_layers(model)), model.config.hidden_size
    shape = NetShape(72, 576, 2) if width > 512 else NetShape(8, 16, 1)
    net = TapNet([1], layers, width, count_units(find_sites(model)), shape)
    draw = torch.Generator().manual_seed(0)
    for name, values in net.state_dict().items():
        values.copy_(torch.randn(values.shape, generator=draw) * 0.1)
        if "scale" in name:
            values.abs_().add_(0.05)
    scorer = Predicted(net.eval().requires_grad_(False), "scores")
    return Way("heads and neurons", scorer, SparsityPolicy(level, kinds=("head", "neuron")))


def by_channels(model: PreTrainedModel, level: float) -> Way:
    """TEAL, with thresholds that are learnt in one dense pass."""
    policy, scorer = SparsityPolicy(level, "threshold", kinds=("channel",)), InputMagnitude()
    found = learn(model, scorer, policy, "token", Zero(), [batch_of(model)])
    return Way(
        "channels", scorer, SparsityPolicy(level, "threshold", kinds=("channel",), thresholds=found)
    )  # fmt: skip


def batch_of(model: PreTrainedModel) -> Batch:
    return collate([Example(row.tolist(), PROMPT) for row in ids_of(model, 4, 2 * PROMPT)])


WAYS = {"heads and neurons": by_units, "channels": by_channels}


@contextmanager
def gathered(model: PreTrainedModel, way: Way) -> Iterator[Run]:
    """By the kernels: on a CPU those are interpreted, which `sparse` offers nobody."""
    if model.device.type == "cuda":
        with sparse(model, way.scorer, way.policy, executor=Gathered()) as run:
            yield run
        return
    from shadow.executors.gpu.run import on_device

    with on_device(model, Planner(model, way.scorer, way.policy, "token", Zero())) as run:
        yield run


def no_kernels() -> str | None:
    """Why kernels cannot run here; None where they can."""
    if torch.cuda.is_available():
        return None
    try:
        from shadow.executors.gpu.tuning import INTERPRETED
    except ImportError:
        return "not run: Triton is not installed"
    return None if INTERPRETED else "not run: no GPU, and TRITON_INTERPRET is not 1"


@torch.no_grad()
def said(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """-> logits, float32 [B, T - PROMPT + 1, V]: of a prompt, and of given tokens one after the other, so
    that one choice that falls otherwise does not change all that follows."""
    found = model(ids[:, :PROMPT], use_cache=True)
    logits = [found.logits[:, -1].float()]
    for at in range(PROMPT, ids.shape[1]):
        found = model(ids[:, at : at + 1], use_cache=True, **named_cache(cache_of(found)))
        logits.append(found.logits[:, -1].float())
    return torch.stack(logits, 1)


def markdown(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [[*columns], ["---"] * len(columns), *([cell(row.get(name)) for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

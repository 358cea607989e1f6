"""Where the units of a model are visible: with `experts` the only module that knows paths or hooks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from shadow.errors import UserError
from shadow.models.experts import count_experts, expert_columns, expert_width, experts_at, visit_experts
from shadow.models.sharded import whole

Kind = Literal["head", "neuron"]
KINDS: tuple[Kind, ...] = ("head", "neuron")
Source = Literal["state", "context"]  # what a predictor reads


class Layout(NamedTuple):
    """Module paths of a model family: the stack of layers, and in a layer what reads units.

    neuron: a projection, or experts whose weights lie in one parameter.
    writes: the projections that write the neurons; the first one's output, or its first half where it writes
    a gate and more in one, meets the non-linearity. Experts have none of their own.
    norm: what the projections that write neurons read; of several names the first that a layer has.
    """

    stack: str
    head: str
    neuron: str
    writes: tuple[str, ...]
    norm: tuple[str, ...]
    nonlinearity: str


OPT = Layout(
    "model.decoder.layers", "self_attn.out_proj", "fc2", ("fc1",), ("final_layer_norm",), "activation_fn"
)
LLAMA = Layout(
    "model.layers",
    "self_attn.o_proj",
    "mlp.down_proj",
    ("mlp.gate_proj", "mlp.up_proj"),
    ("post_attention_layernorm",),
    "mlp.act_fn",
)
GEMMA = LLAMA._replace(norm=("pre_feedforward_layernorm",))
EXPERTS = LLAMA._replace(neuron="mlp.experts", writes=(), nonlinearity="mlp.experts.act_fn")

LAYOUTS = {
    "opt": OPT,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "gemma3": GEMMA._replace(stack="model.language_model.layers"),  # of its language model alone
    "phi3": LLAMA._replace(writes=("mlp.gate_up_proj",), nonlinearity="mlp.activation_fn"),
    "gpt_neox": Layout(
        "gpt_neox.layers",
        "attention.dense",
        "mlp.dense_4h_to_h",
        ("mlp.dense_h_to_4h",),
        ("post_attention_layernorm",),
        "mlp.act",
    ),
    "falcon": Layout(
        "transformer.h",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        ("mlp.dense_h_to_4h",),
        ("ln_mlp", "post_attention_layernorm", "input_layernorm"),  # of 40b, of rw-1b, of 7b
        "mlp.act",
    ),
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS,
}


@dataclass(frozen=True, eq=False)
class Site:
    """The units of one kind in one layer, seen at the input of what reads them.

    Grouped-query attention needs nothing extra: at the output projection heads are query heads.
    reader: the projection, or experts that read their neurons from one parameter.
    writers: the projections that write neurons, row by row, those of a gate first; none for heads, and none
    for experts.
    """

    layer: int
    kind: Kind
    reader: nn.Module
    units: int
    writers: tuple[nn.Linear, ...] = ()

    @property
    def module(self) -> nn.Linear:
        """The projection that reads the units."""
        assert isinstance(self.reader, nn.Linear), "experts read their units from one parameter"
        return self.reader

    @property
    def experts(self) -> int:
        """How many experts the units belong to, in equal parts; 1 where there are none."""
        return 1 if isinstance(self.reader, nn.Linear) else count_experts(self.reader)

    @property
    def width(self) -> int:
        """D: numbers in a unit."""
        return self.reader.in_features // self.units if isinstance(self.reader, nn.Linear) else 1

    def columns(self) -> Tensor:
        """-> [E, U, D]: the weights by which each unit is read."""
        if isinstance(self.reader, nn.Linear):
            return values_of(self.reader).unflatten(1, (self.units, -1))
        return expert_columns(self.reader)


class Structure(NamedTuple):
    """What units of a layer have to do with each other, beside their scores.

    group: query heads that share a key-value head; experts: of which each has as many of the neurons.
    """

    group: int = 1
    experts: int = 1


class NeuronPath(NamedTuple):
    """How neurons come about from x = norm(stream): nonlinearity(first(x)), times second(x) if any.

    A writer of twice as many rows as there are neurons is both: first the gate's rows.
    """

    norm: nn.Module
    writers: tuple[nn.Linear, ...]
    nonlinearity: nn.Module
    neurons: int


def require_layout(model_type: str) -> Layout:
    if model_type not in LAYOUTS:
        raise UserError(
            f"no layout for model_type {model_type!r}: add a row to shadow.models.sites.LAYOUTS "
            f"(known: {sorted(LAYOUTS)})"
        )
    return LAYOUTS[model_type]


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    layers = model.get_submodule(require_layout(model.config.model_type).stack)
    assert isinstance(layers, nn.ModuleList)
    return layers


def find_sites(model: PreTrainedModel) -> list[Site]:
    """Every site of the model in forward order: layer 0's heads, layer 0's neurons, layer 1's heads, ..."""
    layout = require_layout(model.config.model_type)
    heads = model.config.get_text_config().num_attention_heads
    sites = []
    for index, layer in enumerate(find_layers(model)):
        sites.append(Site(index, "head", linear_at(layer, layout.head), heads))
        if layout.writes:
            reads = linear_at(layer, layout.neuron)
            writers = tuple(linear_at(layer, path) for path in layout.writes)
            sites.append(Site(index, "neuron", reads, reads.in_features, writers))
        else:
            experts = experts_at(layer, layout.neuron, index)
            sites.append(Site(index, "neuron", experts, count_experts(experts) * expert_width(experts)))
    return sites


def structure_of(model: PreTrainedModel) -> Structure:
    config = model.config.get_text_config()
    experts = max(site.experts for site in find_sites(model))
    return Structure(config.num_attention_heads // key_value_heads(config), experts)


def key_value_heads(config: PretrainedConfig) -> int:
    if config.model_type == "falcon":
        several = config.new_decoder_architecture or not config.multi_query
        return config.num_kv_heads if several else 1
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def find_neuron_paths(model: PreTrainedModel) -> list[NeuronPath]:
    """Of every layer, in order."""
    layout = require_layout(model.config.model_type)
    if not getattr(model.config, "do_layer_norm_before", True):  # as in opt-350m
        raise UserError(
            "what neurons read is not the norm that shadow.models.sites.LAYOUTS names: this model norms after"
        )
    if not layout.writes:
        raise UserError(
            f"the neurons of {model.config.model_type} are those of experts, which no projection of their "
            "own writes: use another scorer than svd"
        )
    paths = []
    for layer in find_layers(model):
        norm = next(name for name in layout.norm if hasattr(layer, name))
        writers = tuple(linear_at(layer, path) for path in layout.writes)
        neurons = linear_at(layer, layout.neuron).in_features
        paths.append(
            NeuronPath(layer.get_submodule(norm), writers, layer.get_submodule(layout.nonlinearity), neurons)
        )
    return paths


def linear_at(owner: nn.Module, path: str) -> nn.Linear:
    found = owner.get_submodule(path)
    assert isinstance(found, nn.Linear)
    return found


def count_units(sites: Sequence[Site]) -> dict[Kind, int]:
    """Units of each kind in one layer; the same in every layer of the families that have a layout."""
    counts: dict[Kind, int] = {}
    for site in sites:
        if counts.setdefault(site.kind, site.units) != site.units:
            raise UserError(
                f"layer {site.layer} has {site.units} {site.kind}s and an earlier layer {counts[site.kind]}: "
                "layers of different width are not supported"
            )
    return counts


def column_norms(sites: Sequence[Site]) -> dict[Kind, Tensor]:
    """-> float32 [L, U] of each kind: the norm of the columns by which its projection reads a unit.

    A neuron has one column, and a head several: theirs is the Frobenius norm. |a| * norm is by how much a
    neuron of activation a moves the stream; a head moves it by no more than that.
    """
    found: dict[Kind, list[Tensor]] = {}
    for site in sites:
        found.setdefault(site.kind, []).append(site.columns().float().cpu().square().sum((0, 2)).sqrt())
    return {kind: torch.stack(of_layers) for kind, of_layers in found.items()}


def values_of(module: nn.Module, name: str = "weight") -> Tensor:
    """A module's own parameter, which accelerate may keep elsewhere until the module runs, and of which
    processes that share the model have a part each: all of them must then ask."""
    with align_module_device(module):
        return whole(module.get_parameter(name).detach())


@contextmanager
def visit(sites: Sequence[Site], fn: Callable[[Site, Tensor], Tensor | None]) -> Iterator[None]:
    """Call fn(site, x), x: [B, T, U, D], as each site is reached; what fn returns, if anything, replaces x.

    The projection reads the very tensor that fn saw, or its replacement, so x stands in the autograd graph.
    Neurons of experts are 0 where a token is not sent to the expert; what replaces them there is not read.
    Expects `sites` to hold each visited layer's head site.
    """
    lead: list[int] = []

    def hook_of(site: Site) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            (x,) = args
            if site.kind == "head":
                lead[:] = x.shape[
                    :-1
                ]  # OPT flattens [B, T] before its FFN: the neuron site takes the shape from here
            assert lead, "visit needs the head site of a layer before its neuron site"
            units = x.view(*lead, site.units, -1)
            seen = fn(site, units)
            return ((units if seen is None else seen).view(x.shape),)

        return hook

    def see_experts(site: Site) -> Callable[[Tensor], Tensor]:
        def see(x: Tensor) -> Tensor:
            units = x.view(*lead, site.units, 1)
            seen = fn(site, units)
            return (units if seen is None else seen).view(x.shape)

        return see

    with ExitStack() as stack:
        for site in sites:
            if isinstance(site.reader, nn.Linear):
                stack.callback(site.reader.register_forward_pre_hook(hook_of(site)).remove)
            else:
                stack.enter_context(visit_experts(site.reader, see_experts(site)))
        yield


@contextmanager
def overhear(
    projections: Sequence[nn.Linear], fn: Callable[[nn.Linear, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call fn(projection, x, y) when a projection has turned x: [..., in] into y: [..., out]."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        fn(module, args[0], output)

    handles = []
    try:
        for projection in projections:
            handles.append(projection.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch(model: PreTrainedModel, layers: Sequence[int], fn: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call fn(layer, state) with the input state [B, T, E] of each of these layers, just before it runs."""

    def hook_of(index: int) -> Callable[[nn.Module, tuple, dict], None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            fn(index, args[0] if args else kwargs["hidden_states"])

        return hook

    handles = []
    try:
        stack = find_layers(model)
        for index in layers:
            handles.append(stack[index].register_forward_pre_hook(hook_of(index), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def width_of(model: PreTrainedModel, source: Source) -> int:
    """Of what `listen` gives."""
    if source == "state":
        return model.config.get_text_config().hidden_size
    return find_sites(model)[0].module.in_features


@contextmanager
def listen(
    model: PreTrainedModel, layers: Sequence[int], source: Source, fn: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call fn(layer, x) with what these layers' taps read: their input [B, T, E], or their heads' output
    [B, T, H * D], which comes when the layer has attended and before `visit` changes it."""
    if source == "state":
        with watch(model, layers, fn):
            yield
        return

    def see(site: Site, x: Tensor) -> None:
        fn(site.layer, x.flatten(2))

    heads = [site for site in find_sites(model) if site.kind == "head" and site.layer in layers]
    with visit(heads, see):
        yield


@contextmanager
def differentiable_embeddings(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Let gradients flow back to the embeddings' output, every weight being frozen; yields that output."""
    embedded: list[Tensor] = []

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        embedded[:] = [output.requires_grad_(True)]
        return output

    handle = model.get_input_embeddings().register_forward_hook(hook)
    try:
        yield embedded
    finally:
        handle.remove()

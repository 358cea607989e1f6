"""Where the units of a model are visible: the only module that knows module paths or hooks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadow.errors import UserError

Kind = Literal["head", "neuron"]
KINDS: tuple[Kind, ...] = ("head", "neuron")
Source = Literal["state", "context"]  # what a predictor reads


class Layout(NamedTuple):
    """Module paths of a model family: the stack of layers, and in a layer the projections that read units.

    norm: what stands between attention and the projections that write the neurons, `writes`; of these the
    first one's output meets the non-linearity.
    """

    stack: str
    head: str
    neuron: str
    writes: tuple[str, ...]
    norm: str
    nonlinearity: str


LAYOUTS = {
    "opt": Layout(
        "model.decoder.layers", "self_attn.out_proj", "fc2", ("fc1",), "final_layer_norm", "activation_fn"
    ),
    "llama": Layout(
        "model.layers",
        "self_attn.o_proj",
        "mlp.down_proj",
        ("mlp.gate_proj", "mlp.up_proj"),
        "post_attention_layernorm",
        "mlp.act_fn",
    ),
}


@dataclass(frozen=True, eq=False)
class Site:
    """The units of one kind in one layer, seen at the input of the projection that reads them.

    Grouped-query attention needs nothing extra: at the output projection heads are query heads.
    writers: the projections that write neurons, row by row; none for heads.
    """

    layer: int
    kind: Kind
    module: nn.Linear
    units: int
    writers: tuple[nn.Linear, ...] = ()


class NeuronPath(NamedTuple):
    """How neurons come about from x = norm(stream): nonlinearity(first(x)), times second(x) if any."""

    norm: nn.Module
    writers: tuple[nn.Linear, ...]
    nonlinearity: nn.Module


def require_layout(model_type: str) -> Layout:
    if model_type not in LAYOUTS:
        raise UserError(
            f"no layout for model_type {model_type!r}: add a row to shadow.sites.LAYOUTS "
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
    sites = []
    for index, layer in enumerate(find_layers(model)):
        reads_heads, reads_neurons = linear_at(layer, layout.head), linear_at(layer, layout.neuron)
        writers = tuple(linear_at(layer, path) for path in layout.writes)
        sites.append(Site(index, "head", reads_heads, model.config.num_attention_heads))
        sites.append(Site(index, "neuron", reads_neurons, reads_neurons.in_features, writers))
    return sites


def find_neuron_paths(model: PreTrainedModel) -> list[NeuronPath]:
    """Of every layer, in order."""
    layout = require_layout(model.config.model_type)
    if not getattr(model.config, "do_layer_norm_before", True):  # as in opt-350m
        raise UserError(
            "what neurons read is not the norm that shadow.sites.LAYOUTS names: this model norms after"
        )
    return [
        NeuronPath(
            layer.get_submodule(layout.norm),
            tuple(linear_at(layer, path) for path in layout.writes),
            layer.get_submodule(layout.nonlinearity),
        )
        for layer in find_layers(model)
    ]


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
        columns = site.module.weight.detach().float().cpu().unflatten(1, (site.units, -1))
        found.setdefault(site.kind, []).append(columns.square().sum((0, 2)).sqrt())
    return {kind: torch.stack(of_layers) for kind, of_layers in found.items()}


@contextmanager
def visit(sites: Sequence[Site], fn: Callable[[Site, Tensor], Tensor | None]) -> Iterator[None]:
    """Call fn(site, x), x: [B, T, U, D], as each site is reached; what fn returns, if anything, replaces x.

    The projection reads the very tensor that fn saw, or its replacement, so x stands in the autograd graph.
    Expects `sites` to hold each visited layer's head site, or an FFN that keeps [B, T] apart.
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

    handles = []
    try:
        for site in sites:
            handles.append(site.module.register_forward_pre_hook(hook_of(site)))
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    return model.config.hidden_size if source == "state" else find_sites(model)[0].module.in_features


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

"""Hooks: what scorers and criteria see of a pass, and what replaces it. No other module sets any."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadow.errors import UserError
from shadow.models.experts import count_experts
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers, linear_at, require_layout
from shadow.models.sites import Point, Site

ORDERS = {"grouped_mm": True, "batched_mm": False}  # of transformers: whether rows are in order of experts


class Signal(NamedTuple):
    """A tensor of a pass, [B, T, N], at a named point.

    `layer_input`: the residual stream before the layer, N is E. `head_output`: what the heads give out, N is
    H * D. `gate`: the gate behind its non-linearity (without a gate, the neurons), and `up`: what it is
    multiplied by, N is F; of experts, X * F, and 0 where a token is not sent. `site`: the input of the site
    of this slot, before anything is dropped of it, N is U * D.
    """

    layer: int
    point: Point
    slot: str = ""


class _Noted(threading.local):
    """What hooks have noted of the call under way. Threads that call one model do not see each other's."""

    def __init__(self) -> None:
        self.here: list[Any] = []


@contextmanager
def hook_sites(
    model: PreTrainedModel, sites: Sequence[Site], fn: Callable[[Site, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call fn(site, x), x: [B, T, U, D], as each site is reached; what fn returns, if anything, replaces x.

    The projections read the very tensor that fn saw, or its replacement, so x stands in the autograd graph.
    Where several read one input, fn is called once. Neurons of experts are 0 where a token is not sent to the
    expert; what replaces them there is not read.
    """
    with ExitStack() as stack:
        shape = stack.enter_context(_batch_shape(model, (site.layer for site in sites)))

        def at(site: Site) -> Callable[[Tensor], Tensor]:
            def see(x: Tensor) -> Tensor:
                units = x.view(*shape_of(x, shape.here), site.units, site.width)
                seen = fn(site, units)
                return (units if seen is None else seen).view(x.shape)

            return see

        for site in sites:
            if site.inside_experts:
                stack.enter_context(_hook_experts(site.reader, {"site": at(site)}))
            else:
                _hook_input(stack, site.readers, at(site))
        yield


@contextmanager
def hook_outputs(
    model: PreTrainedModel, sites: Sequence[Site], fn: Callable[[Site, int, Tensor, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call fn(site, reader, x, y), [B, T, N] each, when a projection that reads a site has written y of x;
    what fn returns, if anything, replaces y. reader: its place among the site's readers."""
    with ExitStack() as stack:
        shape = stack.enter_context(_batch_shape(model, (site.layer for site in sites)))

        def at(site: Site, reader: int) -> Callable[[nn.Module, tuple, Tensor], Tensor | None]:
            def hook(module: nn.Module, args: tuple, y: Tensor) -> Tensor | None:
                now = shape_of(y, shape.here)
                found = fn(site, reader, args[0].view(*now, -1), y.view(*now, y.shape[-1]))
                return None if found is None else found.view(y.shape)

            return hook

        for site in sites:
            for reader, projection in enumerate(site.readers):
                stack.callback(projection.register_forward_hook(at(site, reader)).remove)
        yield


@contextmanager
def hook_signals(
    model: PreTrainedModel, signals: Sequence[Signal], fn: Callable[[Signal, Tensor], None]
) -> Iterator[None]:
    """Call fn(signal, x), x: [B, T, N], as each signal comes: before the site that it is the input of, where
    hooks of sites are set later than these."""
    if not signals:
        yield
        return
    layout, layers = require_layout(model.config.model_type), find_layers(model)
    sites = {site.key: site for site in find_sites(model, ("head", "neuron", "channel"))}
    with ExitStack() as stack:
        shape = stack.enter_context(_batch_shape(model, (signal.layer for signal in signals)))

        def at(signal: Signal) -> Callable[[Tensor], None]:
            def see(x: Tensor) -> None:
                fn(signal, x.view(*shape_of(x, shape.here), x.shape[-1]))

            return see

        for signal in signals:
            site = _site_of(signal, sites)
            if signal.point == "layer_input":
                _hook_state(stack, layers[signal.layer], at(signal))
            elif site.inside_experts:
                stack.enter_context(_hook_experts(site.reader, {signal.point: _kept(at(signal))}))
            elif signal.point in ("head_output", "site"):
                _hook_input(stack, site.readers, _kept(at(signal)))
            elif signal.point == "gate":
                _hook_output(stack, layers[signal.layer].get_submodule(layout.nonlinearity), at(signal))
            else:
                _hook_output(stack, *_up(layers[signal.layer], layout.writes, site, at(signal)))
        yield


@contextmanager
def hook_projections(
    projections: Sequence[nn.Linear], fn: Callable[[nn.Linear, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call fn(projection, x, y) when a projection has turned x: [..., in] into y: [..., out]."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        fn(module, args[0], output)

    with ExitStack() as stack:
        for projection in projections:
            stack.callback(projection.register_forward_hook(hook).remove)
        yield


@contextmanager
def hook_layers(model: PreTrainedModel, fn: Callable[[], None]) -> Iterator[None]:
    """Call fn before each layer that is run by its own code."""

    def see(module: nn.Module, args: tuple) -> None:
        fn()

    with ExitStack() as stack:
        for layer in find_layers(model):
            stack.callback(layer.register_forward_pre_hook(see).remove)
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


def _site_of(signal: Signal, sites: dict[tuple[int, str], Site]) -> Site:
    """The site whose input this signal is, or whose units it is about."""
    slot = {"site": signal.slot, "head_output": "head", "layer_input": "head"}.get(signal.point, "neuron")
    site = sites.get((signal.layer, slot))
    if site is None:
        raise UserError(
            f"a scorer asks for {signal}, and this model has no slot {slot!r} in layer {signal.layer}: it "
            f"has {sorted({slot for _, slot in sites})}"
        )
    if signal.point == "up" and "up" not in site.seen_cost:
        raise UserError(
            f"a scorer asks for {signal}, and this model's neurons have no gate: use a method that reads them"
        )
    return site


def _up(
    layer: nn.Module, writes: Sequence[str], site: Site, fn: Callable[[Tensor], None]
) -> tuple[nn.Module, Callable[[Tensor], None]]:
    """What multiplies the gate: the output of the second writer, or the second half of the only one."""
    return linear_at(layer, writes[-1]), lambda y: fn(y[..., -site.units :].contiguous())


@contextmanager
def _batch_shape(model: PreTrainedModel, hooked: Iterable[int]) -> Iterator[_Noted]:
    """[B, T] of the call under way, from the first layer with a hook: OPT flattens both before its FFN."""
    shape, layers = _Noted(), find_layers(model)
    first = min((layer for layer in hooked if layer < len(layers)), default=0)

    def note(state: Tensor) -> None:
        shape.here[:] = state.shape[:-1]

    with ExitStack() as stack:
        _hook_state(stack, layers[first], note)
        yield shape


def shape_of(x: Tensor, shape: Sequence[int]) -> Sequence[int]:
    """[B, T] of x: [B, T, N] or [B * T, N]. Of the last projection T is what logits are asked for."""
    return x.shape[:-1] if x.dim() == 3 else shape


def _hook_state(stack: ExitStack, layer: nn.Module, fn: Callable[[Tensor], None]) -> None:
    """With the layer's input state, just before it runs."""

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        fn(args[0] if args else kwargs["hidden_states"])

    stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)


def _kept(fn: Callable[[Tensor], None]) -> Callable[[Tensor], Tensor]:
    """As a function that replaces nothing."""

    def see(x: Tensor) -> Tensor:
        fn(x)
        return x

    return see


def _hook_input(stack: ExitStack, readers: Sequence[nn.Module], fn: Callable[[Tensor], Tensor]) -> None:
    """Each reader's input becomes fn of it; fn is called once for those that read the same tensor."""
    held = _Noted()  # the input, what it becomes, and how many have read it; nothing when all have

    def hook(module: nn.Module, args: tuple) -> tuple:
        x, *others = args
        now = held.here
        if not now or now[0] is not x:
            now[:] = [x, fn(x), 0]
        found, now[2] = now[1], now[2] + 1
        if now[2] == len(readers):
            now.clear()
        return (found, *others)

    for reader in readers:
        stack.callback(reader.register_forward_pre_hook(hook).remove)


def _hook_output(stack: ExitStack, module: nn.Module, fn: Callable[[Tensor], None]) -> None:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        fn(output)

    stack.callback(module.register_forward_hook(hook).remove)


@contextmanager
def _hook_experts(experts: nn.Module, fns: dict[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Call fns["gate"], ["up"] and ["site"] with [N, X * F] when each of N tokens has the neurons of the
    experts that it is sent to.

    The others' are 0. What the last returns is what the chosen experts read. The neurons are those before the
    router weighs what their expert says; x stands in the autograd graph. All that is replaced is
    `_apply_gate`, by which transformers makes a row of neurons for each token and chosen expert.
    """
    implementation = getattr(experts.config, "_experts_implementation", None)
    if implementation not in ORDERS:
        raise UserError(
            f"neurons of experts are visible with experts_implementation in {sorted(ORDERS)}, got "
            f"{implementation!r}: call model.set_experts_implementation('grouped_mm')"
        )
    sent = _Noted()  # [N, K]: the experts of each token
    before = vars(experts).get("_apply_gate")
    gate: Callable[[Tensor], Tensor] = experts._apply_gate  # type: ignore[assignment]

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        sent.here[:] = [args[1] if len(args) > 1 else kwargs["top_k_index"]]

    def apply_gate(gates: Tensor) -> Tensor:
        (experts_of,) = sent.here
        chosen = experts_of.flatten()
        rows = torch.arange(len(chosen), device=chosen.device)
        if ORDERS[implementation]:
            rows = torch.sort(chosen).indices
        token, expert = rows // experts_of.shape[1], chosen[rows]

        def spread(values: Tensor) -> Tensor:
            """[N * K, F] -> [N, X * F]."""
            shape = (len(experts_of), count_experts(experts), values.shape[1])
            return values.new_zeros(shape).index_put((token, expert), values).flatten(1)

        first, second = gates.chunk(2, -1)
        if "gate" in fns:
            fns["gate"](spread(experts.get_submodule("act_fn")(first)))
        if "up" in fns:
            fns["up"](spread(second))
        neurons = gate(gates)  # [N * K, F]
        if "site" not in fns:
            return neurons
        x = fns["site"](spread(neurons))
        return x.view(len(experts_of), count_experts(experts), -1)[token, expert]

    with ExitStack() as stack:
        stack.callback(experts.register_forward_pre_hook(note, with_kwargs=True).remove)
        experts._apply_gate = apply_gate  # type: ignore[assignment]
        try:
            yield
        finally:
            if before is None:
                del experts._apply_gate
            else:
                experts._apply_gate = before

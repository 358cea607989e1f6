"""Scorers on disk: a row a class, with what JSON tells of it and which tensors go beside."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast, get_args

import torch

from shadow.artifacts.predictor_files import empty_net, fill_net, is_whole, unfit_config
from shadow.checkpoint.source import Source, Tensors, Told, put_by_site
from shadow.checkpoint.stand_in_forms import read_stand_in, tell_stand_in
from shadow.errors import UserError
from shadow.models.sites import Kind, Point, Site
from shadow.scorers.fixed import Compensated, Fixed
from shadow.scorers.gate import GateMagnitude, UpMagnitude
from shadow.scorers.inputs import InputMagnitude
from shadow.scorers.joined import JoinedScorers
from shadow.scorers.low_rank import LowRank, LowRankCopy
from shadow.scorers.own_input import Copies, Signs, nonlinearities_of
from shadow.scorers.predicted import Predicted
from shadow.scorers.protocol import Scorer
from shadow.scorers.rotated import Rotations
from shadow.scorers.routers import Routers
from shadow.scorers.scaled import Backed, Scaled
from shadow.scorers.two_step import HeadCopy


class Form(NamedTuple):
    """of: exactly these classes. tell: puts tensors whose names begin with a prefix, and says the rest; read:
    the scorer of what was told, with a ValueError where it does not fit the model."""

    of: Sequence[type]
    tell: Callable[[Any, Tensors, str], Told]
    read: Callable[[Told, Source, str], Scorer]


def tell_scorer(scorer: Scorer, tensors: Tensors, prefix: str = "scorer") -> Told:
    for name, form in FORMS.items():
        if type(scorer) in form.of:
            return {"form": name} | form.tell(scorer, tensors, prefix)
    raise UserError(
        f"a checkpoint has no form for the scorer {type(scorer).__name__}: it holds the methods of this "
        "framework that decide by what a sparse pass itself shows, so use one of those, or `shadow.sparse`"
    )


def read_scorer(told: Told, source: Source, prefix: str = "scorer") -> Scorer:
    if told["form"] not in FORMS:
        raise ValueError(f"a scorer of the form {told['form']!r}")
    return FORMS[told["form"]].read(told, source, prefix)


def stateless(of: type) -> Form:
    return Form([of], lambda scorer, tensors, prefix: {}, lambda told, source, prefix: cast(Scorer, of()))


def tell_fixed(scorer: Fixed, tensors: Tensors, prefix: str) -> Told:
    put_by_site(tensors, f"{prefix}.scores", scorer.fixed)
    own = getattr(scorer, "stand_in", None)
    return {"stand_in": None if own is None else tell_stand_in(own, tensors, f"{prefix}.own")}


def read_fixed(told: Told, source: Source, prefix: str) -> Fixed:
    scores = source.by_site(f"{prefix}.scores", units)
    if told["stand_in"] is None:
        return Fixed(scores)
    return Compensated(scores, read_stand_in(told["stand_in"], source, f"{prefix}.own"))


def tell_scaled(scorer: Scaled, tensors: Tensors, prefix: str) -> Told:
    put_by_site(tensors, f"{prefix}.factors", scorer.factors)
    centres = [[*key, value] for key, value in scorer.centres.items()]
    own = getattr(scorer, "stand_in", None)
    own = None if own is None else tell_stand_in(own, tensors, f"{prefix}.own")
    return {"kind": scorer.kind, "point": scorer.point, "centres": centres, "stand_in": own}


def read_scaled(told: Told, source: Source, prefix: str) -> Scaled:
    kind, point = told["kind"], told["point"]
    if kind not in get_args(Kind) or point not in get_args(Point):
        raise ValueError(f"a scorer of {kind!r} at {point!r}")
    factors = source.by_site(f"{prefix}.factors", units)
    centres = {(layer, slot): number(value) for layer, slot, value in told["centres"]}
    if told["stand_in"] is None:
        return Scaled(kind, point, factors, centres)
    own = read_stand_in(told["stand_in"], source, f"{prefix}.own")
    return Backed(kind, point, factors, centres, stand_in=own)


def tell_rotations(scorer: Rotations, tensors: Tensors, prefix: str) -> Told:
    put_by_site(tensors, f"{prefix}.bases", scorer.bases)
    return {}


def read_rotations(told: Told, source: Source, prefix: str) -> Rotations:
    return Rotations(source.by_site(f"{prefix}.bases", lambda site: (site.units, site.units), ["channel"]))


def put_low_rank(tensors: Tensors, prefix: str, copy: LowRank) -> None:
    for name, values in copy._asdict().items():
        if values is not None:
            tensors[f"{prefix}.{name}"] = values


def read_low_rank(source: Source, prefix: str, width: int, outputs: int) -> LowRank:
    down = source.one(f"{prefix}.down", (None, width))
    up = source.one(f"{prefix}.up", (outputs, len(down)))
    biased = f"{prefix}.bias" in source.tensors
    return LowRank(down, up, source.one(f"{prefix}.bias", (outputs,)) if biased else None)


def tell_head_copy(scorer: HeadCopy, tensors: Tensors, prefix: str) -> Told:
    put_low_rank(tensors, f"{prefix}.copy", scorer.copy)
    return {}


def read_head_copy(told: Told, source: Source, prefix: str) -> HeadCopy:
    (site,) = source.sites(["row"]).values()
    return HeadCopy(read_low_rank(source, f"{prefix}.copy", site.module.in_features, site.units))


def tell_signs(scorer: Signs, tensors: Tensors, prefix: str) -> Told:
    for layer, signs in scorer.signs.items():
        tensors[f"{prefix}.signs.{layer}"] = signs.to(torch.int8)
    return {}


def read_signs(told: Told, source: Source, prefix: str) -> Signs:
    found = {}
    for site in source.sites(["neuron"]).values():
        shape = site.units, site.writers[0].in_features
        found[site.layer] = source.one(f"{prefix}.signs.{site.layer}", shape, torch.int8).float()
    return Signs(found)


def put_copies(tensors: Tensors, prefix: str, copies: Mapping[int, Sequence[LowRank]]) -> int:
    """-> how many each layer has."""
    for layer, of_layer in copies.items():
        for n, copy in enumerate(of_layer):
            put_low_rank(tensors, f"{prefix}.copies.{layer}.{n}", copy)
    return len(next(iter(copies.values()))) if copies else 0


def read_copies(source: Source, prefix: str, each: object, layers: range) -> dict[int, list[LowRank]]:
    if not is_whole(each, 1):
        raise ValueError(f"{each!r} copies a layer")
    sites, count = source.sites(["neuron"]), cast(int, each)
    found = {}
    for layer in layers:
        site = sites[layer, "neuron"]
        size = site.writers[0].in_features
        names = [f"{prefix}.copies.{layer}.{n}" for n in range(count)]
        found[layer] = [read_low_rank(source, name, size, site.units) for name in names]
    return found


def tell_copies(scorer: Copies, tensors: Tensors, prefix: str) -> Told:
    each = put_copies(tensors, prefix, scorer.copies)
    return {"each": each, "bent": bool(scorer.nonlinearities), "signed": scorer.signed}


def read_own_input(told: Told, source: Source, prefix: str) -> Copies:
    layers = range(len(source.sites(["neuron"])))
    bent = nonlinearities_of(source.model) if told["bent"] else {}
    return Copies(read_copies(source, prefix, told["each"], layers), bent, bool(told["signed"]))


def tell_low_rank_copy(scorer: LowRankCopy, tensors: Tensors, prefix: str) -> Told:
    put_by_site(tensors, f"{prefix}.heads", {(layer, "head"): one for layer, one in scorer.heads.items()})
    means = {(layer, "neuron"): one for layer, one in (scorer.neuron_means or {}).items()}
    put_by_site(tensors, f"{prefix}.means", means)
    return {"each": put_copies(tensors, prefix, scorer.copies), "means": scorer.neuron_means is not None}


def read_low_rank_copy(told: Told, source: Source, prefix: str) -> LowRankCopy:
    heads = source.by_site(f"{prefix}.heads", units, ["head"])
    means = source.by_site(f"{prefix}.means", units, ["neuron"])
    copies = read_copies(source, prefix, told["each"], range(1, len(source.sites(["neuron"]))))
    return LowRankCopy.of_copies(
        source.model,
        copies,
        {layer: scores for (layer, _), scores in heads.items()},
        {layer: mean for (layer, _), mean in means.items()} if told["means"] else None,
    )


def tell_predicted(scorer: Predicted, tensors: Tensors, prefix: str) -> Told:
    net, shape = scorer.net, scorer.shape
    tensors |= {f"{prefix}.net.{name}": values for name, values in net.state_dict().items()}
    told = {"taps": net.taps, "ahead": net.ahead, "kinds": net.kinds, "net": net.shape._asdict()}
    told |= {"layers": shape.layers, "width": net.reader(net.taps[0]).width, "units": shape.units}
    return told | {"pooling": scorer.pooling, "source": scorer.source, "deviates": scorer.deviates}


def read_predicted(told: Told, source: Source, prefix: str) -> Predicted:
    if wrong := unfit_config(told):
        raise ValueError(wrong)
    device = source.model.device
    weights = {name: values.to(device) for name, values in source.under(f"{prefix}.net").items()}
    net = fill_net(empty_net(told), weights).eval()
    return Predicted(net, told["pooling"], told["source"], deviates=bool(told["deviates"]))


def tell_joined(scorer: JoinedScorers, tensors: Tensors, prefix: str) -> Told:
    parts = [tell_scorer(part, tensors, f"{prefix}.{n}") for n, part in enumerate(scorer.parts)]
    return {"parts": parts}


def read_joined(told: Told, source: Source, prefix: str) -> JoinedScorers:
    parts = [read_scorer(part, source, f"{prefix}.{n}") for n, part in enumerate(told["parts"])]
    kinds = sorted({kind for part in parts for kind in part.kinds})
    return JoinedScorers(parts, list(source.sites(kinds).values()))


def tell_routers(scorer: Routers, tensors: Tensors, prefix: str) -> Told:
    tensors |= {f"{prefix}.{name}": values for name, values in scorer.state_dict().items()}
    return {"blocks": [[layer, slot] for layer, slots in scorer.slots.items() for slot in slots]}


def read_routers(told: Told, source: Source, prefix: str) -> Routers:
    sites = source.sites(["block"])
    blocks = [sites[layer, slot] for layer, slot in told["blocks"]]
    if not blocks:
        raise ValueError("routers of no block")
    width = source.model.config.get_text_config().hidden_size
    hidden = len(source.one(f"{prefix}.nets.{blocks[0].layer}.1.weight", (None, width)))
    with torch.device("meta"):  # random numbers would be drawn for it
        routers = Routers(blocks, width, hidden)
    found = {name: source.one(f"{prefix}.{name}", of.shape) for name, of in routers.state_dict().items()}
    routers.load_state_dict(found, assign=True)
    return routers.eval().requires_grad_(False)


def units(site: Site) -> tuple[int]:
    return (site.units,)


def number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise ValueError(f"a number is {value!r}")
    return value


FORMS: dict[str, Form] = {
    "input_magnitude": stateless(InputMagnitude),
    "gate_magnitude": stateless(GateMagnitude),
    "up_magnitude": stateless(UpMagnitude),
    "fixed": Form([Fixed, Compensated], tell_fixed, read_fixed),
    "scaled": Form([Scaled, Backed], tell_scaled, read_scaled),
    "rotations": Form([Rotations], tell_rotations, read_rotations),
    "head_copy": Form([HeadCopy], tell_head_copy, read_head_copy),
    "signs": Form([Signs], tell_signs, read_signs),
    "copies": Form([Copies], tell_copies, read_own_input),
    "low_rank_copy": Form([LowRankCopy], tell_low_rank_copy, read_low_rank_copy),
    "predicted": Form([Predicted], tell_predicted, read_predicted),
    "routers": Form([Routers], tell_routers, read_routers),
    "joined": Form([JoinedScorers], tell_joined, read_joined),
}

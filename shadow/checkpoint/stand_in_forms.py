"""Stand-ins on disk: a row a class."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shadow.checkpoint.source import Source, Tensors, Told, put_by_site
from shadow.errors import UserError
from shadow.models.sites import Site
from shadow.plans.low_rank_rest import LowRankRest
from shadow.plans.stand_ins import Learnt, Mean, StandIn, Zero

OWN = "own"  # what the scorer brings


class Form(NamedTuple):
    """As that of scorers."""

    of: Sequence[type]
    tell: Callable[[Any, Tensors, str], Told]
    read: Callable[[Told, Source, str], StandIn]


def tell_stand_in(
    stand_in: StandIn, tensors: Tensors, prefix: str = "stand_in", brought: StandIn | None = None
) -> Told:
    """brought: by the scorer, which is told of with it."""
    if brought is not None and (stand_in is brought or type(stand_in) not in WRITTEN):
        return {"form": OWN}
    if isinstance(stand_in, Learnt):
        tensors |= {f"{prefix}.{name}": values for name, values in stand_in.state_dict().items()}
        return {
            "form": "learnt",
            "within": tell_stand_in(stand_in.within, tensors, f"{prefix}.within", brought),
        }
    for name, form in FORMS.items():
        if type(stand_in) in form.of:
            return {"form": name} | form.tell(stand_in, tensors, prefix)
    raise UserError(
        f"a checkpoint has no form for the stand-in {type(stand_in).__name__}: use `mean`, `zero`, what the "
        "scorer brings, or a learnt one"
    )


def read_stand_in(
    told: Told,
    source: Source,
    prefix: str = "stand_in",
    brought: StandIn | None = None,
    corrected: Sequence[Site] = (),
) -> StandIn:
    """corrected: the sites whose writing a learnt one changes."""
    form = told["form"]
    if form == OWN:
        if brought is None:
            raise ValueError("its scorer brings no stand-in")
        return brought
    if form == "learnt":
        within = read_stand_in(told["within"], source, f"{prefix}.within", brought)
        return read_learnt(source, prefix, Learnt(corrected, within))
    if form not in FORMS:
        raise ValueError(f"a stand-in of the form {form!r}")
    return FORMS[form].read(told, source, prefix)


def read_learnt(source: Source, prefix: str, empty: Learnt) -> Learnt:
    for name, values in empty.state_dict().items():
        values.copy_(source.one(f"{prefix}.{name}", values.shape))
    return empty.requires_grad_(False)


def tell_mean(stand_in: Mean, tensors: Tensors, prefix: str) -> Told:
    put_by_site(tensors, f"{prefix}.values", stand_in.values)
    return {}


def read_mean(told: Told, source: Source, prefix: str) -> Mean:
    return Mean(source.by_site(f"{prefix}.values", lambda site: (site.units, site.width)))


def tell_rest(stand_in: LowRankRest, tensors: Tensors, prefix: str) -> Told:
    put_by_site(tensors, f"{prefix}.bases", stand_in.bases)
    return {}


def read_rest(told: Told, source: Source, prefix: str) -> LowRankRest:
    return LowRankRest(source.by_site(f"{prefix}.bases", lambda site: (site.units, None)))


FORMS: dict[str, Form] = {
    "zero": Form([Zero], lambda stand_in, tensors, prefix: {}, lambda told, source, prefix: Zero()),
    "mean": Form([Mean], tell_mean, read_mean),
    "low_rank_rest": Form([LowRankRest], tell_rest, read_rest),
}
WRITTEN = {Learnt, *(of for form in FORMS.values() for of in form.of)}

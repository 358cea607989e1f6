"""Where the units of a model are read: a site for each layer and slot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from shadow.errors import UserError
from shadow.models.experts import expert_columns
from shadow.models.sharded import whole

Kind = Literal["head", "neuron", "channel", "row", "block"]
# `head` and `neuron` are the kinds that criteria score; others are inputs of projections, rows of the
# lm_head, and a layer's attention or FFN as a whole
Point = Literal["layer_input", "head_output", "gate", "up", "site"]
SiteKey = tuple[int, str]  # layer and slot; the lm_head's layer is the number of layers
KINDS: tuple[Kind, ...] = ("head", "neuron")
BEHIND = ("lm_head", "vocabulary")  # slots of the lm_head: its inputs, and its rows, one a word
CHANNELS = ("qkv", "o", "gate_up", "down", "lm_head")  # the slots of channels
BLOCKS = ("attention", "ffn")  # the slots of blocks
Source = Literal["state", "context"]  # what a predictor reads


def kind_of(slot: str) -> Kind:
    """The kind of the units that are read there."""
    others: dict[str, Kind] = {"head": "head", "neuron": "neuron", "vocabulary": "row"}
    return "block" if slot in BLOCKS else others.get(slot, "channel")


class Ranking(NamedTuple):
    """What units of a site have to do with each other, beside their scores.

    group: so many that stay or go together where that is asked for: query heads that share a key-value head.
    experts: equal parts, each ranked for itself.
    """

    group: int = 1
    experts: int = 1


ALONE = Ranking()


@dataclass(frozen=True, eq=False)
class Site:
    """The units of one slot in one layer, seen at the input of what reads them.

    Grouped-query attention needs nothing extra: at the output projection heads are query heads.
    readers: the projections that read this input, or experts that read theirs from one parameter.
    writers: the projections that write neurons, row by row, those of a gate first; none for other kinds, and
    none for experts.
    units: as many as the input has, or of rows the output; active: those that one token can read, which are
    fewer where it is sent to some experts alone. width: numbers in a unit.
    cost: weights that one absent unit leaves unread. seen_cost: those of them that are read all the same
    where a scorer sees this point of every unit.
    """

    layer: int
    slot: str
    kind: Kind
    readers: tuple[nn.Module, ...]
    units: int
    width: int
    active: int
    cost: int
    ranking: Ranking = ALONE
    writers: tuple[nn.Linear, ...] = ()
    seen_cost: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> SiteKey:
        return self.layer, self.slot

    @property
    def behind(self) -> bool:
        """Whether it lies behind the last layer, where only what logits are asked for is read."""
        return self.slot in BEHIND

    @property
    def reader(self) -> nn.Module:
        """The first of the readers."""
        return self.readers[0]

    @property
    def module(self) -> nn.Linear:
        """The projection that reads the units."""
        assert isinstance(self.reader, nn.Linear), "experts read their units from one parameter"
        return self.reader

    @property
    def inside_experts(self) -> bool:
        """Whether experts write these units themselves, so that no projection's input shows them."""
        return not isinstance(self.reader, nn.Linear) and self.slot != "gate_up"

    @property
    def experts(self) -> int:
        """How many experts the units belong to, in equal parts; 1 where there are none."""
        return self.ranking.experts

    def columns(self) -> Tensor:
        """-> [E, U, D]: the weights by which each unit is read, of all readers one under the other.

        Of channels that all experts read, E is the rows of all of them.
        """
        if isinstance(self.reader, nn.Linear):
            rows = torch.cat([values_of(reader) for reader in self.readers])
            return rows.unflatten(1, (self.units, -1))
        if self.slot == "gate_up":
            return whole(self.reader.get_parameter("gate_up_proj").detach()).flatten(0, 1)[..., None]
        return expert_columns(self.reader)


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


def column_norms_of(site: Site) -> Tensor:
    """-> float32 [U]: of one site, as `column_norms`."""
    return site.columns().float().square().sum((0, 2)).sqrt()


def column_norms(sites: Sequence[Site]) -> dict[Kind, Tensor]:
    """-> float32 [L, U] of each kind: the norm of the columns by which its projection reads a unit.

    A neuron has one column, and a head several: theirs is the Frobenius norm. |a| * norm is by how much a
    neuron of activation a moves the stream; a head moves it by no more than that.
    """
    found: dict[Kind, list[Tensor]] = {}
    for site in sites:
        found.setdefault(site.kind, []).append(column_norms_of(site).cpu())
    return {kind: torch.stack(of_layers) for kind, of_layers in found.items()}


def values_of(module: nn.Module, name: str = "weight") -> Tensor:
    """A module's own parameter, which accelerate may keep elsewhere until the module runs, and of which
    processes that share the model have a part each: all of them must then ask."""
    with align_module_device(module):
        return whole(module.get_parameter(name).detach())

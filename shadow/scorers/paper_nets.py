"""The predictors of ShadowLLM's own code (arXiv 2406.16635): plain nets on min-max scaled numbers."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from shadow.data.batches import mean_of
from shadow.models.sites import Kind, SiteKey


class MLPShape(NamedTuple):
    """Widths of the hidden layers of both nets; scaled: whether an input is brought to [0, 1] first; attends:
    whether that is the states of all positions, joined by `Attention`, or one vector.

    The reference has 2048 for heads and trains 1024 for neurons.
    """

    head: int
    neuron: int
    scaled: bool
    attends: bool = False


class MLPReader(nn.Module):
    """From one vector to the scores of a span's units: for each kind Linear, ReLU, Linear."""

    def __init__(self, span: range, width: int, units: Mapping[Kind, int], shape: MLPShape) -> None:
        super().__init__()
        self.span, self.units, self.width, self.scaled = span, dict(units), width, shape.scaled
        hidden: dict[Kind, int] = {"head": shape.head, "neuron": shape.neuron}
        self.nets = nn.ModuleDict()
        for kind in self.units:
            outputs = len(span) * units[kind]
            self.nets[kind] = nn.Sequential(
                nn.Linear(width, hidden[kind]), nn.ReLU(), nn.Linear(hidden[kind], outputs)
            )
        # said of no sample; validation compares with it
        self.static = nn.ParameterDict(
            {
                kind: nn.Parameter(torch.zeros(len(span), units[kind]), requires_grad=False)
                for kind in self.units
            }
        )

    @torch.no_grad()
    def set_static(self, center: Tensor, scale: Tensor, mean: Mapping[Kind, Tensor]) -> None:
        for kind in self.units:
            self.static[kind].copy_(mean[kind])

    def forward(self, state: Tensor) -> dict[Kind, Tensor]:
        """state: [..., E] -> scores [..., S, U] of the S layers of the span."""
        x = min_max(state.float(), (-1,)) if self.scaled else state.float()
        return {
            kind: self.nets[kind](x).unflatten(-1, (len(self.span), self.units[kind])) for kind in self.units
        }

    def of_layers(self, state: Tensor) -> dict[SiteKey, Tensor]:
        """state: [..., E] -> scores [..., U] of each layer of the span."""
        return {
            (layer, kind): scores
            for kind, values in self(state).items()
            for layer, scores in zip(self.span, values.unbind(-2), strict=True)
        }


class Attention(nn.Module):
    """From the states of all positions to one vector: one head of self-attention, then the mean (`ble`).

    The reference publishes figures of it, but its code raises NotImplementedError. Chosen here: there is no
    residual, and the nets of both kinds of units read the same vector.
    """

    def __init__(self, width: int, scaled: bool) -> None:
        """scaled: whether each position's state is brought to [0, 1] first."""
        super().__init__()
        self.scaled = scaled
        self.attend = nn.MultiheadAttention(width, num_heads=1, batch_first=True)

    def forward(self, states: Tensor, inside: Tensor) -> Tensor:
        """states: [B, T, E]; inside: bool [B, T], what is read -> [B, E]."""
        x = min_max(states.float(), (-1,)) if self.scaled else states.float()
        x = torch.where(inside[..., None], x, 0)  # what is outside may be no number
        outside = ~inside & inside.any(1, keepdim=True)  # a row of nothing reads its zeros: no NaN
        attended, _ = self.attend(x, x, x, key_padding_mask=outside, need_weights=False)
        return mean_of(attended.float(), inside)


def read_raw(net: nn.Module) -> None:
    """From now on its readers take numbers as they are, though they were trained on scaled ones: what the
    reference does to its baseline, the layerwise predictor, wherever it ranks over all layers."""
    for part in net.modules():
        if isinstance(part, MLPReader | Attention):
            part.scaled = False


class MinMax:
    """Least squares on scores that are brought to [0, 1] within a layer, or over all layers at once.

    Where all scores are equal they are 0; the reference leaves such examples out without a word.
    """

    def __init__(self, over: Literal["layer", "global"]) -> None:
        self.dims = {"layer": (-1,), "global": (-2, -1)}[over]
        self.alone = over == "layer"

    def target(self, scores: Tensor, mean: Tensor) -> Tensor:
        return min_max(scores, self.dims)

    def start(self, mean: Tensor) -> Tensor:
        return mean

    def loss(self, said: Tensor, target: Tensor) -> Tensor:
        return mse_loss(said, target)


def min_max(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """To [0, 1] over these dimensions; 0 where all are equal."""
    least, most = values.amin(dims, keepdim=True), values.amax(dims, keepdim=True)
    return (values - least) / (most - least).where(most > least, 1)

"""Criteria that add up over tokens, from what is seen at a site: activation, gradient, curvature.

Letters: a the activation at the site, m its mean over calibration, g = dL/da, H the Hessian of the loss in
the activations of all sites.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

Need = Literal["activation", "deviation", "pre-activation", "gradient", "curvature"]


class Summable(Protocol):
    """A unit's score over some positions is finish(sum of their parts)."""

    needs: ClassVar[Need]

    def part(self, act: Tensor, slope: Tensor | None) -> Tensor:
        """act: a, or a - m for a deviation; slope: g, or H g for a curvature; float32 [B, T, U, D] each
        -> [B, T, U]."""
        ...

    def finish(self, total: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Summed:
    """One summable criterion at one site of one batch; parts: [B, T, U]."""

    parts: Tensor
    finish: Callable[[Tensor], Tensor]

    def tokens(self) -> Tensor:
        """-> [B, T, U]: the score at each position by itself."""
        return self.finish(self.parts)

    def at(self, row: Tensor, position: Tensor) -> Tensor:
        """row, position: [M] -> [M, U]: `tokens` there."""
        return self.finish(self.parts[row, position])

    def window(self, inside: Tensor) -> Tensor:
        """inside: bool [B, T] -> [B, U]: the score over these positions together."""
        weights = inside[:, None].to(self.parts)  # a product is many times faster than masking and summing
        return self.finish(torch.bmm(weights, self.parts)[:, 0])


class L2Norm:
    """||a||_2 over the unit's width and over tokens: how much the unit says. Activation units.

    ShadowLLM (arXiv 2406.16635) ranks by it as DejaVu does. For neurons a is what the down projection reads.
    """

    needs: ClassVar[Need] = "activation"

    def part(self, act: Tensor, slope: Tensor | None) -> Tensor:
        return _over_width(act.square())

    def finish(self, total: Tensor) -> Tensor:
        return total.sqrt()


class L2Deviation(L2Norm):
    """||a - m||_2: what is lost of a unit where its calibration mean m stands in its place, as with
    sparsity.stand_in=mean. Activation units."""

    needs: ClassVar[Need] = "deviation"


class L2NormPre(L2Norm):
    """||z||_2 with z a neuron's value before its non-linearity: the form of the paper's code.

    A neuron that ReLU silences ranks as high as one that fires. In a gated FFN z is the gate's value. Heads
    have no non-linearity: there it is `l2_norm`.
    """

    needs: ClassVar[Need] = "pre-activation"


class Griffin(L2Norm):
    """||a||_2 after each token's a, of all units of the layer and kind, were scaled to length 1: a share.

    A token of large activations counts for no more than another. The statistic s by which GRIFFIN (Dong et
    al. 2024, arXiv 2404.01365) selects neurons once it has read the prompt: rows of Z scaled to length 1,
    then the norm of each column. It leaves heads whole. At a single token the order is that of `l2_norm`.
    """

    def part(self, act: Tensor, slope: Tensor | None) -> Tensor:
        squares = super().part(act, slope)
        # a layer that is silent at a token says nothing there
        return squares / squares.sum(-1, keepdim=True).clamp(min=torch.finfo(squares.dtype).tiny)


class PlainAct:
    """|sum_d a·g|, summed over tokens: first-order change of the loss when the unit goes at one token.

    Loss units. ShadowLLM (arXiv 2406.16635), section 3.2, in its activation form for heads and for neurons.
    """

    needs: ClassVar[Need] = "gradient"

    def part(self, act: Tensor, slope: Tensor | None) -> Tensor:
        assert slope is not None
        return _over_width(act * slope).abs()

    def finish(self, total: Tensor) -> Tensor:
        return total


class Snip:
    """|dL/dm| = |sum_td a·g|, m a mask multiplied into the unit at all these tokens. Loss units.

    SNIP (Lee et al. 2019, arXiv 1810.02340) with masks on units (Michel et al. 2019, arXiv 1905.10650). At a
    single token it is `plainact`; over several, what helps here and harms there cancels.
    """

    needs: ClassVar[Need] = "gradient"

    def part(self, act: Tensor, slope: Tensor | None) -> Tensor:
        assert slope is not None
        return _over_width(act * slope)

    def finish(self, total: Tensor) -> Tensor:
        return total.abs()


class GradNorm:
    """||g||_2 over the unit's width and over tokens: how much the loss listens. Loss per activation unit."""

    needs: ClassVar[Need] = "gradient"

    def part(self, act: Tensor, slope: Tensor | None) -> Tensor:
        assert slope is not None
        return _over_width(slope.square())

    def finish(self, total: Tensor) -> Tensor:
        return total.sqrt()


class Fisher:
    """sum_d (a·g)^2, summed over tokens: empirical Fisher information of a mask on each channel.

    Loss units squared. Theis et al. 2018 (arXiv 1801.05787), in the paper's form: channels are squared one by
    one. The paper's code averages over tokens, which ranks the units of a window alike.
    """

    needs: ClassVar[Need] = "gradient"

    def part(self, act: Tensor, slope: Tensor | None) -> Tensor:
        assert slope is not None
        return _over_width((act * slope).square())

    def finish(self, total: Tensor) -> Tensor:
        return total


class Grasp:
    """sum_td a·(H g): how much of the squared gradient norm goes with the unit, to first order, halved.

    Loss cubed per activation squared; signed. GraSP (Wang et al. 2020, arXiv 2002.07376) with the activations
    of all sites for its weights: removal changes g'g/2 by -a·(H g), and a unit whose removal lowers it stays.
    The paper's code ranks by the opposite sign, from gradients that it has mixed up.
    """

    needs: ClassVar[Need] = "curvature"

    def part(self, act: Tensor, slope: Tensor | None) -> Tensor:
        assert slope is not None
        return _over_width(act * slope)

    def finish(self, total: Tensor) -> Tensor:
        return total


def _over_width(values: Tensor) -> Tensor:
    """[B, T, U, D] -> [B, T, U]; a neuron is one number wide, and summing one number costs a pass."""
    return values.squeeze(-1) if values.shape[-1] == 1 else values.sum(-1)


SUMMABLE: dict[str, Summable] = {
    "l2_norm": L2Norm(),
    "l2_norm_pre": L2NormPre(),
    "griffin": Griffin(),
    "plainact": PlainAct(),
    "snip": Snip(),
    "grad_norm": GradNorm(),
    "fisher": Fisher(),
    "grasp": Grasp(),
}
DEVIATIONS: dict[str, Summable] = {"l2_deviation": L2Deviation()}

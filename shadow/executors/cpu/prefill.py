"""A prompt through packed weights: torch's products, of kept units alone where all tokens agree on them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from shadow.executors.cpu.cache import KeyValues, Remembered
from shadow.executors.cpu.channels import ChannelWeights
from shadow.executors.cpu.matrices import In, read
from shadow.executors.cpu.products import across, along
from shadow.executors.cpu.weights import Norms, Weights
from shadow.executors.families import Sizes
from shadow.executors.planner import Planner
from shadow.models.sites import SiteKey
from shadow.plans.rules import Plan


class Prompt:
    """The columns of a call. start: [B], each row's first real one, behind which there is no padding, or what
    stands there does not matter; offset: [B], what columns count above positions."""

    def __init__(self, ids: Tensor, start: Tensor, offset: Tensor) -> None:
        self.ids, self.start = ids, start
        self.positions = (torch.arange(ids.shape[1]) - offset[:, None]).clamp(min=0)
        self.mask = self._mask() if bool((start > 0).any()) else None

    def _mask(self) -> Tensor:
        """-> bool [B, 1, T, T]; a padding token sees itself, as nothing has no softmax."""
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        seen = torch.arange(length) >= self.start[:, None]
        return ((causal & seen[:, None]) | torch.eye(length, dtype=torch.bool))[:, None]


class Fills:
    """What dropped units say: [L, H, D] of heads and [L, F, 1] of neurons. bases: [2, L, E], what is read of
    them all."""

    def __init__(self, weights: Weights | ChannelWeights, means: dict[SiteKey, Tensor]) -> None:
        """means: [U, D] of the layers and kinds where something stands in a dropped unit's place."""
        sizes = weights.sizes
        self.of: dict[str, Tensor] = {
            "head": torch.zeros(sizes.layers, sizes.heads, sizes.head_width, dtype=torch.float32),
            "neuron": torch.zeros(sizes.layers, sizes.neurons, 1, dtype=torch.float32),
        }
        self.some = bool(means)
        self.bases = torch.zeros(2, sizes.layers, sizes.width, dtype=torch.float32)
        for (layer, kind), values in means.items():
            self.of[kind][layer] = values
            assert isinstance(weights, Weights), "channels have no means here"
            rows = weights.output if kind == "head" else weights.down
            self.bases[0 if kind == "head" else 1, layer] = along(
                values.flatten()[None].float(), rows, layer
            )[0]


def prefill(
    weights: Weights,
    turns: tuple[Tensor, float] | None,
    prompt: Prompt,
    fills: Fills,
    planner: Planner,
) -> tuple[Tensor, list[Remembered]]:
    """-> the last norm's output [B, T, E], and what each layer leaves for the tokens to come: key-value heads
    that no head will need are not stored, nor computed where no head needs them now."""
    sizes = weights.sizes
    signals = {signal.layer: signal for signal in planner.signals}
    h, angles = embedded(weights, turns, prompt)
    left = []
    for layer in range(sizes.layers):
        if layer in signals:
            planner.decide(signals[layer], h)
        x = normed(weights, weights.attention_norm, layer, h)
        keep = planner.keep((layer, "head"))
        later = None if planner.decides_each_token else planner.plan.get((layer, "head"))
        said, remembered = attention(weights, layer, x, angles, prompt, fills, keep, later)
        left.append(remembered)
        h = h + said
        x = normed(weights, weights.neuron_norm, layer, h)
        h = h + neurons(weights, layer, x, fills, planner.keep((layer, "neuron")))
    return normed(weights, weights.last_norm, 0, h), left


def embedded(
    weights: Weights | ChannelWeights, turns: tuple[Tensor, float] | None, prompt: Prompt
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """-> what the first layer reads, float32 [B, T, E], and cosine and sine of the angles by which heads are
    turned, if any: [B, 1, T, D / 2] each."""
    h = read(weights.embedding, 0, prompt.ids.flatten()).view(*prompt.ids.shape, -1)
    if turns is None:
        return h + torch.from_numpy(weights.positions)[prompt.positions + weights.sizes.first], None
    frequencies, factor = turns
    turning = prompt.positions[..., None].float() * frequencies
    return h, ((turning.cos() * factor)[:, None], (turning.sin() * factor)[:, None])


def project(rows: In, bias: Tensor, layer: int, x: Tensor, lines: Tensor | None) -> Tensor:
    return across(x, rows, layer, lines, bias if lines is None else bias[lines])


def normed(weights: Weights | ChannelWeights, norms: Norms, layer: int, h: Tensor) -> Tensor:
    weight, bias = torch.from_numpy(norms.weight[layer]), torch.from_numpy(norms.bias[layer])
    if weights.sizes.centred:
        return F.layer_norm(h, h.shape[-1:], weight, bias, weights.sizes.epsilon)
    return F.rms_norm(h, h.shape[-1:], weight, weights.sizes.epsilon)


def staying(keep: Tensor | None) -> Tensor | None:
    """The numbers of the units that stay, where all rows and positions agree on them; else None."""
    if keep is None:
        return None
    lines = keep.view(-1, keep.shape[-1])
    return lines[0].nonzero()[:, 0] if len(lines) == 1 else None


def groups_of(keep: Tensor | None, sizes: Sizes) -> Tensor:
    """The numbers of the key-value heads that any head needs which stays anywhere."""
    if keep is None:
        return torch.arange(sizes.kv_heads)
    each = sizes.heads // sizes.kv_heads
    return keep.view(-1, sizes.kv_heads, each).any(2).any(0).nonzero()[:, 0]


def attention(
    weights: Weights,
    layer: int,
    x: Tensor,
    angles: tuple[Tensor, Tensor] | None,
    prompt: Prompt,
    fills: Fills,
    keep: Tensor | None,
    later: Tensor | None,
) -> tuple[Tensor, Remembered]:
    sizes = weights.sizes
    width, each = sizes.head_width, sizes.heads // sizes.kv_heads
    heads = staying(keep)
    agreed = heads is not None
    if heads is None:
        heads = torch.arange(sizes.heads)
    stored = groups_of(later, sizes)
    groups = groups_of(keep, sizes) if later is not None else stored

    def rows_of(units: Tensor, count: int) -> Tensor | None:
        return None if len(units) == count else (units[:, None] * width + torch.arange(width)).flatten()

    def split(rows: In, bias: str, units: Tensor, count: int) -> Tensor:
        added = torch.from_numpy(getattr(weights, bias)[layer])
        said = project(rows, added, layer, x, rows_of(units, count))
        return said.unflatten(-1, (len(units), width)).transpose(1, 2)  # [B, units, T, D]

    query = split(weights.query, "query_bias", heads, sizes.heads)
    key = split(weights.key, "key_bias", groups, sizes.kv_heads)
    value = split(weights.value, "value_bias", groups, sizes.kv_heads)
    if angles is not None:
        query, key = turned(query, angles), turned(key, angles)
    remembered = Remembered(stored, key, value, x)
    if len(stored) < len(groups):
        at = torch.isin(groups, stored)
        remembered = Remembered(stored, key[:, at], value[:, at], x)
    base = fills.bases[0, layer] + torch.from_numpy(weights.output_bias[layer])
    if not len(heads) or not len(groups):
        return base.expand_as(x), remembered
    slot = torch.full((sizes.kv_heads,), 0)
    slot[groups] = torch.arange(len(groups))
    of_head = slot[heads // each]
    context = F.scaled_dot_product_attention(
        query,
        key[:, of_head],
        value[:, of_head],
        attn_mask=prompt.mask,
        is_causal=prompt.mask is None,
        scale=sizes.scaling,
    ).transpose(1, 2)  # [B, T, heads, D]
    said = context - fills.of["head"][layer][heads] if fills.some else context
    if not agreed and keep is not None:
        said = said * keep[..., None]
    written = along(said.flatten(2), weights.output, layer, rows_of(heads, sizes.heads))
    return written.add_(base), remembered


def turned(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = angles
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def neurons(weights: Weights, layer: int, x: Tensor, fills: Fills, keep: Tensor | None) -> Tensor:
    lines = staying(keep)
    said = project(weights.up, torch.from_numpy(weights.up_bias[layer]), layer, x, lines)
    if weights.sizes.gated:
        gate = project(weights.gate, torch.from_numpy(weights.gate_bias[layer]), layer, x, lines)
        said = said.mul_(F.silu(gate, inplace=True))
    else:
        said = said.relu_()
    if fills.some:
        mean = fills.of["neuron"][layer, :, 0]
        said = said.sub_(mean if lines is None else mean[lines])
    if lines is None and keep is not None:
        said = said * keep
    base = fills.bases[1, layer] + torch.from_numpy(weights.down_bias[layer])
    return along(said, weights.down, layer, lines).add_(base)


def needed(memory: KeyValues, plan: Plan) -> list[Remembered]:
    """Of each layer, what tokens that follow this plan need of what the memory holds of all heads."""
    found = []
    for layer in range(memory.sizes.layers):
        groups = groups_of(plan.get((layer, "head")), memory.sizes)
        keys, values = (part[:, groups, : memory.length] for part in memory.of_layer(layer))
        found.append(Remembered(groups, keys, values))
    return found

"""A prompt through rows of inputs: torch's products, and planned at each projection's own input."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from shadow.executors.cpu.cache import Remembered
from shadow.executors.cpu.channels import ChannelWeights
from shadow.executors.cpu.prefill import Prompt, embedded, normed, turned
from shadow.executors.cpu.products import Products
from shadow.models.sites import SiteKey

Plan = Callable[[SiteKey, Tensor], Tensor]  # told a site and its input [B, T, U] -> what it becomes
Correct = Callable[[SiteKey, Tensor, Tensor], Tensor]  # and what is written of it, [B, T, N] -> that


def prefill_channels(
    weights: ChannelWeights,
    turns: tuple[Tensor, float] | None,
    prompt: Prompt,
    plan: Plan,
    correct: Correct,
    products: Products,
) -> tuple[Tensor, list[Remembered]]:
    """-> the last norm's output [B, T, E], and what each layer leaves for the tokens to come."""
    sizes = weights.sizes
    h, angles = embedded(weights, turns, prompt)
    groups, left = torch.arange(sizes.kv_heads), []
    heads = (sizes.heads, sizes.kv_heads, sizes.kv_heads)

    def through(slot: str, layer: int, x: Tensor) -> Tensor:
        bias = torch.from_numpy(getattr(weights, f"{slot}_bias")[layer])
        x = plan((layer, slot), x)
        return correct((layer, slot), x, products.along(x, getattr(weights, slot), layer).add_(bias))

    for layer in range(sizes.layers):
        x = through("qkv", layer, normed(weights, weights.attention_norm, layer, h))
        parts = x.split([count * sizes.head_width for count in heads], -1)
        query, key, value = (
            own.unflatten(-1, (count, -1)).transpose(1, 2) for own, count in zip(parts, heads)
        )
        if angles is not None:
            query, key = turned(query, angles), turned(key, angles)
        left.append(Remembered(groups, key, value))
        shared = torch.arange(sizes.heads) // (sizes.heads // sizes.kv_heads)
        context = F.scaled_dot_product_attention(
            query,
            key[:, shared],
            value[:, shared],
            attn_mask=prompt.mask,
            is_causal=prompt.mask is None,
            scale=sizes.scaling,
        ).transpose(1, 2)
        h = h + through("o", layer, context.flatten(2))
        x = through("gate_up", layer, normed(weights, weights.neuron_norm, layer, h))
        if sizes.gated:
            gate, up = x.chunk(2, -1)
            x = F.silu(gate) * up
        else:
            x = x.relu()
        h = h + through("down", layer, x)
    return normed(weights, weights.last_norm, 0, h), left

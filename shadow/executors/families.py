"""What a compiled decode step must know of a model: sizes, and where its weights are."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadow.errors import UserError
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers, linear_at
from shadow.models.neuron_paths import find_neuron_paths


class Sizes(NamedTuple):
    """E: `width`; D: `head_width`; F: `neurons`; gated: SiLU(gate) times up, instead of ReLU; centred: layer
    norm, instead of RMS; rotary: positions turn queries and keys, instead of being added to the embedding;
    first: the row of the first position in the table of those that are added."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    neurons: int
    vocabulary: int
    gated: bool
    centred: bool
    rotary: bool
    epsilon: float
    scaling: float
    first: int


class LayerParts(NamedTuple):
    """Modules of one layer; `up` is the first projection where there is no gate."""

    attention_norm: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    neuron_norm: nn.Module
    gate: nn.Linear | None
    up: nn.Linear
    down: nn.Linear


class Parts(NamedTuple):
    """Of a whole model. turns: the frequency of each pair of a head's numbers, [D / 2], and what cosines and
    sines are multiplied by."""

    layers: list[LayerParts]
    last_norm: nn.Module
    embedding: nn.Embedding
    head: nn.Linear
    positions: nn.Embedding | None
    turns: tuple[Tensor, float] | None


def llama_parts(model: PreTrainedModel) -> tuple[Sizes, Parts]:
    config, body = model.config, model.get_submodule("model")
    require(config.hidden_act == "silu", f"silu, and hidden_act={config.hidden_act!r}")
    rotary = body.get_submodule("rotary_emb")
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    require(kind in ("default", "linear", "llama3"), f"rotary positions that do not change, and has {kind!r}")
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = Sizes(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=head_width,
        neurons=config.intermediate_size,
        vocabulary=config.vocab_size,
        gated=True,
        centred=False,
        rotary=True,
        epsilon=config.rms_norm_eps,
        scaling=head_width**-0.5,
        first=0,
    )
    layers = layer_parts(model, "input_layernorm")
    frequencies = rotary.get_buffer("inv_freq").float()
    turns = (frequencies, float(getattr(rotary, "attention_scaling", 1.0)))
    return sizes, Parts(
        layers, body.get_submodule("norm"), _embedding(body, "embed_tokens"), _head(model), None, turns
    )


def opt_parts(model: PreTrainedModel) -> tuple[Sizes, Parts]:
    config, body = model.config, model.get_submodule("model.decoder")
    require(config.activation_function == "relu", f"relu, and has {config.activation_function!r}")
    require(config.do_layer_norm_before, "norms before attention and neurons, and this one has them after")
    require(
        config.word_embed_proj_dim == config.hidden_size,
        f"embeddings of the model's width, and this one has word_embed_proj_dim={config.word_embed_proj_dim}",
    )
    sizes = Sizes(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        head_width=config.hidden_size // config.num_attention_heads,
        neurons=config.ffn_dim,
        vocabulary=config.vocab_size,
        gated=False,
        centred=True,
        rotary=False,
        epsilon=1e-5,
        scaling=(config.hidden_size // config.num_attention_heads) ** -0.5,
        first=2,
    )
    layers = layer_parts(model, "self_attn_layer_norm")
    return sizes, Parts(
        layers,
        body.get_submodule("final_layer_norm"),
        _embedding(body, "embed_tokens"),
        _head(model),
        _embedding(body, "embed_positions"),
        None,
    )


def layer_parts(model: PreTrainedModel, attention_norm: str) -> list[LayerParts]:
    """attention_norm: its name in a layer; what reads and writes units, `shadow.models.sites` finds."""
    reads = {(site.layer, site.kind): site.module for site in find_sites(model)}
    found = []
    for index, (layer, path) in enumerate(zip(find_layers(model), find_neuron_paths(model))):
        *gate, up = path.writers
        found.append(
            LayerParts(
                attention_norm=layer.get_submodule(attention_norm),
                query=linear_at(layer, "self_attn.q_proj"),
                key=linear_at(layer, "self_attn.k_proj"),
                value=linear_at(layer, "self_attn.v_proj"),
                output=reads[index, "head"],
                neuron_norm=path.norm,
                gate=gate[0] if gate else None,
                up=up,
                down=reads[index, "neuron"],
            )
        )
    return found


FAMILIES: dict[str, Callable[[PreTrainedModel], tuple[Sizes, Parts]]] = {
    "opt": opt_parts,
    "llama": llama_parts,
}


def describe(model: PreTrainedModel) -> tuple[Sizes, Parts]:
    family = model.config.model_type
    if family not in FAMILIES:
        raise UserError(
            f"executor=gathered knows the families {sorted(FAMILIES)} and this model is of {family!r}: use "
            "executor=masked"
        )
    return FAMILIES[family](model)


def require(met: bool, wanted: str) -> None:
    if not met:
        raise UserError(f"executor=gathered needs {wanted}: use executor=masked")


def _head(model: PreTrainedModel) -> nn.Linear:
    found = model.get_output_embeddings()
    assert isinstance(found, nn.Linear)
    return found


def _embedding(owner: nn.Module, path: str) -> nn.Embedding:
    found = owner.get_submodule(path)
    assert isinstance(found, nn.Embedding)
    return found


def norm_of(module: nn.Module) -> tuple[Tensor, Tensor]:
    """-> weight and bias, float32 [E]; no bias is zeros."""
    weight = module.get_parameter("weight").detach().float()
    bias = getattr(module, "bias", None)
    return weight, torch.zeros_like(weight) if bias is None else bias.detach().float()

"""What a compiled decode step must know of a model: sizes, and where its weights are."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from shadow.errors import UserError
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers, linear_at, require_linear
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
    rotary = body.get_submodule("rotary_emb")
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
    """Of a model whose config `misfit` has nothing against."""
    if wrong := misfit(model.config) or _without_memory(model):
        raise UserError(wrong)
    return FAMILIES[model.config.model_type](model)


def misfit(config: PretrainedConfig) -> str | None:
    """What of a model's config.json the compiled step cannot follow, in one sentence."""
    if config.model_type not in FAMILIES:
        return (
            f"executor=gathered knows the families {sorted(FAMILIES)} and this model is of "
            f"{config.model_type!r}: use executor=masked"
        )
    rules = _llama_rules(config) if config.model_type == "llama" else _opt_rules(config)
    wanted = next((sentence for met, sentence in rules if not met), None)
    return None if wanted is None else f"executor=gathered needs {wanted}: use executor=masked"


def _llama_rules(config: PretrainedConfig) -> list[tuple[bool, str]]:
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return [
        (config.hidden_act == "silu", f"silu, and this model has hidden_act={config.hidden_act!r}"),
        (kind in ("default", "linear", "llama3"), f"rotary positions that do not change, and has {kind!r}"),
    ]


def _opt_rules(config: PretrainedConfig) -> list[tuple[bool, str]]:
    width = config.word_embed_proj_dim
    return [
        (config.activation_function == "relu", f"relu, and has {config.activation_function!r}"),
        (config.do_layer_norm_before, "norms before attention and neurons, and this one has them after"),
        (
            width == config.hidden_size,
            f"embeddings of the model's width, and this one has word_embed_proj_dim={width}",
        ),
        (
            config.layer_norm_elementwise_affine,
            "norms with weights, and this model has layer_norm_elementwise_affine=false",
        ),
        (
            not config._remove_final_layer_norm,
            "a norm behind the last layer, and this model has _remove_final_layer_norm=true",
        ),
    ]


def _without_memory(model: PreTrainedModel) -> str | None:
    """Weights that the compiled step cannot read where they are."""
    for name, values in model.named_parameters():
        if values.is_meta:
            return (
                f"executor=gathered reads all weights from memory, and {name} lies on disk: load the model "
                "without device_map (parallelize), or use executor=masked"
            )
        if type(values) is not nn.Parameter or not values.is_floating_point():
            found = f"{type(values).__name__} of {str(values.dtype)[6:]}"
            return (
                f"executor=gathered reads weights as plain floating-point numbers, and {name} is a {found}: "
                "load the model without quantisation, or use executor=masked"
            )
    return None


def _head(model: PreTrainedModel) -> nn.Linear:
    return require_linear(model.get_output_embeddings(), "the lm_head")


def _embedding(owner: nn.Module, path: str) -> nn.Embedding:
    found = owner.get_submodule(path)
    if not isinstance(found, nn.Embedding):
        raise UserError(
            f"executor=gathered needs a torch.nn.Embedding, and {path} of this model is a "
            f"{type(found).__name__}: use executor=masked"
        )
    return found


def norm_of(module: nn.Module) -> tuple[Tensor, Tensor]:
    """-> weight and bias, float32 [E]; no bias is zeros."""
    weight = module.get_parameter("weight").detach().float()
    bias = getattr(module, "bias", None)
    return weight, torch.zeros_like(weight) if bias is None else bias.detach().float()

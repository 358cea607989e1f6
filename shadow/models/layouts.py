"""Where each family of models keeps what the framework looks at: a row of module paths a family."""

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from shadow.errors import UserError


class Layout(NamedTuple):
    """Module paths of a family: the stack of layers, and in a layer the projections.

    attends: what reads attention's input, queries first; one projection where they are fused. head: what
    reads the heads. neuron: what reads the neurons, a projection, or experts whose weights lie in one
    parameter. writes: what writes the neurons; the first one's output, or its first half where it writes a
    gate and more in one, meets the non-linearity. Experts have none of their own. norm: what the projections
    that write neurons read; of several names the first that a layer has.
    """

    stack: str
    attends: tuple[str, ...]
    head: str
    neuron: str
    writes: tuple[str, ...]
    norm: tuple[str, ...]
    nonlinearity: str


SEPARATE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OPT = Layout(
    "model.decoder.layers",
    SEPARATE,
    "self_attn.out_proj",
    "fc2",
    ("fc1",),
    ("final_layer_norm",),
    "activation_fn",
)
LLAMA = Layout(
    "model.layers",
    SEPARATE,
    "self_attn.o_proj",
    "mlp.down_proj",
    ("mlp.gate_proj", "mlp.up_proj"),
    ("post_attention_layernorm",),
    "mlp.act_fn",
)
GEMMA = LLAMA._replace(norm=("pre_feedforward_layernorm",))
EXPERTS = LLAMA._replace(neuron="mlp.experts", writes=(), nonlinearity="mlp.experts.act_fn")

LAYOUTS = {
    "opt": OPT,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "gemma3": GEMMA._replace(stack="model.language_model.layers"),  # of its language model alone
    "phi3": LLAMA._replace(
        attends=("self_attn.qkv_proj",), writes=("mlp.gate_up_proj",), nonlinearity="mlp.activation_fn"
    ),
    "gpt_neox": Layout(
        "gpt_neox.layers",
        ("attention.query_key_value",),
        "attention.dense",
        "mlp.dense_4h_to_h",
        ("mlp.dense_h_to_4h",),
        ("post_attention_layernorm",),
        "mlp.act",
    ),
    "falcon": Layout(
        "transformer.h",
        ("self_attention.query_key_value",),
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        ("mlp.dense_h_to_4h",),
        ("ln_mlp", "post_attention_layernorm", "input_layernorm"),  # of 40b, of rw-1b, of 7b
        "mlp.act",
    ),
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS,
}


def require_layout(model_type: str) -> Layout:
    if model_type not in LAYOUTS:
        raise UserError(
            f"no layout for model_type {model_type!r}: add a row to shadow.models.layouts.LAYOUTS "
            f"(known: {sorted(LAYOUTS)})"
        )
    return LAYOUTS[model_type]


def is_gated(model_type: str) -> bool:
    """Whether what meets the non-linearity multiplies something else."""
    writes = require_layout(model_type).writes
    return not writes or len(writes) > 1 or "gate" in writes[0]


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"only a model of transformers itself can be sparse, got a {type(model).__name__}: give the "
            "model that it wraps, of an adapter by merge_and_unload()"
        )
    layout = require_layout(model.config.model_type)
    try:
        layers = model.get_submodule(layout.stack)
    except AttributeError as error:
        raise UserError(
            f"a model that speaks can be sparse, and {type(model).__name__} has no {layout.stack}: load it "
            "by AutoModelForCausalLM"
        ) from error
    assert isinstance(layers, nn.ModuleList)
    if (head := model.get_output_embeddings()) is not None:
        require_linear(head, "the lm_head")
    return layers


def linear_at(owner: nn.Module, path: str) -> nn.Linear:
    return require_linear(owner.get_submodule(path), path)


def require_linear(module: nn.Module, name: str) -> nn.Linear:
    """Refuse what an adapter or a quantisation has put in a projection's place."""
    if not isinstance(module, nn.Linear):
        raise UserError(
            f"units are read and written by torch.nn.Linear, and {name} of this model is a "
            f"{type(module).__module__}.{type(module).__name__}: merge an adapter by merge_and_unload(), or "
            "load the model without quantisation"
        )
    return module

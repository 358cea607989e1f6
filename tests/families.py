"""A tiny model of random weights of each family, made from its own config."""

from typing import NamedTuple

import torch
from transformers import AutoConfig, PreTrainedModel

from shadow.models.load import random_weights

PLAIN = {
    "vocab_size": 257,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GATED = PLAIN | {"num_key_value_heads": 2, "intermediate_size": 48}
OPT = PLAIN | {"ffn_dim": 48}
GEMMA = GATED | {
    "head_dim": 16,
    "sliding_window": 4,
    "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
}
EXPERTS = {"num_experts_per_tok": 2}


class Family(NamedTuple):
    """Where a family keeps its layers and what reads its units, by hand; group: heads on a key-value head."""

    config: dict
    stack: str
    head: str
    neuron: str
    group: int = 2
    experts: int = 1


LLAMA = ("model.layers", "self_attn.o_proj", "mlp.down_proj")
NEOX = ("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h")
FALCON = ("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h")
FAMILIES = {
    "opt-350m": Family(
        OPT | {"model_type": "opt", "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        *("model.decoder.layers", "self_attn.out_proj", "fc2"),
        group=1,
    ),
    "llama": Family(GATED | {"model_type": "llama"}, *LLAMA),
    "mistral": Family(GATED | {"model_type": "mistral", "sliding_window": 4}, *LLAMA),
    "qwen2": Family(GATED | {"model_type": "qwen2"}, *LLAMA),
    "qwen3": Family(GATED | {"model_type": "qwen3", "head_dim": 16}, *LLAMA),
    "gemma2": Family(GEMMA | {"model_type": "gemma2"}, *LLAMA),
    "gemma3_text": Family(GEMMA | {"model_type": "gemma3_text"}, *LLAMA),
    "gemma3": Family(
        {
            "model_type": "gemma3",
            "text_config": GEMMA | {"model_type": "gemma3_text"},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 256,
            "boi_token_index": 255,
            "eoi_token_index": 254,
        },
        *("model.language_model.layers", "self_attn.o_proj", "mlp.down_proj"),
    ),
    "phi3": Family(GATED | {"model_type": "phi3"}, *LLAMA),
    "pythia": Family(PLAIN | {"model_type": "gpt_neox", "intermediate_size": 48}, *NEOX, group=1),
    "neox-serial": Family(
        PLAIN | {"model_type": "gpt_neox", "intermediate_size": 48, "use_parallel_residual": False},
        *NEOX,
        group=1,
    ),
    "falcon-7b": Family(
        PLAIN | {"model_type": "falcon", "ffn_hidden_size": 48, "bias": False}, *FALCON, group=4
    ),
    "falcon-40b": Family(
        PLAIN
        | {
            "model_type": "falcon",
            "ffn_hidden_size": 48,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
        },
        *FALCON,
    ),
    "falcon-rw": Family(
        PLAIN
        | {"model_type": "falcon", "ffn_hidden_size": 48, "alibi": True, "multi_query": False}
        | {"parallel_attn": False, "bias": True},
        *FALCON,
        group=1,
    ),
    "mixtral": Family(
        GATED | EXPERTS | {"model_type": "mixtral", "num_local_experts": 4, "intermediate_size": 12},
        *("model.layers", "self_attn.o_proj", "mlp.experts"),
        experts=4,
    ),
    "qwen3_moe": Family(
        GATED | EXPERTS | {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 12},
        *("model.layers", "self_attn.o_proj", "mlp.experts"),
        experts=4,
    ),
}


def tiny(family: str, seed: int = 0) -> PreTrainedModel:
    """In evaluation mode, every weight frozen."""
    config = AutoConfig.for_model(**FAMILIES[family].config)
    return random_weights(config, seed, torch.float32).eval().requires_grad_(False)

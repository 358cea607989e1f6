"""What lm-eval's `hf` takes and a sparse model cannot follow: refused by name before the model is loaded."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from shadow.errors import UserError, first_line, require_whole
from shadow.models.numbers import require_dtype

PACKED = "its projections are another library's, packed, where no unit can be told from another"
# arguments that are refused whatever they say, and why
REFUSED = {
    "autogptq": PACKED,
    "gptqmodel": PACKED,
    "load_in_4bit": PACKED,
    "load_in_8bit": PACKED,
    "quantization_config": PACKED,
    "tp_plan": "each process would hold a part of every head and neuron",
}


KNOWN = ("cpu", "cuda", "mps")  # devices that hf takes for themselves


def check_arguments(pretrained: Any, executor: str, hf: Mapping[str, Any]) -> None:
    """hf: the arguments as `HFLM` is given them."""
    for name, reason in REFUSED.items():
        if hf.get(name):
            raise UserError(f"model_args: {name}={hf[name]} cannot be sparse, for {reason}: leave it out")
    if hf.get("backend", "default") not in ("default", "causal"):
        raise UserError(f"model_args: backend must be default or causal, got {hf['backend']!r}")
    if isinstance(pretrained, str):
        check_device(hf.get("device", "cuda"))
    elif not isinstance(pretrained, PreTrainedModel):
        raise UserError(
            f"model_args: pretrained must be a model's folder, or its id on the hub, got {pretrained!r}"
        )
    if hf.get("gpus") is not None:
        raise UserError(f"model_args: gpus={hf['gpus']} is what hf counts by itself: leave it out")
    if hf.get("max_length") is not None:
        require_whole("model_args: max_length", hf["max_length"], 1)
    for name in ("dtype", "softmax_dtype", "mixed_precision_dtype"):
        if isinstance(hf.get(name), str) and (name, hf[name]) != ("dtype", "auto"):
            require_dtype(f"model_args: {name}", hf[name])
    check_batch_size(hf.get("batch_size", 1))
    if hf.get("enable_thinking") and hf.get("think_end_token") is None:
        raise UserError("model_args: enable_thinking needs think_end_token, as in think_end_token=</think>")
    if hf.get("mixed_precision_dtype") and executor == "gathered":
        raise UserError(
            "model_args: executor=gathered computes in float32 whatever the storage: leave "
            f"mixed_precision_dtype out, got {hf['mixed_precision_dtype']}"
        )
    if hf.get("parallelize") and executor == "gathered":
        raise UserError(
            "model_args: executor=gathered reads the weights where they lie in one memory: leave parallelize "
            "out, or use executor=masked"
        )
    if hf.get("peft") and hf.get("delta"):
        raise UserError(f"model_args: leave one of peft and delta out, got {hf['peft']} and {hf['delta']}")
    if hf.get("peft"):
        check_adapter(hf["peft"], hf.get("revision", "main"))


def check_device(device: Any) -> None:
    """hf takes another device for one that it does not know."""
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise UserError(f"model_args: device must be as cpu or cuda:0, got {device!r}") from error
    if kind not in KNOWN:
        raise UserError(f"model_args: device must be as cpu or cuda:0, got {device!r}")
    if kind != "cpu" and not getattr(torch, kind).is_available():
        raise UserError(f"model_args: device={device}, and torch sees no such here: give --device cpu")


def check_batch_size(batch_size: Any) -> None:
    said, _, times = str(batch_size).partition(":")
    try:
        fits = (said == "auto" and (not times or float(times) > 0)) or (not times and int(said) >= 1)
    except ValueError:
        fits = False
    if not fits:
        raise UserError(
            f"batch_size must be a whole number of at least 1, auto, or as auto:4, got {batch_size!r}"
        )


def check_adapter(peft: str, revision: str) -> None:
    from peft import PeftConfig  # lm-eval's own, and seconds to import

    try:
        config = PeftConfig.from_pretrained(peft, revision=revision)
    except (ValueError, OSError) as error:
        raise UserError(
            f"model_args: peft={peft} must be a folder with adapter_config.json, or its id on the hub "
            f"({first_line(error)}): check the name and the network"
        ) from error
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA" or getattr(config, "alora_invocation_tokens", None):
        raise UserError(
            "model_args: peft must be a LoRA adapter for all tokens, which is merged into the weights, got "
            f"{kind} in {peft}: leave it out, or give a model into which it has been merged"
        )


def merged(adapted: Any) -> PreTrainedModel:
    """adapted: peft's model -> its own with the adapter in the weights: its projections are plain again."""
    model: PreTrainedModel = adapted.get_base_model()
    ends = [type(model.get_output_embeddings()), type(model.get_input_embeddings())]
    if model.config.get_text_config().tie_word_embeddings and ends != [nn.Linear, nn.Embedding]:
        raise UserError(
            "model_args: peft changes the embedding or the lm_head, which are one in this model, and cannot "
            "be merged into either alone: leave it out, or give a model whose tie_word_embeddings is false"
        )
    return adapted.merge_and_unload(safe_merge=True)

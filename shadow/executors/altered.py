"""Whether modules compute as their family does: compiled code goes past what was put on them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shadow import signals
from shadow.errors import UserError
from shadow.executors.families import LayerParts, Parts, Sizes, describe
from shadow.models.layouts import find_layers

# whose hooks are no change: transformers' stay on a model that was once asked for states
RECORDERS = ("transformers.utils.output_capturing", signals.__name__)
OURS = ("torch.nn.", "transformers.")
ACTIVATIONS = {True: ("SiLU", "SiLUActivation"), False: ("ReLU", "ReLUActivation")}  # by `gated`
CURE = "use executor=masked, which runs the modules as they are"


def require_unaltered(model: PreTrainedModel) -> None:
    for name, module in model.named_modules():
        if module is not model and (wrong := altered(module)):
            raise UserError(f"executor=gathered reads weights alone, and module {name} {wrong}: {CURE}")
    sizes, parts = describe(model)
    if wrong := odd_sizes(sizes, parts):
        raise UserError(f"executor=gathered goes by the model's config, which {wrong}: mend the config")
    odd = [
        odd_layer(layer, part, index, sizes)
        for index, (layer, part) in enumerate(zip(find_layers(model), parts.layers))
    ]
    for wrong in (*odd, odd_norm(parts.last_norm, sizes)):
        if wrong:
            raise UserError(
                f"executor=gathered computes as {model.config.model_type} does, and this model has {wrong}: "
                f"{CURE}"
            )


def altered(module: nn.Module) -> str | None:
    """What this module does beside its class's own forward; accelerate's hooks move tensors alone."""
    if hasattr(module, "_hf_hook"):
        return None
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if any(getattr(hook, "__module__", None) not in RECORDERS for hook in hooks):
        return "has a hook"
    if "forward" in vars(module):
        return "has a forward of its own"
    if not type(module).__module__.startswith(OURS) and not hasattr(module, "parametrizations"):
        return f"is a {type(module).__name__} of {type(module).__module__}"
    return None


def odd_layer(layer: nn.Module, part: LayerParts, index: int, sizes: Sizes) -> str | None:
    attention = layer.get_submodule("self_attn")
    for name, usual in (("scaling", sizes.scaling), ("is_causal", True), ("layer_idx", index)):
        found = getattr(attention, name, usual)
        if found != usual:
            return f"{name}={found} in the attention of layer {index}, not {usual}"
    for norm in (part.attention_norm, part.neuron_norm):
        if wrong := odd_norm(norm, sizes):
            return f"{wrong} in layer {index}"
    acts = [
        module
        for name, module in layer.named_modules()
        if name.rpartition(".")[2] in ("act_fn", "activation_fn")
    ]
    for act in acts:
        if type(act).__name__ not in ACTIVATIONS[sizes.gated]:
            return f"neurons of layer {index} that go through {type(act).__name__}"
    return None


def odd_norm(norm: nn.Module, sizes: Sizes) -> str | None:
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if getattr(norm, "weight", None) is None or epsilon != sizes.epsilon:
        return f"a norm ({type(norm).__name__}) of epsilon={epsilon}, not {sizes.epsilon}"
    return None


def odd_sizes(sizes: Sizes, parts: Parts) -> str | None:
    shapes = {
        "vocabulary": (sizes.vocabulary, parts.head.out_features),
        "neurons": (sizes.neurons, parts.layers[0].up.out_features),
        "width": (sizes.width, parts.head.in_features),
        "heads": (sizes.heads * sizes.head_width, parts.layers[0].output.in_features),
    }
    for name, (told, there) in shapes.items():
        if told != there:
            return f"tells {name} of {told} in all, where the weights have {there}"
    return None


class Place(NamedTuple):
    name: str
    module: nn.Module
    children: tuple[nn.Module | None, ...]
    weights: tuple[tuple[int, int, int], ...]
    copied: tuple[tuple[Tensor, Tensor], ...]


class Unchanged:
    """What a block has found at its beginning, and holds in a layout of its own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.places = [
            Place(name, module, children_of(module), weights_of(module), copies_of(module))
            for name, module in model.named_modules()
        ]

    def require(self) -> None:
        """Before each prompt."""
        for name, module, children, weights, copied in self.places:
            same = children_of(module) == children and weights_of(module) == weights
            same = same and all(torch.equal(now, before) for now, before in copied)
            if not same or (module is not self.model and altered(module)):
                what = f"module {name}" if name else "the model"
                raise UserError(
                    f"{what} was changed inside the block, which holds it as it was: end the block, change "
                    "it, and open another, or use executor=masked"
                )


def children_of(module: nn.Module) -> tuple[nn.Module | None, ...]:
    return tuple(module._modules.values())


def weights_of(module: nn.Module) -> tuple[tuple[int, int, int], ...]:
    """Where a module's own parameters lie, and how often they were written to."""
    return tuple(
        (id(one), one.data_ptr(), 0 if one.is_inference() else one._version)
        for one in module._parameters.values()
        if one is not None
    )


def copies_of(module: nn.Module) -> tuple[tuple[Tensor, Tensor], ...]:
    """Norms and biases, which are small: `.data` is written to without a trace."""
    small = [one for one in module._parameters.values() if one is not None and one.dim() == 1]
    return tuple((one, one.detach().clone()) for one in small)

"""How neurons come about from the residual stream, for scorers that copy the weights which write them."""

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from shadow.errors import UserError
from shadow.models.layouts import find_layers, linear_at, require_layout


class NeuronPath(NamedTuple):
    """How neurons come about from x = norm(stream): nonlinearity(first(x)), times second(x) if any.

    A writer of twice as many rows as there are neurons is both: first the gate's rows.
    """

    norm: nn.Module
    writers: tuple[nn.Linear, ...]
    nonlinearity: nn.Module
    neurons: int


def find_neuron_paths(model: PreTrainedModel) -> list[NeuronPath]:
    """Of every layer, in order."""
    layout = require_layout(model.config.model_type)
    if not getattr(model.config, "do_layer_norm_before", True):  # as in opt-350m
        raise UserError(
            "what neurons read is not the norm that shadow.models.layouts.LAYOUTS names: this model norms "
            "after"
        )
    if not layout.writes:
        raise UserError(
            f"the neurons of {model.config.model_type} are those of experts, which no projection of their "
            "own writes: use another scorer than svd"
        )
    paths = []
    for layer in find_layers(model):
        norm = next(name for name in layout.norm if hasattr(layer, name))
        writers = tuple(linear_at(layer, path) for path in layout.writes)
        neurons = linear_at(layer, layout.neuron).in_features
        paths.append(
            NeuronPath(layer.get_submodule(norm), writers, layer.get_submodule(layout.nonlinearity), neurons)
        )
    return paths

"""A frozen language model of which each process holds a part of every weight: PyTorch's FSDP2."""

import logging
import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def share(model: PreTrainedModel, layers: nn.ModuleList, device: torch.device) -> None:
    """Leave this process its part on the device. A layer is whole while it runs, and what is outside of the
    layers during each pass; of every pass all processes must make as many, forward and backward."""
    # OPT's layers return a view; nothing writes into it
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    held = sum(part_of(values).numel() for values in model.parameters())
    said = "process %d holds %d of %d parameters"
    log.info(said, dist.get_rank(), held, model.num_parameters(), extra={"every_rank": True})


def part_of(values: Tensor) -> Tensor:
    """What this process holds of a weight."""
    return values.to_local() if isinstance(values, DTensor) else values


def whole(values: Tensor) -> Tensor:
    """All of a weight; if it is shared, every process must ask for it."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def anywhere(model: PreTrainedModel, here: bool) -> bool:
    """Whether it is so in any of the processes that share this model, if they do."""
    if not isinstance(model, FSDPModule):
        return here
    found = torch.tensor(here, device=model.device, dtype=torch.int32)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)

"""What can be known of a run before its model is loaded: by this, methods and executors refuse."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from transformers import PretrainedConfig

from shadow.models.sites import Kind, Point
from shadow.plans.policy import SparsityPolicy

DecidedAt = Literal["token", "prompt", "sequence"]


class Traits(NamedTuple):
    """What must be known of a scorer to plan by it.

    name: for messages. kinds: what it scores. points: the tensors that it reads; none: its scores are the
    same for every token. looks: whether it must see a sample, or a prompt, before the sparse pass. steps: how
    many times it scores in one pass, each time other layers. first: the first layer that it scores. pooled:
    whether it reads whole prompts and scores no single token. compiled: whether a compiled step can ask it:
    nets of this framework's own, and |x| of channels. scaled: whether channels' |x| is times a factor of
    each. by_criterion: whether it goes by the criterion of the
    job, so that what a dropped unit says may be the mean that the criterion measures from. stands_in: what a
    stand-in that it brings puts in dropped units' places: `zero`, `mean` for constants, or that stand-in's
    name; empty: it brings none.
    """

    name: str
    kinds: frozenset[Kind]
    points: frozenset[Point] = frozenset()
    looks: bool = False
    steps: int = 0
    first: int = 0
    pooled: bool = False
    compiled: bool = False
    scaled: bool = False
    by_criterion: bool = True
    stands_in: str = ""


@dataclass(frozen=True)
class Facts:
    """config: the model's own. group: query heads that share a key-value head. experts: of a layer; 1 where
    there are none. device: `cpu` or `cuda`. dtype: of the weights as they are run, as `float32`. stand_in:
    what is put in dropped units' places: `zero`, `mean` for constants, or the stand-in's name. corrects:
    whether the stand-in also changes what is written behind dropped units."""

    policy: SparsityPolicy
    decided_at: DecidedAt
    scorer: Traits
    config: PretrainedConfig
    layers: int
    group: int = 1
    experts: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    stand_in: str = "zero"
    corrects: bool = False

"""The method of a job with all that it learns, each part found or made on the way."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig

from shadow.jobs import ingredients, learnt, policies, stores
from shadow.models.load import LM
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import StandIn
from shadow.scorers.protocol import Scorer


class Prepared(NamedTuple):
    scorer: Scorer
    policy: SparsityPolicy
    stand_in: StandIn


def prepared(cfg: DictConfig, lm: LM, loggers: Sequence[Any]) -> Prepared:
    """loggers: of what is fitted."""
    scorer = ingredients.get_scorer(cfg, lm, loggers)
    stand_in = stores.get_stand_in(cfg, lm, scorer)
    policy = policies.get_policy(cfg, lm, scorer, stand_in)
    policy, stand_in = learnt.with_learnt(cfg, lm, scorer, policy, stand_in, list(loggers))
    return Prepared(scorer, policy, stand_in)

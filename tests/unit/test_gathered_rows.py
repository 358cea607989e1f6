"""Many positions through rows of heads and neurons in one compiled call."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shadow.executors.cpu.row_blocks import RowBlocks
from shadow.executors.gathered import Gathered
from shadow.front import sparse
from shadow.models.cache_name import cache_of, named_cache
from shadow.models.kinds import find_sites
from shadow.models.load import LM, random_llama, random_opt
from shadow.models.sites import KINDS
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.nets import TapNet
from shadow.scorers.predicted import Predicted

CASES = {
    "everything": ("llama", 4, "int4", None, "token", SparsityPolicy(0.0)),
    "one plan": ("opt", 8, "int8", None, "token", SparsityPolicy(0.5)),
    "of each prompt": ("llama", 2, "int4", [1, 2], "prompt", SparsityPolicy(0.5)),
    "of each token": ("opt", 2, "int4", [1, 2], "token", SparsityPolicy(0.3)),
    "behind prompts": ("llama", 4, "int8", [0], "token", SparsityPolicy(0.5, tokens="decode")),
}
MANY = "shadow.executors.cpu.gathered.MANY"


def lm_of(family: str, heads: int) -> LM:
    if family == "opt":
        lm = random_opt(3, 64, heads, 80, 256, 0, torch.float32, None)
    else:
        lm = random_llama(3, 64, heads, 2, 80, 256, 0, torch.float32, None)
    lm.model.eval().requires_grad_(False)
    return lm


def scorer_of(lm: LM, taps: list[int] | None, make_net: Callable[..., TapNet]) -> Fixed | Predicted:
    if taps is None:
        return Fixed(random_scores(find_sites(lm.model), 0))
    return Predicted(make_net(lm, taps), "scores")


def in_calls(lm: LM, ids: Tensor, mask: Tensor, ends: list[int]) -> list[Tensor]:
    """-> logits [B, T, V] of each call."""
    found, cache, start = [], {}, 0
    for stop in ends:
        output = lm.model(ids[:, start:stop], attention_mask=mask[:, :stop], **cache)
        found.append(output.logits)
        cache, start = named_cache(cache_of(output)), stop
    return found


def require_close(found: list[Tensor], expected: list[Tensor], real: list[Tensor]) -> None:
    """States that differ in their last bit may be rounded to other neighbours, which all later positions of
    the row see: of each call some agree."""
    for one, other, counts in zip(found, expected, real, strict=True):
        apart = ((one - other).abs().amax(-1) / other.std())[counts.bool()]
        assert (apart < 1e-4).float().mean() > 0.3
        assert apart.max() < 0.5


@pytest.mark.parametrize("case", CASES)
def test_many_positions_at_once_are_those_that_come_one_by_one(make_net, monkeypatch, case):
    """A draft behind a prompt, and a token of each row, of which one begins later. Heads of 8, 16 and 32."""
    family, heads, storage, taps, decided_at, policy = CASES[case]
    lm = lm_of(family, heads)
    ids = torch.randint(5, 250, (2, 18), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    scorer, found, read = scorer_of(lm, taps, make_net), [], []
    for many in (2, 1000):
        monkeypatch.setattr(MANY, many)
        with sparse(lm.model, scorer, policy, decided_at, executor=Gathered(storage)) as run:
            assert isinstance(run.in_blocks, RowBlocks)
            found.append(in_calls(lm, ids, mask, [12, 17, 18]))
            read.append([run.achieved(kind) for kind in KINDS])
    assert read[0] == pytest.approx(read[1], rel=0.02)
    require_close(found[0], found[1], [*mask.split([12, 5, 1], 1)])


@pytest.mark.parametrize("case", ["everything", "one plan"])
def test_a_prompt_is_what_its_tokens_are_one_by_one(make_net, case):
    family, heads, storage, taps, decided_at, policy = CASES[case]
    lm = lm_of(family, heads)
    ids = torch.randint(5, 250, (1, 12), generator=torch.Generator().manual_seed(2))
    with sparse(lm.model, scorer_of(lm, taps, make_net), policy, decided_at, executor=Gathered(storage)):
        whole = in_calls(lm, ids, torch.ones_like(ids), [12])
        single = in_calls(lm, ids, torch.ones_like(ids), [*range(1, 13)])
    require_close(whole, [torch.cat(single, 1)], [torch.ones_like(ids)])


def test_a_short_text_behind_a_long_one_is_what_it_is_alone(make_net):
    """The long one leaves room for more columns, in which the short one's lie otherwise."""
    family, heads, storage, taps, decided_at, policy = CASES["everything"]
    lm = lm_of(family, heads)
    ids = torch.randint(5, 250, (1, 90), generator=torch.Generator().manual_seed(3))
    short, found = ids[:, :20], []
    for before in ([], [ids]):
        with sparse(lm.model, scorer_of(lm, taps, make_net), policy, decided_at, executor=Gathered(storage)):
            for one in before:
                lm.model(one)
            found.append(lm.model(short).logits)
    assert torch.equal(*found)

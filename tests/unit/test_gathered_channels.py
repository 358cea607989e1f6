"""The gathered executor reads rows of the inputs that stay, decided at each projection's own input."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shadow.data.batches import Batch
from shadow.errors import UserError
from shadow.executors.cpu.matrices import rounded
from shadow.executors.gathered import Gathered
from shadow.fit.thresholds import learn
from shadow.front import sparse
from shadow.models.cache_name import cache_of, named_cache
from shadow.models.kinds import find_sites
from shadow.models.load import LM
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Learnt, Mean, Zero
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.inputs import InputMagnitude, InputNorm

POLICIES = {
    "top": SparsityPolicy(0.5),
    "thresholds": SparsityPolicy(0.4, scope="threshold"),
    "some slots": SparsityPolicy(0.5, slots=("o", "down"), dense_layers=()),
    "decode": SparsityPolicy(0.5, tokens="decode"),
}


def prompts(rows: int, length: int) -> Tensor:
    return torch.randint(5, 250, (rows, length), generator=torch.Generator().manual_seed(rows))


def fed(lm: LM, ids: Tensor, prompt: int = 10) -> Tensor:
    """-> logits [T, B, V] of the prompt's last position and of those behind it, given one by one."""
    first = lm.model(ids[:, :prompt])
    cache, found = cache_of(first), [first.logits[:, -1]]
    for new in ids[:, prompt:].split(1, 1):
        found.append(lm.model(new, **named_cache(cache)).logits[:, -1])
    return torch.stack(found).float()


def of_rounded_weights(lm: LM, make_lm, storage: str) -> LM:
    """A float32 model whose weights are what the storage makes of them: by 32 inputs, however they lie."""
    found = make_lm(lm.model.config.model_type)
    for name, weight in found.model.named_parameters():
        if weight.dim() == 2 and "embed_positions" not in name:
            weight.data = rounded(weight, storage, turned=False)
    return found


def batches(ids: Tensor) -> list[Batch]:
    lengths = torch.full((len(ids),), ids.shape[1])
    return [Batch(ids, lengths, lengths, ids.roll(-1, 1))]


def learnt_behind(lm: LM, policy: SparsityPolicy) -> Learnt:
    sites, draw = find_sites(lm.model, ["channel"]), torch.Generator().manual_seed(0)
    stand_in = Learnt([site for site in sites if policy.prunes(site.key)], Zero())
    for values in stand_in.parameters():
        values.data += 0.2 * torch.randn(values.shape, generator=draw)
    return stand_in


@pytest.mark.parametrize("rule", ["thresholds", "some slots", "decode"])
def test_both_executors_change_what_is_written_behind_the_channels(lm, make_lm, rule):
    """OPT has biases, which the factors change too."""
    ids, policy, scorer = prompts(2, 18), POLICIES[rule], InputMagnitude()
    weights = of_rounded_weights(lm, make_lm, "int4")
    if policy.scope == "threshold":
        policy = replace(
            policy, thresholds=learn(weights.model, scorer, policy, "token", Zero(), batches(ids))
        )
    stand_in = learnt_behind(lm, policy)
    with sparse(weights.model, scorer, policy, stand_in=stand_in) as run:
        expected, read = fed(weights, ids), run.bytes()
    executor = Gathered("int4", states="float32")
    with sparse(lm.model, scorer, policy, stand_in=stand_in, executor=executor) as run:
        found, also_read = fed(lm, ids), run.bytes()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert also_read == read
    with sparse(lm.model, scorer, policy, executor=executor):
        assert (fed(lm, ids) - found).abs().max() > 0.1


@pytest.mark.parametrize(
    ("storage", "rule", "recipe"),
    [
        *(("int4", rule, InputMagnitude()) for rule in POLICIES),
        ("int8", "thresholds", InputMagnitude()),
        ("int4", "thresholds", InputNorm()),
        ("int4", "some slots", InputNorm()),
    ],
)
def test_both_executors_keep_the_same_channels(lm, make_lm, storage, rule, recipe):
    """Of a model of the same rounded weights, and with states that are not rounded."""
    ids, policy = prompts(2, 18), POLICIES[rule]
    weights = of_rounded_weights(lm, make_lm, storage)
    scorer = recipe.build(weights.model, None)
    if policy.scope == "threshold":
        learnt = learn(weights.model, scorer, policy, "token", Zero(), batches(ids))
        policy = SparsityPolicy(0.4, scope="threshold", thresholds=learnt)
    with sparse(weights.model, scorer, policy) as run:
        expected, kept, read = fed(weights, ids), run.achieved("channel"), run.bytes()
    with sparse(lm.model, scorer, policy, executor=Gathered(storage, states="float32")) as run:
        found, also_kept, also_read = fed(lm, ids), run.achieved("channel"), run.bytes()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert also_kept == kept
    assert also_read == read


def test_rounded_states_keep_as_many_and_give_nearly_the_same(tiny_llama):
    """A channel close to what parts them may stay in one alone: nearly the same is what one token gives, of
    which nearly all stay."""
    ids, one = prompts(2, 11), SparsityPolicy(1 / 32, dense_layers=(1, 2, 3))
    for policy, gone in ((SparsityPolicy(0.5), 0.5 * 3 / 4), (one, 1 / 32 / 4)):
        found = []
        for states in ("float32", "int8"):
            executor = Gathered("int4", states=states)
            with sparse(tiny_llama.model, InputMagnitude(), policy, executor=executor) as run:
                found.append(fed(tiny_llama, ids)[0])
            assert run.achieved("channel") == pytest.approx(gone)
    error = (found[1] - found[0]).square().mean().sqrt() / found[0].std()
    assert 1e-4 < error < 0.04


@pytest.mark.parametrize(
    ("family", "heads", "rule"), [("llama", 2, "thresholds"), ("opt", 4, "decode"), ("llama", 4, "top")]
)
def test_many_positions_at_once_are_those_that_come_one_by_one(make_lm, monkeypatch, family, heads, rule):
    """Heads of 16 numbers and of 8; rows that begin later; a draft behind a cache, a token of each row, and
    what is written behind. States that differ in their last bit may be rounded to other neighbours, or a
    channel go, which all later positions of the row see: of each call some agree."""
    lm, ids, policy, scorer = make_lm(family, heads=heads), prompts(2, 18), POLICIES[rule], InputMagnitude()
    if policy.scope == "threshold":
        policy = replace(policy, thresholds={site.key: 0.3 for site in find_sites(lm.model, ["channel"])})
    mask, found, read = torch.ones_like(ids), [], []
    mask[0, :3] = 0
    monkeypatch.setattr("shadow.executors.cpu.gathered.MANY_BY_CHANNELS", 1)
    for in_blocks in (True, False):
        stand_in = learnt_behind(lm, policy)
        with sparse(lm.model, scorer, policy, stand_in=stand_in, executor=Gathered("int4")) as run:
            run.in_blocks = run.in_blocks if in_blocks else None
            output, logits = None, []
            for start, stop in ((0, 12), (12, 17), (17, 18)):
                cache = {} if output is None else named_cache(cache_of(output))
                output = lm.model(ids[:, start:stop], attention_mask=mask[:, :stop], **cache)
                logits.append(output.logits)
            found.append(logits)
            read.append((run.bytes()["skipped"], run.achieved("channel")))
            last = lm.model(ids, attention_mask=mask, logits_to_keep=1).logits
            torch.testing.assert_close(last, lm.model(ids, attention_mask=mask).logits[:, -1:])
    assert read[0] == pytest.approx(read[1], rel=0.01)
    for one, other, real in zip(*found, mask.split([12, 5, 1], 1), strict=True):
        apart = ((one - other).abs().amax(-1) / other.std())[real.bool()]
        assert (apart < 1e-4).float().mean() > 0.3
        assert apart.max() < 0.5


@pytest.mark.parametrize(
    ("scorer", "policy", "settings", "message"),
    [
        (
            InputMagnitude(),
            SparsityPolicy(0.5),
            {"storage": None},
            "channels in executor.storage=int8 or int4",
        ),
        (InputMagnitude(), SparsityPolicy(0.5, slots=["lm_head"]), {}, "reads all inputs of the lm_head"),
        (InputMagnitude(), SparsityPolicy(0.5), {"compact": True}, "plans that stay"),
        (InputMagnitude(), SparsityPolicy(0.5, scope="global"), {}, "scope=global"),
    ],
)
def test_what_no_token_can_follow_is_refused(tiny_llama, scorer, policy, settings, message):
    executor = Gathered(**{"storage": "int4", **settings})
    with pytest.raises(UserError, match=message), sparse(tiny_llama.model, scorer, policy, executor=executor):
        pass


def test_channels_that_a_prompt_decides_and_means_in_their_place_are_refused(tiny_llama):
    executor, scorer, policy = Gathered("int4"), InputMagnitude(), SparsityPolicy(0.5)
    with (
        pytest.raises(UserError, match="about channels at each token"),
        sparse(tiny_llama.model, scorer, policy, "prompt", executor=executor),
    ):
        pass
    sites = find_sites(tiny_llama.model, ["channel"])
    means = Mean({site.key: torch.ones(site.units, 1) for site in sites})
    with (
        pytest.raises(UserError, match="nothing in the place of channels"),
        sparse(tiny_llama.model, scorer, policy, stand_in=means, executor=executor),
    ):
        pass


def test_stand_ins_of_ones_own_are_refused_not_left_out(tiny_llama):
    executor, policy = Gathered("int4"), SparsityPolicy(0.5)

    class Other(Zero):
        def __call__(self, site, x, keep):
            return x + 1

    of_heads = Fixed(random_scores(find_sites(tiny_llama.model), 0))
    for scorer, stand_in, message in (
        (InputMagnitude(), Other(), "nothing in the place of channels.*got Other"),
        (of_heads, Other(), "use sparsity.stand_in=zero or mean, .* got Other"),
        (of_heads, lambda *given: given[1], "got function"),
    ):
        with (
            pytest.raises(UserError, match=message),
            sparse(tiny_llama.model, scorer, policy, stand_in=stand_in, executor=executor),
        ):
            pass

"""A model on a GPU, made sparse by kernels; without a GPU it is on the CPU and they are interpreted."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

pytest.importorskip("triton", reason="Triton is not installed: pip install -e .[gpu] (Linux)")

from shadow.data.batches import collate
from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.executors.gpu.run import DeviceRun, on_device
from shadow.executors.planner import Planner
from shadow.front import facts_of, sparse, stand_in_of
from shadow.models.cache_name import named_cache
from shadow.models.kinds import find_sites
from shadow.models.load import LM
from shadow.models.sites import KINDS, count_units
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Learnt, Zero
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.inputs import InputMagnitude, InputNorm
from shadow.scorers.nets import NetShape, TapNet
from shadow.scorers.predicted import Predicted
from shadow.scorers.protocol import Scorer
from shadow.scorers.scaled import Scaled

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYERS = 3


@pytest.fixture(params=["opt", "llama"])
def lm(request: pytest.FixtureRequest, make_lm) -> LM:
    return on(make_lm(request.param, layers=LAYERS))


def on(lm: LM) -> LM:
    lm.model.to(DEVICE)
    return lm


def net(lm: LM, taps: list[int]) -> Predicted:
    """Random weights whose scores differ from token to token."""
    tapped = TapNet(
        taps, LAYERS, lm.model.config.hidden_size, count_units(find_sites(lm.model)), NetShape(8, 16, 1)
    )
    generator = torch.Generator().manual_seed(0)
    for name, values in tapped.state_dict().items():
        values.copy_(torch.randn(values.shape, generator=generator))
        if "scale" in name:
            values.abs_().mul_(0.1).add_(0.05)  # the states of tiny models are small
    return Predicted(tapped.eval(), "scores")


def means(lm: LM) -> dict:
    generator = torch.Generator().manual_seed(2)
    return {
        (site.layer, site.kind): torch.randn(
            site.units, site.module.in_features // site.units, generator=generator
        ).to(DEVICE)
        for site in find_sites(lm.model)
    }


def read_on(call: Callable, rows: int, tokens: int = 2, padding: int = 0) -> Tensor:
    """-> logits [B, tokens, V] after a prompt and after given tokens, so that one choice that falls otherwise
    does not change all that follows. padding: of the first row, on the left."""
    ids = torch.randint(1, 257, (rows, 6 + tokens), generator=torch.Generator().manual_seed(rows)).to(DEVICE)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found, logits = None, []
    for begin, end in [(0, 6), *((t, t + 1) for t in range(6, 5 + tokens))]:
        found = call(
            input_ids=ids[:, begin:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, begin:end],
            **named_cache(None if found is None else found.past_key_values),
            use_cache=True,
        )
        logits.append(found.logits[:, -1].float())
    return torch.stack(logits, 1)


def both(
    lm: LM, scorer: Scorer, policy: SparsityPolicy, decided_at: str, stand_in="zero", **how: int
) -> tuple[Tensor, Tensor]:
    """-> logits of the masked executor and of the GPU's, after checking that they skip the same share."""
    kinds = [kind for kind in (*KINDS, "channel") if kind in (policy.kinds or KINDS)]
    with sparse(lm.model, scorer, policy, decided_at, stand_in=stand_in) as run, torch.no_grad():
        expected, gone = read_on(lm.model, **how), [run.achieved(kind) for kind in kinds]
    planner = Planner(lm.model, scorer, policy, decided_at, stand_in_of(stand_in, scorer))
    with on_device(lm.model, planner) as run:
        found, also_gone = read_on(lm.model, **how), [run.achieved(kind) for kind in kinds]
    assert also_gone == gone
    assert all(gone)
    return found, expected


@pytest.mark.parametrize(
    ("lm", "decided_at", "rows"),
    [("opt", "token", 1), ("opt", "prompt", 4), ("llama", "token", 4), ("llama", "prompt", 1)],
    indirect=["lm"],
)
def test_the_gpus_logits_are_the_masked_executors(lm, decided_at, rows):
    found, expected = both(
        lm,
        net(lm, [1, 2]),
        SparsityPolicy(0.5),
        decided_at,
        means(lm),
        rows=rows,
        tokens=3 if rows == 1 else 2,
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_rows_that_are_padded_follow_thresholds(lm):
    sites = find_sites(lm.model)
    thresholds = {(site.layer, site.kind): 0.1 * site.layer - (site.kind == "head") * 0.4 for site in sites}
    policy = SparsityPolicy(0.5, scope="threshold", thresholds=thresholds)
    found, expected = both(lm, net(lm, [1]), policy, "token", rows=2, padding=3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "scope", "how"),
    [
        ("opt", "threshold", {"rows": 1, "tokens": 3}),
        ("llama", "threshold", {"rows": 4, "padding": 3}),
        ("llama", "layer", {"rows": 2}),
    ],
)
def test_channels_that_stay_say_what_the_masked_executor_says(make_lm, family, scope, how):
    """Above thresholds, with learnt factors behind them, or the highest at each token; layer 0 is dense."""
    lm = on(make_lm(family, layers=LAYERS))
    sites = find_sites(lm.model, ["channel"])
    scorer, policy = InputMagnitude(), SparsityPolicy(0.5, scope, kinds=("channel",))
    stand_in = Zero()
    if scope == "threshold":
        levels = {"qkv": 0.6, "o": 0.01, "gate_up": 0.6, "down": 0.001, "lm_head": 0.0}
        policy = replace(policy, thresholds={site.key: levels[site.slot] for site in sites})
        stand_in = Learnt([site for site in sites if policy.corrects(site)], Zero())
        for values in stand_in.parameters():
            drawn = torch.randn(values.shape, generator=torch.Generator().manual_seed(7))
            values.requires_grad_(False).add_(drawn.to(DEVICE) / 9)
    found, expected = both(lm, scorer, policy, "token", stand_in, **how)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_all_heads_of_a_layer_may_go(lm):
    policy = SparsityPolicy(0.75, min_units=0, scope="global")
    found, expected = both(lm, net(lm, [1]), policy, "prompt", rows=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_bfloat16_differs_by_its_rounding(make_lm, family):
    """What stays is the same for all tokens, so that nothing falls otherwise; the stream is float32 on the
    GPU and bfloat16 in the model, whose unit of rounding is 2**-8."""
    lm = on(make_lm(family, layers=LAYERS, dtype=torch.bfloat16))
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    found, expected = both(lm, scorer, SparsityPolicy(0.5), "token", rows=2)
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


def test_generating_goes_on_when_the_cache_is_full(make_lm, monkeypatch):
    lm = on(make_lm("llama", layers=2))
    monkeypatch.setattr("shadow.executors.gpu.cache.ROOM", 1)
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    ids = torch.randint(1, 257, (1, 2), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    how = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with sparse(lm.model, scorer, level=0.5):
        expected = lm.model.generate(ids, **how)
    with on_device(lm.model, Planner(lm.model, scorer, SparsityPolicy(0.5), "token", Zero())):
        assert torch.equal(lm.model.generate(ids, **how), expected)


def test_the_model_is_its_own_again_and_a_batch_is_read_as_by_the_masked_executor(lm, examples, hooks_on):
    batch, scorer, policy = collate(examples([7, 12])), net(lm, [1]), SparsityPolicy(0.5)
    batch = batch.to(DEVICE)
    with torch.no_grad():
        before = lm.model(input_ids=batch.ids).logits
    with sparse(lm.model, scorer, policy, "prompt") as run:
        expected = run.logits(batch)
    with on_device(lm.model, Planner(lm.model, scorer, policy, "prompt", Zero())) as run:
        assert torch.equal(run.logits(batch), expected)
    assert hooks_on(lm.model) == 0
    assert "forward" not in vars(lm.model)
    with torch.no_grad():
        torch.testing.assert_close(lm.model(input_ids=batch.ids).logits, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [("int8", "write_all", False), (None, "recompute", False), (None, "write_all", True)]
)
def test_settings_of_the_cpu_are_refused_on_a_gpu(lm, settings):
    policy = SparsityPolicy(0.5, kinds=["head", "neuron"])
    facts = replace(facts_of(lm.model, net(lm, [1]), policy, "token", Zero()), device="cuda")
    assert "leave storage, kv_policy and compact out" in str(Gathered(*settings).refuses(facts))
    assert Gathered().refuses(facts) is None


def test_what_the_gpu_cannot_do_is_refused(lm, make_lm):
    policy = SparsityPolicy(0.5, "global", kinds=["head", "neuron"])
    facts = replace(facts_of(lm.model, net(lm, [1]), policy, "token", Zero()), device="cuda")
    assert "scope=layer or threshold" in str(Gathered().refuses(facts))
    channels = SparsityPolicy(0.5, kinds=["channel"])
    for policy, said in [(channels, "None"), (replace(channels, slots=["lm_head"]), "inputs of the lm_head")]:
        facts = replace(facts_of(lm.model, InputMagnitude(), policy, "token", Zero()), device="cuda")
        assert said in str(Gathered().refuses(facts))
    factors = {site.key: torch.ones(site.units) for site in find_sites(lm.model, ["channel"])}
    facts = replace(
        facts_of(lm.model, Scaled("channel", "site", factors), channels, "token", Zero()), device="cuda"
    )
    for scorer in (facts.scorer, InputNorm().traits("l2_norm", LAYERS)):
        assert "has a factor of each" in str(Gathered().refuses(replace(facts, scorer=scorer)))
    double = on(make_lm("opt", layers=LAYERS, dtype=torch.float64))
    with pytest.raises(UserError, match="got float64"):
        DeviceRun(double.model, Planner(double.model, net(double, [1]), SparsityPolicy(0.5), "token", Zero()))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: on the CPU executor=gathered is numba's")
def test_a_model_on_a_gpu_is_run_by_the_kernels(lm):
    with sparse(lm.model, net(lm, [1]), level=0.5, executor=Gathered()) as run:
        assert isinstance(run, DeviceRun)


def test_the_callers_cache_is_filled_cropped_reordered_and_handed_on(make_lm):
    """By an own loop that keeps the cache it gave, over a repeated row, to the dense model and back."""
    lm = on(make_lm("llama", layers=2))
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    ids = torch.randint(1, 257, (2, 9), generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def turns(block) -> list[Tensor]:
        cache, said = DynamicCache(config=lm.model.config), []
        with block():
            lm.model(ids[:, :5], **named_cache(cache))
            said.append(lm.model(ids[:, 5:7], **named_cache(cache)).logits)
            cache.crop(-1)
            cache.reorder_cache(torch.tensor([1, 1]).to(DEVICE))
            said.append(lm.model(ids[:, 6:7], **named_cache(cache)).logits)
        said.append(lm.model(ids[:, 7:8], **named_cache(cache)).logits)
        with block():
            said.append(lm.model(ids[:, 8:], **named_cache(copy.deepcopy(cache))).logits)
        return said

    expected = turns(lambda: sparse(lm.model, scorer, level=0.5))
    found = turns(
        lambda: on_device(lm.model, Planner(lm.model, scorer, SparsityPolicy(0.5), "token", Zero()))
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

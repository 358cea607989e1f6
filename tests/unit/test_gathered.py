"""The gathered executor does what the masked one does."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from shadow.data.batches import Example, collate
from shadow.errors import UserError
from shadow.executors.cache_layer import memory_of
from shadow.executors.cpu.cache import KeyValues
from shadow.executors.cpu.gathered import GatheredRun
from shadow.executors.cpu.lined_up import LINE
from shadow.executors.cpu.matrices import read, rounded
from shadow.executors.cpu.storage import CHUNK, adds, allocate, dots, put
from shadow.executors.cpu.weights import pack
from shadow.executors.gathered import Gathered
from shadow.executors.masked import Masked
from shadow.executors.options import BITS, OWN
from shadow.executors.run import Run
from shadow.front import sparse
from shadow.models.cache_name import cache_of, named_cache
from shadow.models.kinds import find_sites
from shadow.models.load import LM
from shadow.models.sites import KINDS, SiteKey
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.nets import TapNet
from shadow.scorers.oracle import Oracle
from shadow.scorers.predicted import Predicted
from shadow.signals import Signal

TOKENS = 64
PLANS = {
    "static": ("static", "token", SparsityPolicy(0.5)),
    "one tap": ([1], "token", SparsityPolicy(0.5)),
    "three taps": ([1, 2, 3], "token", SparsityPolicy(0.3)),
    "no hidden layers": ("linear", "token", SparsityPolicy(0.5)),
    "heads": ([1], "token", SparsityPolicy(0.5, kinds=("head",))),
    "at the prompt": ([1, 2], "prompt", SparsityPolicy(0.5)),
    "over all layers": ([1], "prompt", SparsityPolicy(0.5, scope="global")),
    "a layer ahead": ("ahead", "token", SparsityPolicy(0.5)),
    "all heads of a layer": ([1], "prompt", SparsityPolicy(0.75, min_units=0)),
}


@pytest.fixture
def make_scorer(make_net: Callable[..., TapNet]) -> Callable[..., Predicted | Fixed]:
    """make_scorer(lm, taps or `static` or `linear`): random nets whose scores differ from token to token."""

    def make(lm: LM, what: str | list[int]) -> Predicted | Fixed:
        if what == "static":
            return Fixed(random_scores(find_sites(lm.model), 0))
        if what == "ahead":
            return Predicted(make_net(lm, [0, 1], ahead=1), "scores")
        net = make_net(lm, [1], depth=0) if what == "linear" else make_net(lm, what)
        return Predicted(net, "scores")

    return make


def thresholds(lm: LM) -> dict[SiteKey, float]:
    """Others for each layer and kind."""
    return {
        (site.layer, site.kind): 0.1 * site.layer - (site.kind == "head") * 0.4
        for site in find_sites(lm.model)
    }


def means(lm: LM) -> dict[SiteKey, Tensor]:
    draw = torch.Generator().manual_seed(2)
    return {
        (site.layer, site.kind): torch.randn(
            site.units, site.module.in_features // site.units, generator=draw
        )
        for site in find_sites(lm.model)
    }


def fed(lm: LM, ids: Tensor, prompt: int = 10) -> Tensor:
    """-> logits [T, B, V] of the positions behind a prompt, given one by one."""
    cache, found = lm.model(ids[:, :prompt]).past_key_values, []
    for new in ids[:, prompt:].split(1, 1):
        found.append(lm.model(new, past_key_values=cache).logits[:, -1])
    return torch.stack(found).float()


def generate(lm: LM, ids: Tensor, mask: Tensor | None = None, tokens: int = TOKENS, **more: object) -> Tensor:
    """-> logits [tokens, B, V] of a greedy generation, after checking its length."""
    found = lm.model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **more,
    )
    assert found.sequences.shape[1] == ids.shape[1] + tokens
    return torch.stack(found.logits).float()


def prompts(rows: int, length: int = 10) -> Tensor:
    return torch.randint(1, 257, (rows, length), generator=torch.Generator().manual_seed(rows))


def skipped(run: Run) -> list[float]:
    return [run.achieved(kind) for kind in KINDS]


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("plan", PLANS)
def test_both_executors_generate_from_the_same_logits(lm, make_scorer, plan, rows):
    what, decided_at, policy = PLANS[plan]
    scorer, ids = make_scorer(lm, what), prompts(rows)
    with sparse(lm.model, scorer, policy, decided_at) as run:
        expected, gone = generate(lm, ids), skipped(run)
    with sparse(lm.model, scorer, policy, decided_at, executor=Gathered()) as run:
        found, also_gone = generate(lm, ids), skipped(run)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert also_gone == gone


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("decided_at", ["token", "prompt"])
def test_a_prompt_that_is_read_densely_leaves_the_dense_models_keys(lm, make_scorer, decided_at, rows):
    """The reference reads the prompt without this framework, and goes on with its cache."""
    scorer, ids, new = make_scorer(lm, [1]), prompts(rows), prompts(rows, length=1)
    with sparse(lm.model, scorer, SparsityPolicy(0.5), decided_at) as run:
        lm.model(ids)  # one tap before the first sparse layer: its plan is that of a dense prompt
        planned = dict(run.plan)
    dense = lm.model(ids)
    at_token = decided_at == "token"
    with sparse(lm.model, scorer if at_token else Fixed({}), level=0.5 if at_token else 0) as run:
        run.planner.plan = planned
        expected = lm.model(new, **named_cache(cache_of(dense))).logits
        gone = skipped(run)
    for executor in (Masked(), Gathered()):
        with sparse(
            lm.model, scorer, SparsityPolicy(0.5, tokens="decode"), decided_at, executor=executor
        ) as run:
            read = lm.model(ids)
            torch.testing.assert_close(read.logits, dense.logits, rtol=1e-4, atol=1e-5)
            assert skipped(run) == [0, 0]
            found = lm.model(new, **named_cache(cache_of(read))).logits
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert skipped(run) == pytest.approx(
                [share / 11 for share in gone]
            )  # of 11 tokens one was sparse


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("plan", ["static", "three taps", "at the prompt", "over all layers"])
def test_both_executors_go_on_from_a_dense_prompt_alike(lm, make_scorer, plan, rows):
    what, decided_at, policy = PLANS[plan]
    scorer, ids = make_scorer(lm, what), prompts(rows)
    found = []
    for executor in (Masked(), Gathered()):
        with sparse(lm.model, scorer, replace(policy, tokens="decode"), decided_at, executor=executor) as run:
            found.append((generate(lm, ids, tokens=16), skipped(run)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    assert found[1][1] == found[0][1]


@pytest.mark.parametrize("decided_at", ["token", "prompt"])
def test_of_a_batch_only_what_is_behind_the_prompts_is_sparse(lm, make_scorer, examples, decided_at):
    batch, scorer = collate(examples([7, 12, 9])), make_scorer(lm, [1])
    dense = lm.model(batch.ids).logits
    found = []
    for executor in (Masked(), Gathered()):
        with sparse(
            lm.model, scorer, SparsityPolicy(0.5, tokens="decode"), decided_at, executor=executor
        ) as run:
            logits = run.logits(batch)
            found.append((logits[batch.real()], skipped(run)))
        inside, behind = batch.in_prompt(), batch.real() & ~batch.in_prompt()
        torch.testing.assert_close(logits[inside], dense[inside], rtol=1e-4, atol=1e-5)
        assert (logits[behind] - dense[behind]).abs().max() > 1e-3
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    assert found[1][1] == found[0][1]


@pytest.mark.parametrize("decided_at", ["token", "prompt"])
def test_both_executors_let_means_stand_in_and_follow_thresholds(lm, make_scorer, decided_at):
    policy = SparsityPolicy(0.5, scope="threshold", thresholds=thresholds(lm))
    scorer, ids, fill = make_scorer(lm, [1, 2]), prompts(2), means(lm)
    with sparse(lm.model, scorer, policy, decided_at, stand_in=fill) as run:
        expected, gone = generate(lm, ids), skipped(run)
    with sparse(lm.model, scorer, policy, decided_at, stand_in=fill, executor=Gathered()) as run:
        found, also_gone = generate(lm, ids), skipped(run)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert also_gone == gone
    assert all(0 < share < 1 for share in gone)


@pytest.mark.parametrize("executor", [Masked(), Gathered()], ids=["masked", "gathered"])
def test_who_would_hear_of_a_prompts_scores_is_told_once(lm, make_scorer, executor):
    told = []
    with sparse(lm.model, make_scorer(lm, [1]), SparsityPolicy(0.5), "prompt", executor=executor) as run:
        run.planner.on_scores = lambda signal, scores: told.append(signal)
        generate(lm, prompts(2))
    assert told == [Signal(1, "layer_input")]


@pytest.mark.parametrize("executor", [Masked(), Gathered()], ids=["masked", "gathered"])
def test_level_zero_is_the_dense_model(lm, make_scorer, executor):
    ids = prompts(2)
    dense = generate(lm, ids)
    with sparse(lm.model, make_scorer(lm, [1]), level=0.0, executor=executor) as run:
        found = generate(lm, ids)
        assert skipped(run) == [0, 0]
    torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-5)


def test_keys_that_are_computed_late_are_the_keys_that_are_written_at_once(lm, make_scorer):
    scorer, ids = make_scorer(lm, [1, 2]), prompts(3)
    found = []
    for kv_policy in ("write_all", "recompute"):
        with sparse(lm.model, scorer, level=0.5, executor=Gathered(kv_policy=kv_policy)):
            found.append(generate(lm, ids))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_policy", ["write_all", "recompute"])
@pytest.mark.parametrize("threads", [1, 2])
def test_generation_agrees_with_reading_everything_from_scratch(lm, make_scorer, kv_policy, threads):
    """At each token, what a cache leaves out would change the logits."""
    asked = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with sparse(lm.model, make_scorer(lm, [1]), level=0.5, executor=Gathered(kv_policy=kv_policy)) as run:
            ids = prompts(3)
            how = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            found = lm.model.generate(ids, output_logits=True, return_dict_in_generate=True, **how)
            whole = run.logits(collate([Example(row.tolist(), ids.shape[1]) for row in found.sequences]))
    finally:
        torch.set_num_threads(asked)
    torch.testing.assert_close(torch.stack(found.logits, 1), whole[:, 9:-1], rtol=1e-4, atol=1e-5)


def test_biases_are_added(make_lm, make_scorer):
    """transformers begins with none."""
    lm = make_lm("opt")
    draw = torch.Generator().manual_seed(5)
    for name, values in lm.model.named_parameters():
        if name.endswith("bias"):
            values.data = 0.1 * torch.randn(values.shape, generator=draw)
    scorer, ids = make_scorer(lm, [1, 2]), prompts(2)
    for decided_at in ("token", "prompt"):
        found = []
        for executor in (Masked(), Gathered()):
            with sparse(lm.model, scorer, SparsityPolicy(0.5), decided_at, executor=executor):
                found.append(generate(lm, ids, tokens=16))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_a_cache_grows(lm, make_scorer, monkeypatch):
    monkeypatch.setattr("shadow.executors.cpu.cache.ROOM", 5)
    scorer, ids = make_scorer(lm, [1]), prompts(2)
    found = []
    for executor in (Masked(), Gathered()):
        with sparse(lm.model, scorer, level=0.5, executor=executor):
            found.append(generate(lm, ids, tokens=30))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_what_lies_beyond_the_models_own_arrays_is_refused(lm, make_scorer):
    words, last = lm.model.config.vocab_size, lm.model.config.max_position_embeddings
    with sparse(lm.model, make_scorer(lm, [1]), level=0.5, executor=Gathered()):
        for unknown in (words, -1):
            for begun in (None, lm.model(prompts(1)).past_key_values):
                with pytest.raises(UserError, match=rf"token {unknown}, .* 0 to {words - 1}"):
                    lm.model(torch.tensor([[unknown]]), past_key_values=begun)
        if lm.model.config.model_type == "opt":
            full = lm.model(prompts(1, length=last)).past_key_values
            with pytest.raises(UserError, match=rf"position {last}, .* has learnt {last}"):
                lm.model(prompts(1, length=1), past_key_values=full)
            with pytest.raises(UserError, match=rf"position {last}, .* has learnt {last}"):
                lm.model(prompts(1, length=last + 1))


def test_both_executors_read_a_batch_alike(lm, make_scorer, examples):
    batch = collate(examples([7, 12, 9]))
    for decided_at, level in product(("token", "prompt", "sequence"), (0.0, 0.5)):
        found = []
        for executor in (Masked(), Gathered()):
            with sparse(
                lm.model, make_scorer(lm, [1, 2]), SparsityPolicy(level), decided_at, executor=executor
            ) as run:
                logits = run.logits(batch)
                found.append((logits[batch.real()], skipped(run)))
        torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
        assert found[1][1] == found[0][1]


def test_rows_of_different_length_are_padded_on_the_left(lm, make_scorer):
    ids, mask = prompts(2), torch.ones(2, 10, dtype=torch.long)
    ids[0, :4], mask[0, :4] = 0, 0
    scorer = make_scorer(lm, [1])
    with sparse(lm.model, scorer, level=0.5, executor=Gathered()):
        both = generate(lm, ids, mask)
        alone = generate(lm, ids[:1, 4:])
    torch.testing.assert_close(both[:, :1], alone, rtol=1e-4, atol=1e-5)
    with sparse(lm.model, scorer, level=0.5):
        torch.testing.assert_close(generate(lm, ids, mask)[:, 1], both[:, 1], rtol=1e-4, atol=1e-5)


def test_padding_on_the_right_is_refused(lm, make_scorer):
    mask = torch.ones(1, 10, dtype=torch.long)
    mask[0, 8:] = 0
    with (
        sparse(lm.model, make_scorer(lm, [1]), level=0.5, executor=Gathered()),
        pytest.raises(UserError, match=r"padded on the left alone.*padding_side"),
    ):
        generate(lm, prompts(1), mask)


def test_dropped_heads_leave_no_keys_when_the_prompt_decides(lm, make_scorer):
    policy = SparsityPolicy(0.5)
    with sparse(lm.model, make_scorer(lm, [1]), policy, "prompt", executor=Gathered()) as run:
        cache = memory_of(lm.model(prompts(1)).past_key_values, KeyValues)
        each = lm.model.config.num_attention_heads // cache.sizes.kv_heads
        for layer, groups in enumerate(cache.groups):
            keep = run.plan.get((layer, "head"))
            needed = torch.ones(cache.sizes.heads, dtype=torch.bool) if keep is None else keep.view(-1)
            assert groups.tolist() == needed.view(-1, each).any(1).nonzero()[:, 0].tolist()
        full = cache.sizes.layers * cache.sizes.kv_heads * cache.sizes.head_width * 2 * 4
        stored = sum(len(groups) for groups in cache.groups) / (cache.sizes.layers * cache.sizes.kv_heads)
        assert cache.bytes_a_position() == stored * full
        assert each > 1 or stored < 1


@pytest.mark.parametrize("tokens", ["all", "decode"])
def test_a_cache_tells_what_it_holds_beside_a_dense_one(lm, make_scorer, tokens):
    dense = lm.model(prompts(3)).past_key_values
    full = sum(layer.keys.nbytes + layer.values.nbytes for layer in dense.layers)
    held = {}
    for name, level, kv_policy in (
        ("all", 0.0, "write_all"),
        ("some", 0.75, "write_all"),
        ("late", 0.0, "recompute"),
    ):
        policy, executor = SparsityPolicy(level, min_units=0, tokens=tokens), Gathered(kv_policy=kv_policy)
        with sparse(lm.model, make_scorer(lm, [1]), policy, "prompt", executor=executor):
            cache = memory_of(lm.model(prompts(3)).past_key_values, KeyValues)
        assert cache.bytes_of_dense() == full
        held[name] = cache.bytes_held()
        layers = [cache.of_layer(layer) for layer in range(cache.sizes.layers)]
        stored = sum(keys[:, :, :10].nbytes + values[:, :, :10].nbytes for keys, values in layers)
        states = 3 * 10 * len(layers) * cache.sizes.width * 4 if name == "late" else 0
        assert held[name] == stored + states
    assert held["some"] < held["all"] == full < held["late"]


def test_sampling_draws_the_same_tokens(lm, make_scorer):
    found = []
    for executor in (Masked(), Gathered()):
        torch.manual_seed(0)
        with sparse(lm.model, make_scorer(lm, [1]), level=0.5, executor=executor):
            found.append(lm.model.generate(prompts(2), max_new_tokens=20, do_sample=True, pad_token_id=0))
    assert torch.equal(*found)


def test_what_is_generated_does_not_depend_on_the_number_of_threads_but_for_rounding(lm, make_scorer):
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            with sparse(lm.model, make_scorer(lm, [1]), level=0.5, executor=Gathered()):
                found += [generate(lm, prompts(2)), generate(lm, prompts(2))]
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-5)


def test_weights_are_not_held_twice_and_the_model_works_on(lm, make_scorer):
    ids = prompts(1)
    before = generate(lm, ids)
    weights = pack(lm.model)
    for linear in [site.module for site in find_sites(lm.model)]:
        rows = weights.output if linear.in_features == linear.out_features else weights.down
        start = rows.values.ctypes.data
        assert start <= linear.weight.data_ptr() < start + rows.values.nbytes
    assert pack(lm.model).down.values.ctypes.data == weights.down.values.ctypes.data
    torch.testing.assert_close(generate(lm, ids), before, rtol=1e-5, atol=1e-5)
    with sparse(lm.model, make_scorer(lm, [1]), level=0.5, executor=Gathered()):
        pass
    assert "forward" not in vars(lm.model)


def of_rounded_weights(lm: LM, make_lm, storage: str) -> LM:
    """A float32 model whose weights are what the storage makes of them."""
    found = make_lm(lm.model.config.model_type)
    for name, weight in found.model.named_parameters():
        if weight.dim() == 2 and "embed_positions" not in name:
            turned = any(part in name for part in ("out_proj", "o_proj", "fc2", "down_proj"))
            weight.data = rounded(weight, storage, turned)
    return found


def round_nets(scorer: Predicted | Fixed, storage: str) -> None:
    if isinstance(scorer, Predicted):
        for weight in scorer.net.parameters():
            weight.data = rounded(weight, storage, turned=False) if weight.dim() == 2 else weight


@pytest.mark.parametrize(
    ("storage", "plan"),
    [("bfloat16", plan) for plan in PLANS]
    + [(storage, plan) for storage in BITS for plan in ("static", "three taps", "at the prompt")],
)
def test_other_storages_give_what_a_model_of_rounded_weights_gives(lm, make_lm, make_scorer, storage, plan):
    """So are those of nets, in which they are stored for new tokens; here states are not rounded."""
    what, decided_at, policy = PLANS[plan]
    scorer, ids = make_scorer(lm, what), prompts(2)
    round_nets(scorer, storage)
    weights = of_rounded_weights(lm, make_lm, storage)
    with sparse(weights.model, scorer, policy, decided_at) as run:
        expected, gone = generate(weights, ids), skipped(run)
    executor = Gathered(storage, states="float32")
    with sparse(lm.model, scorer, policy, decided_at, executor=executor) as run:
        found, also_gone = generate(lm, ids), skipped(run)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=3e-5)  # sums of 64 tokens in another order
    assert also_gone == gone


@pytest.mark.parametrize(("storage", "plan"), [("int8", "static"), ("int4", "static")])
def test_rounded_states_give_nearly_the_same(lm, make_scorer, storage, plan):
    what, decided_at, policy = PLANS[plan]
    scorer, ids, found = make_scorer(lm, what), prompts(2, length=18), []
    for states in ("float32", "int8"):
        executor = Gathered(storage, states=states)
        with sparse(lm.model, scorer, policy, decided_at, executor=executor):
            found.append(fed(lm, ids))
    error = (found[1] - found[0]).square().mean().sqrt() / found[0].std()
    assert 1e-4 < error < 0.04


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int4"])
@pytest.mark.parametrize("plan", ["at the prompt", "over all layers"])
def test_copied_rows_are_read_like_those_in_place(lm, make_scorer, monkeypatch, storage, plan, rows):
    """To the last bit: the same rows, in the same order. Each row of a batch has a plan of its own. Many
    positions are not read at once, as those in place would be alone."""
    monkeypatch.setattr("shadow.executors.cpu.gathered.MANY", 1000)
    what, decided_at, policy = PLANS[plan]
    scorer, ids, fill = make_scorer(lm, what), prompts(rows), means(lm)
    executor = Gathered(storage=storage)
    with sparse(lm.model, scorer, policy, decided_at, stand_in=fill, executor=executor) as run:
        expected, gone = generate(lm, ids), skipped(run)
    executor = Gathered(storage=storage, compact=True)
    with sparse(lm.model, scorer, policy, decided_at, stand_in=fill, executor=executor) as run:
        found, also_gone = generate(lm, ids), skipped(run)
        taken = memory_of(run.forward(ids).past_key_values, KeyValues).decided.plan.weights.up
        assert taken[0] is not run.weights.up[0]
    assert torch.equal(found, expected)
    assert also_gone == gone


def test_nothing_is_copied_where_everything_stays(lm, make_scorer):
    with sparse(lm.model, make_scorer(lm, [1]), level=0.0, executor=Gathered(compact=True)) as run:
        assert (
            memory_of(run.forward(prompts(1)).past_key_values, KeyValues).decided.plan.weights is run.weights
        )


@pytest.mark.parametrize("rows", [3, 20_000])  # of a small array and of a large one
@pytest.mark.parametrize("storage", OWN)
def test_rows_begin_on_a_cache_line(storage, rows):
    assert allocate(storage, 1, rows, 64).values.ctypes.data % LINE == 0


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, CHUNK - 1, CHUNK])
@pytest.mark.parametrize("storage", OWN)
def test_the_rows_that_are_read_at_once_are_those_that_were_asked_for(storage, count):
    draw = torch.Generator().manual_seed(count)
    rows = allocate(storage, 2, 200, 24)
    put(rows, 1, torch.randn(200, 24, generator=draw))
    asked = torch.randperm(200, generator=draw)[:count]
    lines, factors = np.zeros(CHUNK + 8, np.int32), np.zeros(CHUNK + 8, np.float32)
    said, bias = torch.randn(count, generator=draw), torch.randn(2, 200, generator=draw)
    lines[:count], factors[:count] = asked.numpy(), said.numpy()
    x, out, y = torch.randn(2, 24, generator=draw), torch.zeros(2, 200), torch.zeros(2, 24)
    dots(x.numpy(), 1, rows, bias.numpy(), 1, lines, count, out.numpy())
    adds(y.numpy(), 1, factors, rows, 1, lines, count)
    expected = torch.zeros(2, 200)
    expected[1, asked] = read(rows, 1, asked) @ x[1] + bias[1, asked]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)  # sums are taken in another order
    torch.testing.assert_close(y, torch.stack([y[0] * 0, said @ read(rows, 1, asked)]), rtol=1e-5, atol=1e-5)


def test_a_bfloat16_model_shares_its_weights_and_decodes_in_float32(make_lm, make_scorer):
    lm = make_lm("llama", dtype=torch.bfloat16)
    assert pack(lm.model).up.values.dtype == "uint16"
    assert lm.model.get_parameter("model.layers.0.mlp.down_proj.weight").dtype == torch.bfloat16
    exact = make_lm("llama", dtype=torch.bfloat16)
    exact.model.float()
    with sparse(exact.model, make_scorer(exact, "static"), level=0.5):
        expected = generate(exact, prompts(1))
    with sparse(lm.model, make_scorer(lm, "static"), level=0.5, executor=Gathered()):
        found = generate(lm, prompts(1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"storage": "int2"}, r"executor\.storage must be one of .*float32.*got 'int2'"),
        ({"storage": "int4", "kv_policy": "recompute"}, r"recompute goes back.*write_all, got storage=int4"),
        ({"states": "int4"}, r"executor\.states must be one of .*got 'int4'"),
        ({"kv_policy": "some"}, r"executor\.kv_policy must be one of .*got 'some'"),
        ({"compact": True}, r"plans that stay.*decided_at=prompt"),
    ],
)
def test_settings_that_mean_nothing_are_refused(lm, make_scorer, settings, message):
    with (
        pytest.raises(UserError, match=message),
        sparse(lm.model, make_scorer(lm, [1]), level=0.5, executor=Gathered(**settings)),
    ):
        pass


@pytest.mark.parametrize("executor", ["fast", "gathered"])
def test_what_is_no_executor_is_refused(lm, make_scorer, executor):
    with (
        pytest.raises(UserError, match=rf"executor must be .*Masked\(\) or .*Gathered\(\), got {executor!r}"),
        sparse(lm.model, make_scorer(lm, [1]), level=0.5, executor=executor),
    ):
        pass


@pytest.mark.parametrize("tokens", [3, 0.5])
def test_tokens_that_are_counted_are_refused(lm, make_scorer, tokens):
    policy = SparsityPolicy(0.5, tokens=tokens)
    with (
        pytest.raises(UserError, match=r"knows sparsity\.tokens=all and decode.*got "),
        sparse(lm.model, make_scorer(lm, [1]), policy, executor=Gathered()),
    ):
        pass


def test_one_ranking_over_layers_cannot_be_made_token_by_token(lm, make_scorer):
    policy = SparsityPolicy(0.5, scope="global")
    with (
        pytest.raises(UserError, match=r"scope=layer or threshold.*got global"),
        sparse(lm.model, make_scorer(lm, [1]), policy, executor=Gathered()),
    ):
        pass


def test_hidden_states_are_refused(lm, make_scorer):
    with sparse(lm.model, make_scorer(lm, [1]), level=0.5, executor=Gathered()) as run:
        assert isinstance(run, GatheredRun)
        with pytest.raises(UserError, match="no output_hidden_states"):
            lm.model(prompts(1), output_hidden_states=True)


def test_two_generations_by_turns_keep_their_own_plans(lm, make_scorer):
    first, second = prompts(1), prompts(1, length=7)
    with sparse(lm.model, make_scorer(lm, [1]), SparsityPolicy(0.5), "prompt", executor=Gathered()):
        new = torch.tensor([[5]])
        alone = lm.model(new, past_key_values=lm.model(first).past_key_values).logits
        cache = lm.model(first).past_key_values
        lm.model(second)
        found = lm.model(new, past_key_values=cache).logits
    assert torch.equal(found, alone)


@pytest.mark.parametrize("decided_at", ["token", "prompt"])
def test_scorers_that_must_see_the_sample_first_are_refused(lm, decided_at):
    with (
        pytest.raises(UserError, match="runs no Oracle"),
        sparse(lm.model, Oracle("l2_norm"), SparsityPolicy(0.5), decided_at, executor=Gathered()),
    ):
        pass


def test_positions_of_the_callers_own_are_refused(lm, make_scorer):
    own = torch.arange(10)[None]
    with sparse(lm.model, make_scorer(lm, [1]), level=0.5, executor=Gathered()):
        cache = lm.model(prompts(1), position_ids=own).past_key_values
        with pytest.raises(UserError, match="position_ids are others"):
            lm.model(prompts(1), position_ids=own + 3)
        with pytest.raises(UserError, match="position_ids are others"):
            lm.model(prompts(1)[:, :1], past_key_values=cache, position_ids=torch.tensor([[11]]))
        lm.model(prompts(1)[:, :1], past_key_values=cache, position_ids=torch.tensor([[10]]))

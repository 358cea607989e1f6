"""What is timed, and the bytes that a token must read."""

import pytest
import torch
from torch import nn

from shadow.executors.cpu.gathered import GatheredRun
from shadow.executors.cpu.weights import pack
from shadow.executors.gathered import Gathered
from shadow.front import sparse
from shadow.measures.latency import (
    Timing,
    beside_dense,
    by_turns,
    dense_bytes,
    predictor_bytes,
    sparse_bytes,
    spread,
    stock_copy,
    time_generation,
)
from shadow.models.cache_name import cache_of
from shadow.models.kinds import find_sites
from shadow.models.layouts import find_layers
from shadow.models.sites import count_units
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.nets import NetShape, TapNet
from shadow.scorers.predicted import Predicted


def prompt() -> torch.Tensor:
    return torch.arange(1, 11)[None]


def test_a_generation_is_timed_token_by_token(lm):
    timing = time_generation(lm.model, prompt(), 5)
    assert timing.prompt > 0
    assert len(timing.tokens) == 5
    assert min(timing.tokens) > 0


def test_runs_take_turns_and_the_first_round_is_not_kept():
    called: list[str] = []

    def run_of(name: str):
        def run() -> Timing:
            called.append(name)
            return Timing(float(len(called)), [])

        return run

    found = by_turns({"a": run_of("a"), "b": run_of("b")}, 2)
    assert called == ["a", "b"] * 3
    assert [timing.prompt for timing in found["a"]] == [3, 5]
    assert [timing.prompt for timing in found["b"]] == [4, 6]


def test_the_spread_is_median_and_quartiles():
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0]) == (3, 2, 4)


@pytest.mark.parametrize(("storage", "share"), [("float32", 1), ("bfloat16", 1 / 2)])
def test_a_dense_token_reads_every_linear_layer_once(lm, storage, share):
    expected = sum(m.weight.nbytes for m in lm.model.modules() if isinstance(m, nn.Linear))
    assert dense_bytes(pack(lm.model, storage)) == share * expected


@pytest.mark.parametrize("tokens", ["all", "decode"])
def test_a_sparse_token_reads_what_stays_however_prompts_are_read(lm, tokens):
    """4 heads of 8 and 64 neurons in 4 layers of width 32, of which one is dense; half of the others goes."""
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    with sparse(lm.model, scorer, SparsityPolicy(0.5, tokens=tokens), executor=Gathered()) as run:
        time_generation(lm.model, prompt(), 3)
        assert isinstance(run, GatheredRun)
        found = sparse_bytes(run)
    kv_heads = 4 if lm.model.config.model_type == "opt" else 2
    head, keys, neuron = 2 * 8 * 32 * 4, 2 * 8 * 32 * 4, (2 if kv_heads == 4 else 3) * 32 * 4
    vocabulary = 257 * 32 * 4
    layers = (4 + 3 * 2) * head + (64 + 3 * 32) * neuron
    least = layers + vocabulary + 4 * keys  # a key-value head in each layer at the least
    assert least <= found <= layers + vocabulary + 4 * kv_heads * keys
    assert (found - layers - vocabulary) % keys == pytest.approx(0)


def test_the_predictor_of_each_token_is_counted_and_that_of_a_prompt_is_not(lm):
    units = count_units(find_sites(lm.model))
    net = TapNet([1], len(find_layers(lm.model)), 32, units, NetShape(8, 16, 2))
    expected = 4 * (8 * 32 + 16 * 32 + 16 * 16 + 8 * 16 + 4 * (4 + 64) * 8)
    for decided_at, counted in (("token", expected), ("prompt", 0)):
        scorer = Predicted(net.eval(), "scores")
        with sparse(lm.model, scorer, SparsityPolicy(0.5), decided_at, executor=Gathered()) as run:
            assert isinstance(run, GatheredRun)
            assert predictor_bytes(run) == counted


def dense_kv_bytes(lm) -> int:
    """Of a position, in float32."""
    config = lm.model.config
    groups = getattr(config, "num_key_value_heads", config.num_attention_heads)
    return config.num_hidden_layers * groups * config.hidden_size // config.num_attention_heads * 2 * 4


def test_beside_dense_tells_of_both_and_leaves_the_model_gathered(lm, make_net):
    prompts = [torch.arange(1, 9)[None], torch.arange(11, 19)[None]]
    with sparse(lm.model, Predicted(make_net(lm, [1]), "scores"), level=0.5, executor=Gathered()) as run:
        found = beside_dense(run, lm.model, prompts, 4, with_compiled=False)
        assert cache_of(lm.model(prompts[0])).get_seq_length() == 8
        dense, own = dense_bytes(run.weights), predictor_bytes(run)
    assert found["token_ms_low"] <= found["token_ms"] <= found["token_ms_high"]
    assert found["times_dense"] > 0
    assert found["tokens_per_second"] == pytest.approx(1e3 / found["token_ms"])
    assert found["roofline"] == pytest.approx(dense / found["weight_bytes"])
    assert found["kv_bytes"] == 8 * dense_kv_bytes(lm)
    assert found["kv_share_of_dense"] == 1
    assert found["predictor_bytes"] == own
    assert not any(name.startswith("compiled") for name in found)


def test_the_roofline_counts_dense_bytes_in_the_models_own_dtype(lm):
    prompts = [torch.arange(1, 9)[None], torch.arange(11, 19)[None]]
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    with sparse(lm.model, scorer, level=0.0, executor=Gathered(storage="int8")) as run:
        found = beside_dense(run, lm.model, prompts, 2, with_compiled=False)
    assert 3 < found["roofline"] < 4  # of int8, scales cost a little


def test_a_stock_copy_answers_densely_inside_the_block(lm):
    ids = prompt()
    dense = lm.model(ids).logits
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    with sparse(lm.model, scorer, level=0.5, executor=Gathered()):
        found = stock_copy(lm.model)
    assert torch.equal(found(ids).logits, dense)
    assert all(m.weight.is_contiguous() for m in found.modules() if isinstance(m, nn.Linear))

"""A key-value cache goes through every hand: own loops, the dense model, beams, assistants, copies."""

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.executors.masked import Masked
from shadow.front import sparse
from shadow.models.cache_name import named_cache
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.predicted import Predicted

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def scorer(lm, make_net) -> Predicted:
    """A net whose scores differ from token to token."""
    return Predicted(make_net(lm, [1]), "scores")


def text(rows: int = 1, length: int = 10) -> Tensor:
    return torch.randint(1, 257, (rows, length), generator=torch.Generator().manual_seed(rows + length))


def repeating() -> Tensor:
    """What prompt look-up finds candidates in."""
    return text(length=6).repeat(1, 3)


def generate(lm, ids: Tensor, **more):
    how = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return lm.model.generate(ids, **(how | more))


def of_both(lm, scorer, work, decided_at="token", level=0.5):
    """-> what `work` gives with each executor, and the heads that each skipped."""
    found, gone = [], []
    for executor in (Masked(), Gathered()):
        with sparse(lm.model, scorer, SparsityPolicy(level), decided_at, executor=executor) as run:
            found.append(work())
            gone.append(run.achieved("head"))
    assert gone[0] == pytest.approx(gone[1])
    return found


def test_a_callers_own_cache_is_filled(lm, scorer):
    """Which ignores the cache that a call hands back, and keeps the one that it gave."""

    def loop():
        cache, ids, said = DynamicCache(config=lm.model.config), text(2), []
        for _ in range(6):
            logits = lm.model(ids, **named_cache(cache)).logits
            said.append(logits[:, -1])
            ids = logits[:, -1:].argmax(-1)
        assert cache.get_seq_length() == 15
        return torch.stack(said)

    dense = loop()
    with sparse(lm.model, scorer, level=0.0, executor=Gathered()):
        torch.testing.assert_close(loop(), dense, **CLOSE)
    masked, gathered = of_both(lm, scorer, loop)
    torch.testing.assert_close(gathered, masked, **CLOSE)


def test_the_dense_model_goes_on_from_a_sparse_cache_and_the_sparse_one_from_a_dense(lm, scorer):
    """By turns, with rows that are padded on the left."""
    ids, mask = text(2, 14), torch.ones(2, 14, dtype=torch.long)
    mask[0, :3] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)

    def call(cache, first, last):
        span = slice(first, last)
        return lm.model(
            ids[:, span],
            attention_mask=mask[:, :last],
            position_ids=places[:, span],
            **named_cache(cache),
        ).logits

    def turns(executor):
        cache, said = DynamicCache(config=lm.model.config), []
        with sparse(lm.model, scorer, level=0.5, executor=executor):
            call(cache, 0, 7)
            said.append(call(cache, 7, 9))
        said.append(call(cache, 9, 11))
        with sparse(lm.model, scorer, level=0.5, executor=executor):
            said.append(call(cache, 11, 12))
        begun = DynamicCache()
        call(begun, 0, 12)
        with sparse(lm.model, scorer, level=0.5, executor=executor):
            said.append(call(begun, 12, 14))
        return torch.cat(said, 1), cache

    (expected, stock), (found, held) = turns(Masked()), turns(Gathered())
    torch.testing.assert_close(found, expected, **CLOSE)
    for one, other in zip(held, stock, strict=True):
        for part in (0, 1):
            torch.testing.assert_close(one[part][:, :, 3:], other[part][:, :, 3:], **CLOSE)


def test_positions_are_counted_as_the_model_counts_them(lm, scorer):
    """Llama counts a padded row's columns where nobody gives position_ids, and OPT its real tokens."""
    ids, mask = text(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[0, :3] = 0

    def go_on():
        cache = lm.model(ids[:, :6], attention_mask=mask[:, :6]).past_key_values
        return lm.model(ids[:, 6:], attention_mask=mask, **named_cache(cache)).logits, cache.layers[1].keys

    for one, other in zip(*of_both(lm, scorer, go_on), strict=True):
        torch.testing.assert_close(one[..., -2:, :], other[..., -2:, :], **CLOSE)


@pytest.mark.parametrize("decided_at", ["token", "prompt"])
def test_beams_are_those_of_the_masked_executor(lm, scorer, decided_at):
    masked, gathered = of_both(lm, scorer, lambda: generate(lm, text(2), num_beams=3), decided_at)
    assert torch.equal(gathered, masked)


@pytest.mark.parametrize("kv_policy", ["write_all", "recompute"])
def test_rows_are_repeated_chosen_and_reordered_with_their_own_plans(lm, scorer, kv_policy):
    """At the prompt each row has a plan, and its heads alone have keys."""
    ids, new = text(3), text(4, 3)
    decided_at = "prompt" if kv_policy == "write_all" else "token"
    executor = Gathered(kv_policy=kv_policy)
    with sparse(lm.model, scorer, SparsityPolicy(0.5), decided_at, executor=executor):
        cache = lm.model(ids).past_key_values
        lm.model(new[:3, :1], **named_cache(cache))
        cache.crop(-1)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([0, 2, 3, 5]))
        cache.reorder_cache(torch.tensor([3, 1, 1, 0]))
        found = lm.model(new, **named_cache(cache)).logits
        for row, line in enumerate((2, 1, 1, 0)):
            alone = lm.model(ids[line : line + 1]).past_key_values
            expected = lm.model(new[row : row + 1], **named_cache(alone)).logits
            torch.testing.assert_close(found[row : row + 1], expected, **CLOSE)


def test_what_is_cropped_is_forgotten_and_what_was_handed_out_stays(lm, scorer):
    ids = text(1, 12)
    with sparse(lm.model, scorer, level=0.5, executor=Gathered()):
        cache = lm.model(ids[:, :8]).past_key_values
        lm.model(text(1, 3), **named_cache(cache))
        kept = cache.layers[2].keys
        before = kept.clone()
        cache.crop(-3)
        found = lm.model(ids[:, 8:], **named_cache(cache)).logits
        assert torch.equal(kept, before)
        expected = lm.model(ids[:, 8:], **named_cache(lm.model(ids[:, :8]).past_key_values)).logits
        assert torch.equal(found, expected)
        cache.reset()
        assert cache.get_seq_length() == 0
        assert torch.equal(lm.model(ids, **named_cache(cache)).logits, lm.model(ids).logits)
        with pytest.raises(ValueError, match="positive"):
            cache.crop(3)


@pytest.mark.parametrize(
    "how", [{"prompt_lookup_num_tokens": 4}, {"prefill_chunk_size": 4}, {"use_cache": False}]
)
def test_several_tokens_at_once_are_those_of_the_masked_executor(lm, scorer, how):
    masked, gathered = of_both(lm, scorer, lambda: generate(lm, repeating(), **how))
    assert torch.equal(gathered, masked)


def test_an_assistants_candidates_are_taken_back_where_they_are_wrong(lm, make_lm, scorer):
    other = make_lm(lm.model.config.model_type, layers=2, seed=1).model
    masked, gathered = of_both(lm, scorer, lambda: generate(lm, text(), assistant_model=other))
    assert torch.equal(gathered, masked)


def test_a_copy_goes_on_by_itself(lm, scorer):
    """Deep copies, shallow copies of layers, and what a file gives back."""
    ids, new = text(2), text(2, 4)
    for decided_at in ("token", "prompt"):
        with sparse(lm.model, scorer, SparsityPolicy(0.5), decided_at, executor=Gathered()):
            cache = lm.model(ids).past_key_values
            twin, shallow = copy.deepcopy(cache), copy.copy(cache)
            shallow.layers = [copy.copy(layer) for layer in cache.layers]
            first = lm.model(new, **named_cache(cache)).logits
            lm.model(new[:, :1] + 1, **named_cache(twin))
            assert torch.equal(lm.model(new, **named_cache(shallow)).logits, first)
            twin.crop(-1)
            assert torch.equal(lm.model(new, **named_cache(twin)).logits, first)
    with sparse(lm.model, scorer, level=0.5, executor=Gathered()):
        cache, file = lm.model(ids).past_key_values, io.BytesIO()
        torch.save(cache, file)
        file.seek(0)
        read = torch.load(file, weights_only=False)
        assert torch.equal(
            lm.model(new, **named_cache(read)).logits, lm.model(new, **named_cache(cache)).logits
        )


@pytest.mark.parametrize("decided_at", ["token", "prompt"])
def test_threads_of_one_block_do_not_meet(lm, scorer, decided_at):
    asked = [text(length=length) for length in (6, 9, 12, 15)]
    with sparse(lm.model, scorer, SparsityPolicy(0.5), decided_at, executor=Gathered()):
        expected = [generate(lm, ids) for ids in asked]
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda ids: generate(lm, ids), asked * 2))
    for one, other in zip(found, expected * 2, strict=True):
        assert torch.equal(one, other)


def test_calls_are_answered_as_the_model_answers_them(lm, scorer):
    """By place, without a cache, as a tuple, and of some positions alone."""
    ids, mask = text(2), torch.ones(2, 10, dtype=torch.long)

    def work():
        cache = DynamicCache()
        lm.model(ids[:, :7], **named_cache(cache), use_cache=False)
        some = lm.model(ids[:, 7:], **named_cache(cache), logits_to_keep=torch.tensor([0, 2])).logits
        tuples = lm.model(ids, mask, return_dict=False, use_cache=False)
        return some, *tuples, lm.model(ids, logits_to_keep=2).logits

    for one, other in zip(*of_both(lm, scorer, work), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_a_bfloat16_model_goes_on_from_a_gathered_cache(make_lm, make_net):
    lm = make_lm("llama", dtype=torch.bfloat16)
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    with sparse(lm.model, scorer, level=0.0, executor=Gathered()):
        cache = lm.model(text()).past_key_values
    found = lm.model(text(length=3), **named_cache(cache)).logits
    expected = lm.model(text(length=3), **named_cache(lm.model(text()).past_key_values)).logits
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)  # bfloat16 rounds at each layer
    assert cache.layers[0].keys.dtype == torch.bfloat16


def test_keys_that_are_not_there_are_handed_to_nobody(lm, scorer):
    none = SparsityPolicy(0.75, min_units=0)
    with sparse(lm.model, scorer, none, "prompt", executor=Gathered()):
        generated = generate(lm, text(), return_dict_in_generate=True)
        cache = generated.past_key_values
        longer = torch.cat([generated.sequences, text(length=3)], 1)
    with pytest.raises(UserError, match=r"holds keys and values of .* key-value heads"):
        generate(lm, longer, **named_cache(copy.deepcopy(cache)))
    with (
        sparse(lm.model, scorer, level=0.5, executor=Gathered()),
        pytest.raises(UserError, match="holds keys"),
    ):
        lm.model(text(length=1), **named_cache(cache))
    with sparse(lm.model, scorer, level=0.75, executor=Gathered(kv_policy="recompute")):
        late = lm.model(text()).past_key_values
        lm.model(text(length=2), **named_cache(late))
    with pytest.raises(UserError, match="recompute has not computed all"):
        lm.model(text(length=1), **named_cache(late))


def test_caches_that_would_not_come_out_right_are_refused_by_name(lm, make_lm, scorer):
    config, ids = lm.model.config, text()
    sliding = DynamicCache()
    sliding.layers = [DynamicSlidingWindowLayer(4) for _ in range(config.num_hidden_layers)]
    refused = {
        "StaticCache": StaticCache(config, max_cache_len=16),
        "tuple": ((ids, ids),),
        "DynamicSlidingWindowLayer": sliding,
        "EncoderDecoderCache": EncoderDecoderCache(DynamicCache(), DynamicCache()),
    }
    if torch.version.cuda is None or torch.cuda.is_available():  # else a driver is missed
        refused["not offloaded"] = DynamicCache(config=config, offloading=True)
    rows = lm.model(text(2)).past_key_values
    short = make_lm(config.model_type, layers=2).model(ids).past_key_values
    wide = make_lm(config.model_type, heads=8).model(ids).past_key_values
    mended = {"holds 2 rows and input_ids has 1": rows, "4 layers, all alike": short, "another model's": wide}
    with sparse(lm.model, scorer, level=0.5, executor=Gathered()):
        for message, cache in (refused | mended).items():
            with pytest.raises(UserError, match=message):
                lm.model(ids, **named_cache(cache))
        for mask in (torch.ones(1, 4), torch.ones(1, 1, 10, 10), {"full_attention": None}):
            with pytest.raises(UserError, match="attention_mask of all positions"):
                lm.model(ids, attention_mask=mask)
        for positions in (torch.arange(9)[None], [list(range(10))]):
            with pytest.raises(UserError, match="position_ids must be those"):
                lm.model(ids, position_ids=positions)
        with pytest.raises(UserError, match="StaticCache"):
            generate(lm, ids, cache_implementation="static")
    dense = lm.model(ids).past_key_values
    with (
        sparse(lm.model, scorer, SparsityPolicy(0.5), "prompt", executor=Gathered()),
        pytest.raises(UserError, match="10 positions that were not read in this block"),
    ):
        lm.model(ids, **named_cache(dense))

"""Every way to call a sparse model: each text has its own plan, or one sentence says why it cannot."""

import copy
import pickle
import re
import threading
from functools import partial

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM, LogitsProcessorList, StaticCache

from shadow.errors import UncountedTokens, UserError
from shadow.executors.gathered import Gathered
from shadow.executors.masked import Masked
from shadow.front import sparse
from shadow.jobs.run import job
from shadow.models.cache_name import named_cache
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.predicted import Predicted

NEW = 6
EACH = pytest.mark.parametrize("decided_at", ["token", "prompt"])


@pytest.fixture
def model(tiny_llama):
    return tiny_llama.model


@pytest.fixture
def block(model, make_net, tiny_llama):
    """block(decided_at): half of the units go by a net with a tap at each layer."""
    scorer = Predicted(make_net(tiny_llama, [1, 2, 3]), "scores")
    return lambda decided_at="token", **how: sparse(
        how.pop("on", model), scorer, how.pop("policy", SparsityPolicy(0.5)), decided_at, **how
    )


@pytest.fixture
def prompts(examples):
    """Three that repeat themselves, so that prompt look-up has something to find."""
    return [torch.tensor([example.ids]).repeat(1, 3) for example in examples([4, 4, 4])]


def generate(model, ids, **how):
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "min_new_tokens": NEW}
    return model.generate(ids, **given | {"do_sample": False, "pad_token_id": 0} | how)


def padded(prompts):
    """The first prompt without its first 5 tokens, and the second; -> ids and mask [2, 12]."""
    ids = torch.cat([prompts[0].clone(), prompts[1]])
    ids[0, :5] = 0
    return ids, (ids != 0).long()


# One call, one state


@EACH
def test_threads_in_one_block_get_the_texts_that_they_get_alone(model, block, prompts, decided_at):
    found = {}
    with block(decided_at) as alone:
        expected = [generate(model, ids) for ids in prompts]
    with block(decided_at) as run:
        threads = [
            threading.Thread(target=lambda at=at: found.update({at: generate(model, prompts[at])}))
            for at in range(len(prompts))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for at, text in enumerate(expected):
        assert torch.equal(found[at], text)
    assert run.planner.kept == alone.planner.kept


@pytest.mark.parametrize("executor", [Masked(), Gathered()])
def test_a_text_that_outlives_its_block_is_refused(model, block, prompts, executor):
    """Its last tokens would be the dense model's."""
    begun, ended, found = threading.Event(), threading.Event(), []

    def wait(ids, scores):
        begun.set()
        assert ended.wait(60)
        return scores

    def work():
        with pytest.raises(UserError, match=r"block has ended while generate was running.*thread\.join"):
            generate(model, prompts[0], logits_processor=LogitsProcessorList([wait]))
        found.append(True)

    thread = threading.Thread(target=work)
    with block(executor=executor):
        thread.start()
        assert begun.wait(60)
    ended.set()
    thread.join()
    assert found


def test_conversations_that_take_turns_keep_their_own_plans(model, block, prompts):
    with block("prompt"):
        expected = [generate(model, ids) for ids in prompts]
    caches = [DynamicCache(config=model.config) for _ in prompts]
    texts = list(prompts)
    with block("prompt"):
        for _ in range(NEW):
            for at, (text, cache) in enumerate(zip(texts, caches)):
                logits = model(text[:, cache.get_seq_length() :], **named_cache(cache)).logits[:, -1]
                logits[:, 0] = -torch.inf  # as min_new_tokens does
                texts[at] = torch.cat([text, logits.argmax(-1, keepdim=True)], 1)
    for text, right in zip(texts, expected):
        assert torch.equal(text, right)


# What a prompt is


@EACH
def test_the_way_of_generating_does_not_change_the_text(model, block, make_lm, prompts, decided_at):
    ways = {
        "look-up": {"prompt_lookup_num_tokens": 4},
        "a draft of another model": {"assistant_model": make_lm("llama", seed=3).model},
        "no cache": {"use_cache": False},
        "a static cache": {"cache_implementation": "static"},
    }
    if decided_at == "token":
        ways["a prompt in pieces"] = {"prefill_chunk_size": 5}
    with block(decided_at) as run:
        expected = generate(model, prompts[0])
        share = run.achieved("neuron")
    for name, way in ways.items():
        with block(decided_at) as run:
            assert torch.equal(generate(model, prompts[0], **way), expected), name
        assert run.achieved("neuron") == share, name


def test_a_prompt_in_pieces_is_whole_where_prompts_are(model, block, prompts):
    found = []
    for chunk in (None, 5):
        with block(policy=SparsityPolicy(0.5, tokens="decode")) as run:
            found.append((generate(model, prompts[0], prefill_chunk_size=chunk), run.achieved("neuron")))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == pytest.approx(0.375 * (NEW - 1) / (12 + NEW - 1))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"prefill_chunk_size": 5}, r"brings 5 of its 12 positions first.*prefill_chunk_size"),
        ({"guidance_scale": 1.5}, r"brings 1 of its 12 positions first.*guidance_scale"),
        ({"assistant_early_exit": 2}, "assistant_early_exit drafts by some layers"),
        ({"cache_implementation": "paged"}, "cache_implementation=paged"),
    ],
)
def test_what_cannot_follow_the_plan_of_a_prompt_is_refused_by_name(model, block, prompts, how, message):
    with block("prompt"), pytest.raises(UserError, match=message):
        generate(model, prompts[0], **how)


@EACH
def test_rows_of_beams_follow_their_own_prompt(model, block, prompts, decided_at):
    """Padded on the left, each has the texts that it has alone, with a cache and without."""
    ids, mask = padded(prompts)
    beams = {"num_beams": 3, "num_return_sequences": 2}
    with block(decided_at):
        together = generate(model, ids, attention_mask=mask, **beams)[:, 12:]
        without = generate(model, ids, attention_mask=mask, use_cache=False, **beams)[:, 12:]
        alone = [generate(model, one, **beams)[:, -NEW:] for one in (prompts[0][:, 5:], prompts[1])]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(without, together)


def contrast(model, input_ids, **given):
    """A loop that tries two tokens in copies of the cache, takes both back, and goes on with the first."""
    cache = None
    for _ in range(NEW):
        read = input_ids if cache is None else input_ids[:, -1:]
        found = model(read, **named_cache(cache), use_cache=True)
        cache, logits = found.past_key_values, found.logits[:, -1]
        logits[:, 0] = -torch.inf
        two = logits.topk(2).indices
        cache.batch_repeat_interleave(2)
        model(two.view(-1, 1), **named_cache(cache))
        cache.crop(-1)
        cache.batch_select_indices(torch.arange(0, 2 * len(read), 2))
        input_ids = torch.cat([input_ids, two[:, :1]], 1)
    return input_ids


def test_the_plans_of_a_cache_go_where_its_rows_go(model, block, prompts):
    with block("prompt"):
        expected = torch.cat([generate(model, ids) for ids in prompts])
        assert torch.equal(generate(model, torch.cat(prompts), custom_generate=contrast), expected)


# Caches


def test_a_copy_of_a_cache_goes_on_as_the_cache_does(model, block, prompts):
    with block("prompt"):
        first = generate(model, prompts[0], return_dict_in_generate=True)
        ids, cache = torch.cat([first.sequences, prompts[1]], 1), first.past_key_values
        copies = copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))
        expected = generate(model, ids, **named_cache(cache))
        for one in copies:
            assert torch.equal(generate(model, ids, **named_cache(one)), expected)


def test_a_cache_that_is_emptied_begins_anew(model, block, prompts):
    cache = StaticCache(config=model.config, max_cache_len=20)
    with block("prompt"):
        for ids in prompts:
            cache.reset()
            found = generate(model, ids, **named_cache(cache))
            assert torch.equal(found, generate(model, ids))


def test_a_cache_of_the_dense_model_goes_on_where_tokens_decide(model, block, prompts):
    cache, ids = DynamicCache(config=model.config), prompts[0]
    model(ids[:, :8], **named_cache(cache))
    with block() as run:
        found = model(ids[:, 8:], **named_cache(cache)).logits
        assert run.achieved("neuron") == 0.375
    with block(policy=SparsityPolicy(0.5, tokens=8)):
        torch.testing.assert_close(found, model(ids).logits[:, 8:], rtol=1e-4, atol=1e-5)


def test_a_cache_without_this_blocks_plan_is_refused_where_a_prompt_decides(model, block, prompts):
    ids, dense = prompts[0], DynamicCache(config=model.config)
    model(ids[:, :8], **named_cache(dense))
    with block("prompt"):
        of_another = model(ids).past_key_values
    with block("prompt"):
        cropped = model(ids).past_key_values
        cropped.crop(-5)
        model(ids[:, 7:], **named_cache(copy.deepcopy(cropped)))  # the same prompt again
        for cache, read, message in (
            (dense, ids[:, 8:], "8 positions that were not read in this block"),
            (of_another, ids[:, :1], "12 positions that were not read in this block"),
            (cropped, prompts[1][:, 7:], "was cropped to 7 of them"),
        ):
            with pytest.raises(UserError, match=message):
                model(read, **named_cache(cache))


# Masks


@EACH
def test_masks_of_four_dimensions_tell_padding(model, block, prompts, decided_at):
    ids, mask = padded(prompts)
    seen = mask.bool()[:, None, None] & torch.ones(12, 12, dtype=torch.bool).tril()
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    found = []
    for given in (mask, seen, added):
        with block(decided_at) as run:
            logits = model(ids, attention_mask=given, position_ids=places).logits[mask.bool()]
        found.append((logits, run.planner.kept, run.planner.total))
    for logits, *counts in found[1:]:
        torch.testing.assert_close(logits, found[0][0], rtol=1e-4, atol=1e-5)
        assert counts == list(found[0][1:])


@EACH
def test_static_caches_know_rows_that_are_padded(model, block, prompts, decided_at):
    ids, mask = padded(prompts)
    with block(decided_at) as run:
        found = generate(model, ids, attention_mask=mask, cache_implementation="static")
    with block(decided_at) as alone:
        for row, one in enumerate((prompts[0][:, 5:], prompts[1])):
            assert torch.equal(generate(model, one)[0, -NEW:], found[row, -NEW:])
    assert run.planner.total == alone.planner.total


@pytest.mark.parametrize("shape", [(1, 7), (1, 12, 12), (1, 1, 12, 7)])
def test_a_mask_of_no_certain_meaning_is_refused(model, block, prompts, shape):
    with block(), pytest.raises(UserError, match=r"attention_mask must tell padding for the 12 positions"):
        model(prompts[0], attention_mask=torch.ones(shape, dtype=torch.bool))


# What is read


NOT_READ = {
    "int64 [12]": lambda ids: ids[0],
    "int64 [1, 1, 12]": lambda ids: ids[None],
    "int64 [0, 12]": lambda ids: ids[:0],
    "int64 [1, 0]": lambda ids: ids[:, :0],
    "float32 [1, 12]": lambda ids: ids.float(),
    "int8 [1, 12]": lambda ids: ids.clamp(max=99).to(torch.int8),
    "bool [1, 12]": lambda ids: ids > 5,
    "a list": lambda ids: ids.tolist(),
    "a ndarray": lambda ids: ids.numpy(),
}


@pytest.mark.parametrize("executor", [Masked(), Gathered(), Gathered("int8")])
def test_what_is_no_tokens_and_what_is_no_number_of_positions_is_refused(model, block, prompts, executor):
    with block(executor=executor):
        for what, change in NOT_READ.items():
            with pytest.raises(UserError, match=rf"was given {re.escape(what)}: tokenise"):
                model(change(prompts[0]))
        for kept in (None, 2.0, [1, 2]):
            with pytest.raises(UserError, match=r"logits_to_keep must be a whole number, .* or a tensor"):
                model(prompts[0], logits_to_keep=kept)
        assert model(prompts[0].int(), logits_to_keep=2).logits.shape[1] == 2


# Plans, blocks and counts


@pytest.mark.parametrize("executor", [Masked(), Gathered()])
def test_a_plan_that_does_not_fit_the_call_reaches_no_compiled_code(model, prompts, executor):
    with sparse(model, Fixed({}), level=0.0, executor=executor) as run:
        run.planner.plan = {(1, "neuron"): torch.ones(1, 40, 64, dtype=torch.bool)}
        with pytest.raises(UserError, match=r"layer 1 is \[1, 40, 64\].*1 rows of 12 positions"):
            model(prompts[0])


@pytest.mark.parametrize("second", [Masked(), Gathered()])
@pytest.mark.parametrize("first", [Masked(), Gathered()])
def test_a_second_block_on_the_same_layers_is_refused(model, first, second):
    scorer = Fixed(random_scores(find_sites(model), 0))
    around = LlamaForCausalLM(model.config)
    around.model = model.model
    for again in (model, around):
        with (
            sparse(model, scorer, level=0.5, executor=first),
            pytest.raises(UserError, match="block already"),
        ):
            sparse(again, scorer, level=0.0, executor=second).__enter__()
    with sparse(around, scorer, level=0.5, executor=second):
        pass  # the first has ended


@pytest.mark.parametrize("what", ["model", "call", "forward", "layer"])
def test_compiled_models_are_refused(model, block, what):
    given = model
    if what == "model":
        given = torch.compile(model, backend="eager")
    elif what == "call":
        model.compile(backend="eager")
    elif what == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    else:
        model.model.layers[2].compile(backend="eager")
    with pytest.raises(UserError, match=r"is compiled|OptimizedModule"):
        block(on=given).__enter__()


def test_a_model_that_is_compiled_in_the_block_is_sparse(model, block, prompts):
    with block() as run:
        expected = model(prompts[0]).logits
        assert torch.equal(torch.compile(model, backend="eager")(prompts[0]).logits, expected)
        assert run.achieved("neuron") == 0.375


@pytest.mark.parametrize("executor", [Masked(), Gathered()])
def test_the_forward_of_a_model_is_a_call_and_a_part_of_it_is_none(model, block, prompts, executor):
    before, compiled = model.forward, torch.compile(model.forward, backend="eager")
    dense = compiled(prompts[0]).logits
    with block(executor=executor) as run:
        with pytest.raises(UserError, match="and none did: call the model first"):
            run.achieved("neuron")
        assert torch.equal(model.forward(prompts[0]).logits, model(prompts[0]).logits)
        assert run.achieved("neuron") == 0.375
        for past in (model.model, before, compiled, partial(type(model).forward, model)):
            with pytest.raises(UserError, match="without a call of the model"):
                past(prompts[0])
    model.model(prompts[0])
    assert torch.equal(compiled(prompts[0]).logits, dense)


def test_a_copy_of_a_model_in_a_block_is_dense(model, block, prompts, hooks_on):
    dense = model(prompts[0]).logits
    with block():
        found = copy.deepcopy(model)
        assert torch.equal(found(prompts[0]).logits, dense)
    assert hooks_on(found) == 0
    assert vars(found).keys() == vars(model).keys()


def test_tokens_that_were_run_and_not_counted_are_told(model, block, prompts, compose):
    def half() -> None:
        with block():
            model.config.num_hidden_layers = 2
            model(prompts[0])

    with pytest.warns(UncountedTokens, match="called with 12 tokens, and 0 of them"):
        half()
    with pytest.raises(UncountedTokens), job(compose("train", "logger.csv=null")):
        half()


def test_a_scorer_that_leaves_out_what_is_to_go_is_refused(model, prompts):
    every = random_scores(find_sites(model), 0)
    without = {key: scores for key, scores in every.items() if key != (2, "head")}
    for scorer, message in (
        (Fixed({}), "scores no kind"),
        (Fixed(without), "nothing of the heads of layer 2"),
    ):
        with pytest.raises(UserError, match=message):
            sparse(model, scorer, level=0.5).__enter__()

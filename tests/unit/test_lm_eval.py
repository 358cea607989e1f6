"""lm-eval through the masked executor: its own numbers at level 0, and prompts that end where they end."""

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

from shadow.data.batches import IGNORED
from shadow.data.tasks import load_tasks, task_specs
from shadow.front import sparse
from shadow.measures.evaluation import task_metrics
from shadow.measures.sparse_hf import SparseHFLM
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed, random_scores
from shadow.scorers.oracle import Oracle
from shadow.scorers.predicted import Predicted

DENSE, HALF = SparsityPolicy(0.0), SparsityPolicy(0.5)
TASKS = ["piqa", "copa", "winogrande", "rte"]


def draw(length: int, seed: int) -> list[int]:
    return torch.randint(1, 257, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def requests():
    """(label, context, continuation): options of one context, one-token options, repeats, all lengths."""
    pairs = []
    for question in range(5):
        context = draw(5 + 7 * question, question)
        pairs += [(context, draw(2 + option, 100 + option)) for option in range(3)]
        pairs += [(context, [17]), (context, [200]), (context, [3])]
    pairs += [(draw(12, 1), draw(3, 101)), (draw(12, 1), [17]), (draw(12, 1), [17])]
    same_input = draw(6, 55)
    pairs += [(draw(4, 56), [*same_input, 9]), (draw(4, 56), [*same_input, 8])]
    return [(("", ""), context, continuation) for context, continuation in pairs]


def recorded(run):
    """Every row that the run is given from here on: (real ids, length of the prompt, labels)."""
    rows, logits = [], run.logits

    def record(batch):
        for ids, length, prompt, labels in zip(*(tensor.tolist() for tensor in batch)):
            assert all(label == IGNORED for label in labels[length:])
            rows.append((ids[:length], prompt, labels[:length]))
        return logits(batch)

    run.logits = record
    return rows


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_at_level_0_loglikelihoods_are_those_of_lm_evals_own_model_bit_for_bit(lm, requests, batch_size):
    own = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size)
    expected = own._loglikelihood_tokens(requests, disable_tqdm=True)
    with sparse(lm.model, Fixed({}), DENSE) as run:
        ours = SparseHFLM(run, lm, batch_size)._loglikelihood_tokens(requests, disable_tqdm=True)
    assert ours == expected


@pytest.mark.parametrize("batch_size", [1, 8])
def test_at_level_0_a_gradient_oracle_gives_lm_evals_own_loglikelihoods(lm, requests, batch_size):
    """It runs every answer by itself, so the batches differ, and with them the last digit."""
    own = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=1)
    expected = own._loglikelihood_tokens(requests, disable_tqdm=True)
    with sparse(lm.model, Oracle("plainact"), DENSE) as run:
        ours = SparseHFLM(run, lm, batch_size)._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in expected]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in expected], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_the_run_is_told_where_every_prompt_ends(lm, make_net, requests, batch_size):
    with sparse(lm.model, Predicted(make_net(lm, [1]), "scores"), HALF, "prompt") as run:
        rows = recorded(run)
        SparseHFLM(run, lm, batch_size)._loglikelihood_tokens(requests, disable_tqdm=True)
    asked = {(tuple(c + a)[:-1], len(c)) for _, c, a in requests}
    assert {(tuple(ids), prompt) for ids, prompt, _ in rows} == asked
    assert len(rows) == len(asked)  # options of one token share a pass


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("criterion", ["plainact", "fisher"])
def test_a_gradient_oracle_sees_each_answer_by_itself(lm, requests, batch_size, criterion):
    """One-token answers share their input, but not their loss."""
    with sparse(lm.model, Oracle(criterion), HALF, "sequence") as run:
        rows = recorded(run)
        SparseHFLM(run, lm, batch_size)._loglikelihood_tokens(requests, disable_tqdm=True)
    expected = []
    for _, context, answer in requests:
        ids = (context + answer)[:-1]
        expected.append((ids, len(context), [IGNORED] * (len(context) - 1) + answer))
    assert sorted(rows) == sorted(expected)


@pytest.mark.parametrize("criterion", ["plainact", "l2_norm"])
def test_loglikelihoods_of_an_oracle_do_not_depend_on_the_batch_size(make_lm, requests, criterion):
    lm = make_lm("llama", dtype=torch.float64)
    results = []
    for batch_size in (1, 8):
        with sparse(lm.model, Oracle(criterion), HALF, "sequence") as run:
            found = SparseHFLM(run, lm, batch_size)._loglikelihood_tokens(requests, disable_tqdm=True)
        results.append([value for value, _ in found])
    assert results[0] == pytest.approx(results[1], rel=1e-9)


def test_an_answer_is_judged_under_the_plan_of_its_own_loss(make_lm):
    """rte's True and False: the same input, two losses, two plans. Each by hand, one request at a time."""
    lm = make_lm("llama", dtype=torch.float64)
    context = draw(20, 0)
    requests = [(("", ""), context, [answer]) for answer in (17, 200, 3, 99)]
    with sparse(lm.model, Oracle("plainact"), HALF, "sequence") as run:
        together = SparseHFLM(run, lm, 4)._loglikelihood_tokens(requests, disable_tqdm=True)
        alone = [
            SparseHFLM(run, lm, 1)._loglikelihood_tokens([request], disable_tqdm=True)[0]
            for request in requests
        ]
    assert [value for value, _ in together] == pytest.approx([value for value, _ in alone], rel=1e-9)


def test_a_request_longer_than_the_model_loses_its_beginning(lm, make_net):
    requests = [(("", ""), draw(600, 0), draw(4, 1)), (("", ""), draw(30, 2), draw(4, 1))]
    with sparse(lm.model, Predicted(make_net(lm, [1]), "scores"), HALF, "prompt") as run:
        model = SparseHFLM(run, lm, 2)
        rows = recorded(run)
        found = model._loglikelihood_tokens(requests, disable_tqdm=True)
    assert model.max_length == 512
    longest, other = rows
    assert longest[0] == (draw(600, 0) + draw(4, 1))[-513:-1]
    assert longest[1] == 513 - 4
    assert (len(other[0]), other[1]) == (33, 30)
    assert len(found) == 2


# Tasks

lm_eval_tasks = pytest.mark.usefixtures("tasks")


def evaluate_with(model, task_manager, task_root, num_fewshot=0):
    tasks = task_specs(TASKS, str(task_root))
    return simple_evaluate(
        model=model,
        tasks=list(load_tasks(task_manager, tasks).values()),
        task_manager=task_manager,
        num_fewshot=num_fewshot,
        fewshot_random_seed=0,
        bootstrap_iters=0,
        log_samples=True,
    )


@lm_eval_tasks
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_at_level_0_every_sample_of_a_task_scores_as_with_lm_evals_own_model(
    tiny_llama, task_manager, task_root, batch_size
):
    lm = tiny_llama
    expected = evaluate_with(
        HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size), task_manager, task_root
    )
    with sparse(lm.model, Fixed({}), DENSE) as run:
        ours = evaluate_with(SparseHFLM(run, lm, batch_size), task_manager, task_root)
    for task in TASKS:
        got, want = ([sample["resps"] for sample in found["samples"][task]] for found in (ours, expected))
        assert len(got) == 3
        assert got == want


@lm_eval_tasks
@pytest.mark.parametrize("num_fewshot", [0, 2])
def test_task_metrics_at_level_0_are_lm_evals_own(tiny_llama, task_manager, task_root, num_fewshot):
    lm = tiny_llama
    own = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4)
    expected = evaluate_with(own, task_manager, task_root, num_fewshot)["results"]
    with sparse(lm.model, Fixed({}), DENSE) as run:
        found = task_metrics(run, lm, TASKS, str(task_root), None, num_fewshot, 4, 0)
    assert {name.split("/")[0] for name in found} == set(TASKS)
    for name, metric in found.items():
        task, _, metric_name = name.partition("/")
        assert metric.value == expected[task][f"{metric_name},none"]


@lm_eval_tasks
def test_task_metrics_carry_lm_evals_standard_errors(tiny_llama, task_root):
    with sparse(tiny_llama.model, Fixed({}), DENSE) as run:
        found = task_metrics(run, tiny_llama, ["rte"], str(task_root), None, 0, 4, 0)
    value, stderr, _ = found["rte/acc"]
    assert stderr == pytest.approx((value * (1 - value) / 2) ** 0.5)  # of 3 questions


@lm_eval_tasks
def test_task_metrics_carry_what_lm_eval_says_of_each_question(tiny_llama, task_manager, task_root):
    lm = tiny_llama
    own = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4)
    expected = evaluate_with(own, task_manager, task_root)["samples"]
    with sparse(lm.model, Fixed({}), DENSE) as run:
        found = task_metrics(run, lm, TASKS, str(task_root), None, 0, 4, 0)
    assert {"piqa/acc", "piqa/acc_norm"} <= found.keys()
    for name, metric in found.items():
        task, _, metric_name = name.partition("/")
        of_documents = {sample["doc_id"]: sample[metric_name] for sample in expected[task]}
        assert metric.samples == [of_documents[document] for document in range(3)]
        assert sum(metric.samples) / 3 == metric.value


@lm_eval_tasks
def test_limit_is_the_number_of_questions_of_each_task(tiny_llama, task_root):
    with sparse(tiny_llama.model, Fixed({}), DENSE) as run:
        rows = recorded(run)
        task_metrics(run, tiny_llama, ["piqa"], str(task_root), 2, 0, 4, 0)
    assert len(rows) == 4  # two options each


@lm_eval_tasks
@pytest.mark.parametrize("decided_at", ["token", "prompt", "sequence"])
@pytest.mark.parametrize("criterion", ["l2_norm", "plainact"])
def test_task_metrics_of_an_oracle_do_not_depend_on_the_batch_size(
    tiny_llama, task_root, criterion, decided_at
):
    results = []
    for batch_size in (1, 8):
        with sparse(tiny_llama.model, Oracle(criterion), HALF, decided_at) as run:
            results.append(task_metrics(run, tiny_llama, ["rte"], str(task_root), None, 1, batch_size, 0))
    assert results[0] == results[1]


@lm_eval_tasks
def test_running_tasks_leaves_no_hook(tiny_llama, task_root, hooks_on):
    scorer = Fixed(random_scores(find_sites(tiny_llama.model), 0))
    with sparse(tiny_llama.model, scorer, HALF) as run:
        task_metrics(run, tiny_llama, ["rte"], str(task_root), None, 0, 4, 0)
    assert hooks_on(tiny_llama.model) == 0

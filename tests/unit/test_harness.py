"""lm-eval by name and by configuration: `--model shadow`, tasks that generate, whole documents, shots."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

import shadow.measures.harness  # noqa: F401  registers the model
from shadow.artifacts import hub
from shadow.artifacts import learnt_policies as policies
from shadow.data.tasks import load_tasks, task_specs
from shadow.errors import UserError
from shadow.front import sparse
from shadow.measures.evaluation import task_metrics, weighted_perplexity
from shadow.measures.lm_eval import main
from shadow.measures.sparse_hf import SparseHFLM, rows_of
from shadow.models.kinds import find_sites
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.fixed import Fixed
from shadow.scorers.oracle import Oracle
from shadow.scorers.predicted import Predicted
from shadow.scorers.prompt import PromptActivation

pytestmark = pytest.mark.usefixtures("tasks")
DENSE, HALF = SparsityPolicy(0.0), SparsityPolicy(0.5)
PAGES = [
    "One day it rained .",
    "The cat , which was old , sat on the mat .\n Nobody saw it .",
    "All was well .",
]


@pytest.fixture
def generating(tmp_path):
    """A folder of gsm8k and wikitext in the columns of the hub's data sets."""
    for task in ("gsm8k", "wikitext"):
        (tmp_path / "root" / task).mkdir(parents=True)
    sums = [
        {"question": f"What is {i} and {i + 1}?", "answer": f"We add.\n#### {2 * i + 1}"} for i in range(9)
    ]
    write(tmp_path / "root" / "gsm8k" / "train.jsonl", sums[:6])
    write(tmp_path / "root" / "gsm8k" / "test.jsonl", sums[6:])
    write(tmp_path / "root" / "wikitext" / "train.jsonl", [{"page": "Not this ."}])
    write(tmp_path / "root" / "wikitext" / "test.jsonl", [{"page": page} for page in PAGES])
    return tmp_path / "root"


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def saved(tiny_llama, make_net, config_of, tmp_path):
    """(model's folder, predictor's folder)"""
    tiny_llama.model.save_pretrained(tmp_path / "model")
    tiny_llama.tokenizer.save_pretrained(tmp_path / "model")
    net = make_net(tiny_llama, [1])
    hub.save_predictor(tmp_path / "predictor", net, config_of(net, tiny_llama))
    return str(tmp_path / "model"), str(tmp_path / "predictor")


def spoken(*pairs):
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


PAIRS = [
    ("Where is it?", " Here."),
    ("Where is it?", " There it is."),
    ("Why", "?"),
    ("One two three", " four"),
]


def test_by_name_at_level_0_loglikelihoods_are_those_of_hf_bit_for_bit(saved):
    model, predictor = saved
    expected = HFLM(model, device="cpu", batch_size=3).loglikelihood(spoken(*PAIRS), disable_tqdm=True)
    ours = get_model("shadow").create_from_arg_string(
        f"pretrained={model},predictor={predictor},level=0", {"device": "cpu", "batch_size": 3}
    )
    assert ours.loglikelihood(spoken(*PAIRS), disable_tqdm=True) == expected


def test_by_name_the_model_is_the_one_of_sparse_and_tells_what_it_skipped(saved, tiny_llama, hooks_on):
    model, predictor = saved
    ours = get_model("shadow").create_from_arg_string(
        f"pretrained={model},predictor={predictor},level=0.5,decided_at=prompt,kinds=neuron",
        {"device": "cpu", "batch_size": 3},
    )
    found = ours.loglikelihood(spoken(*PAIRS), disable_tqdm=True)
    scorer = hub.load_predictor(predictor)
    with sparse(tiny_llama.model, scorer, SparsityPolicy(0.5, kinds=("neuron",)), "prompt") as run:
        expected = SparseHFLM(run, tiny_llama, 3).loglikelihood(spoken(*PAIRS), disable_tqdm=True)
    assert found == expected
    assert ours.get_model_info()["achieved_neuron"] == pytest.approx(0.375)  # the first of 4 layers is dense
    assert ours.get_model_info()["achieved_head"] == 0
    ours.close()
    assert hooks_on(ours.model) == 0


def test_by_name_the_thresholds_beside_the_predictor_are_used(saved, tiny_llama):
    model, predictor = saved
    values = {(site.layer, site.kind): 0.05 * site.layer for site in find_sites(tiny_llama.model)}
    policies.save(Path(predictor), "token", policy := SparsityPolicy(0.5, "threshold", thresholds=values), {})
    args = f"pretrained={model},predictor={predictor},level=0.5,scope=threshold"
    create = get_model("shadow").create_from_arg_string
    found = create(args, {"device": "cpu", "batch_size": 3}).loglikelihood(spoken(*PAIRS), disable_tqdm=True)
    with sparse(tiny_llama.model, hub.load_predictor(predictor), policy) as run:
        expected = SparseHFLM(run, tiny_llama, 3).loglikelihood(spoken(*PAIRS), disable_tqdm=True)
    assert found == expected
    assert 0 < run.achieved("neuron") != 0.375
    for other in ("min_units=2", "stand_in=zero"):
        with pytest.raises(UserError, match="are not to be given, got .*" + other.partition("=")[2]):
            create(f"{args},{other}", {"device": "cpu"})


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ("level=0.5", "predictor="),
        ("predictor=PREDICTOR", "level= belong together"),
        ("level=0.5,predictor=PREDICTOR,scope=threshold,head_unit=group", "are not to be given"),
        ("level=0.5,predictor=PREDICTOR,scope=threshold", "no thresholds for level 0.5"),
        ("level=0.5,predictor=PREDICTOR,stand_in=mean", "stand_in=mean"),
        ("level=0.5,predictor=PREDICTOR,stand_in=nothing", "stand_in must be"),
        ("level=0.5,predictor=PREDICTOR,dense_layers=one", "dense_layers"),
        ("level=0.5,predictor=/no/such/folder/at/all", "no folder"),
        ("level=1.5,predictor=PREDICTOR", "sparsity.level"),
    ],
)
def test_arguments_that_cannot_work_are_refused_by_name(saved, args, told):
    model, predictor = saved
    args = args.replace("PREDICTOR", predictor)
    with pytest.raises(UserError, match=re.escape(told)):
        get_model("shadow").create_from_arg_string(f"pretrained={model},{args}", {"device": "cpu"})


@pytest.mark.slow
def test_lm_evals_command_line_runs_it(saved, task_root, tmp_path, monkeypatch, capsys):
    model, predictor = saved
    files = {part: str(task_root / "rte" / f"{part}.jsonl") for part in ("train", "validation")}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\noutput_type: multiple_choice\ntraining_split: train\n"
        f"validation_split: validation\ndataset_kwargs: {{data_files: {json.dumps(files)}}}\n"
        "doc_to_text: '{{sentence1}}'\ndoc_to_target: label\ndoc_to_choice: [' True', ' False']\n"
        "metric_list: [{metric: acc}]\n"
    )
    words = f"--model shadow --model_args pretrained={model},predictor={predictor},level=0.5 --device cpu"
    monkeypatch.setattr(sys, "argv", list(sys.argv))  # lm-eval reads them, and so main sets them
    main([*words.split(), "--tasks", str(tmp_path / "mine" / "mine.yaml")])
    assert re.search(r"mine.*acc", capsys.readouterr().out)


# Generation


@pytest.mark.parametrize("decided_at", ["token", "prompt"])
def test_a_task_that_generates_says_what_the_sparse_model_generates(
    tiny_llama, make_net, generating, decided_at
):
    lm = tiny_llama
    with sparse(lm.model, Predicted(make_net(lm, [1]), "scores"), HALF, decided_at) as run:
        prompt = lm.tokenizer("What is it?", return_tensors="pt")["input_ids"]
        expected = lm.model.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :]
        from lm_eval.api.instance import Instance

        asked = [
            Instance("generate_until", {}, (text, {"until": ["\x00"], "max_gen_toks": 6}), i)
            for i, text in enumerate(["What is it?", "A much longer question is asked here, what is it?"])
        ]
        found = SparseHFLM(run, lm, 2).generate_until(asked, disable_tqdm=True)
        assert found[0] == lm.tokenizer.decode(expected, skip_special_tokens=True)
        assert run.achieved("neuron") == pytest.approx(0.375)


@pytest.mark.parametrize("decided_at", ["token", "prompt"])
def test_gsm8k_runs_from_local_files_with_shots_from_train(tiny_llama, make_net, generating, decided_at):
    lm = tiny_llama
    lm.model.generation_config.max_new_tokens = None
    with sparse(lm.model, Predicted(make_net(lm, [1]), "scores"), HALF, decided_at) as run:
        found = task_metrics(run, lm, ["gsm8k"], str(generating), 1, 2, 2, 0)
    assert set(found) == {"gsm8k/exact_match:strict-match", "gsm8k/exact_match:flexible-extract"}
    assert all(metric.value in (0.0, 1.0) and len(metric.samples) == 1 for metric in found.values())


def test_an_oracle_cannot_generate_and_a_prompts_activations_can(tiny_llama):
    from lm_eval.api.instance import Instance

    asked = [
        Instance("generate_until", {}, (text, {"until": ["\x00"], "max_gen_toks": 3}), i)
        for i, text in enumerate(["What is it?", "Longer: what is it?"])
    ]
    with (
        sparse(tiny_llama.model, Oracle("l2_norm"), HALF, "prompt") as run,
        pytest.raises(UserError, match="oracle"),
    ):
        SparseHFLM(run, tiny_llama, 2).generate_until(asked, disable_tqdm=True)
    texts = []
    for batch_size in (1, 2):
        with sparse(tiny_llama.model, PromptActivation("griffin"), HALF, "prompt") as run:
            texts.append(SparseHFLM(run, tiny_llama, batch_size).generate_until(asked, disable_tqdm=True))
    assert texts[0] == texts[1]


# Whole documents


def test_wikitext_gives_word_byte_and_token_perplexity_of_the_same_loss(tiny_llama, generating):
    with sparse(tiny_llama.model, Fixed({}), DENSE) as run:
        found = task_metrics(run, tiny_llama, ["wikitext"], str(generating), None, 0, 2, 0)
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    counts = {
        "word": sum(len(re.split(r"\s+", page)) for page in PAGES),
        "byte": sum(len(page.encode()) for page in PAGES),
        "token": sum(
            len(tiny_llama.tokenizer(wikitext_detokenizer({"page": page}))["input_ids"]) for page in PAGES
        ),
    }
    losses = [count * math.log(found[f"wikitext/{unit}_perplexity"].value) for unit, count in counts.items()]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    for unit in counts:
        metric = found[f"wikitext/{unit}_perplexity"]
        assert len(metric.samples) == 3
        assert math.exp(sum(metric.samples) / 3) == pytest.approx(metric.value)
        assert metric.stderr > 0
    bits = found["wikitext/bits_per_byte"]
    assert sum(bits.samples) / 3 == pytest.approx(bits.value)


def test_documents_have_no_prompt_that_could_decide(tiny_llama, make_net, generating):
    with (
        sparse(tiny_llama.model, Predicted(make_net(tiny_llama, [1]), "scores"), HALF, "prompt") as run,
        pytest.raises(UserError, match="wikitext"),
    ):
        task_metrics(run, tiny_llama, ["wikitext"], str(generating), None, 0, 2, 0)


def test_a_ratios_standard_error_is_0_where_every_loss_follows_from_its_weight():
    assert weighted_perplexity([2.0, 4.0, 20.0], [1, 2, 10]).stderr == pytest.approx(0, abs=1e-12)
    value, stderr, samples = weighted_perplexity([1.0, 3.0], [1, 1])
    assert (value, stderr) == pytest.approx((math.exp(2), math.exp(2)))
    assert samples == [1, 3]


# Shots and batches


@pytest.mark.parametrize("num_fewshot", [0, 3, 5])
def test_all_seven_tasks_take_their_shots_from_train(shared_data, num_fewshot):
    from shadow.data.tasks import require_tasks

    names = ["piqa", "copa", "openbookqa", "winogrande", "rte", "hellaswag", "arc_easy"]
    for name, task in load_tasks(require_tasks(names), task_specs(names, str(shared_data))).items():
        task.set_fewshot_seed(0)
        shots = [json.dumps(shot, sort_keys=True) for shot in task.fewshot_docs()]
        rows = (shared_data / name / "train.jsonl").read_text().splitlines()
        assert len(shots) == len(rows)
        document = next(iter(task.eval_docs))
        assert json.dumps(document, sort_keys=True) not in shots
        found = task.fewshot_context(document, num_fewshot)
        contexts = found if isinstance(found, list) else [found]  # one for each option of a blank to fill
        assert all(context.count("\n\n") >= num_fewshot for context in contexts)


def test_shots_from_the_evaluated_split_are_refused(tiny_llama, task_root, monkeypatch):
    from shadow.measures import evaluation

    specs = [spec | {"training_split": None} for spec in task_specs(["rte"], str(task_root))]
    monkeypatch.setattr(evaluation, "task_specs", lambda names, root: specs)
    with (
        sparse(tiny_llama.model, Fixed({}), DENSE) as run,
        pytest.raises(UserError, match=r"measure\.num_fewshot=2"),
    ):
        task_metrics(run, tiny_llama, ["rte"], str(task_root), None, 2, 2, 0)


def test_trials_of_how_many_rows_fit_are_no_ones_and_are_not_counted(tiny_llama, make_net, monkeypatch):
    """On a GPU lm-eval runs rows of ones until memory is full, before the requests and between them."""

    def tried(self, requests=None, pos=0):
        with torch.no_grad():
            self._model_call(torch.ones(3, 9, dtype=torch.long))
        return 2

    class Gpu(str):
        type = "cuda"

    monkeypatch.setattr(HFLM, "_detect_batch_size", tried)
    monkeypatch.setattr(HFLM, "device", property(lambda self: Gpu("cpu")))
    found = []
    for batch_size in ("auto", 2):
        with sparse(tiny_llama.model, Predicted(make_net(tiny_llama, [1]), "scores"), HALF) as run:
            told = SparseHFLM(run, tiny_llama, batch_size).loglikelihood(spoken(*PAIRS), disable_tqdm=True)
            found.append((told, run.planner.total.copy()))
    assert found[0] == found[1]


def test_auto_batches_give_the_figures_of_others(tiny_llama, generating, task_root):
    assert (rows_of(64), rows_of(3000), rows_of(1)) == (32, 1, 64)
    with sparse(tiny_llama.model, Fixed({}), DENSE) as run:
        auto = [
            task_metrics(run, tiny_llama, [task], str(root), None, 0, "auto", 0)
            for task, root in (("rte", task_root), ("wikitext", generating))
        ]
        other = [
            task_metrics(run, tiny_llama, [task], str(root), None, 0, 2, 0)
            for task, root in (("rte", task_root), ("wikitext", generating))
        ]
    for ours, theirs in zip(auto, other):
        assert {k: m.value for k, m in ours.items()} == pytest.approx({k: m.value for k, m in theirs.items()})
    assert torch.get_num_threads() == 1

"""A point that was measured before is found again, and never taken for another."""

import csv
import json
import multiprocessing
import shutil
from pathlib import Path

import pytest

from shadow.artifacts.hub import save_predictor
from shadow.errors import UserError
from shadow.jobs import config, disjoint, keys, measure_checks, measures, point_records, predictor_curve
from shadow.jobs.run import versions
from shadow.measures.evaluation import Metric

UNREAD = {"skipped": 0.25, "skipped_of_layers": 0.375, "by_kind": {"head": 0.125}, "added": 0.0}
METRICS = {
    "perplexity": Metric(12.5, 0.25, [2.0, 3.0]),
    "choices/acc": Metric(0.5, None, [0.0, 1.0]),
    "seconds": Metric(0.5, None),
}


def record_of(cfg, **others):
    run = {"commit": {"sha": "abc"}, "versions": {"torch": "1"}, "machine": {"threads": 3}}
    return {"content": measures.content_of(cfg), **run, **others}


def keep(cfg, **others):
    record = record_of(cfg, **others)
    point_records.keep(cfg, record, {"head": 0.375, "neuron": 0.375}, UNREAD, METRICS)
    predictor_curve.add_to_curve(cfg, record)


def is_found(cfg) -> bool:
    return point_records.find(cfg, record_of(cfg)) is not None


def test_a_point_is_found_with_its_figures(compose):
    cfg = compose("evaluate", "predictor=random")
    keep(cfg)
    record = record_of(cfg, versions={"torch": "2"}, machine={"threads": 4})
    assert point_records.find(cfg, record).is_file()
    assert (record["versions"], record["machine"]) == ({"torch": "1"}, {"threads": 3})
    assert record["achieved"] == {"head": 0.375, "neuron": 0.375}
    assert record["bytes"] == UNREAD
    assert record["metrics"] == {
        "perplexity": {"value": 12.5, "stderr": 0.25},
        "choices/acc": {"value": 0.5, "stderr": None},
        "seconds": {"value": 0.5, "stderr": None},
    }
    assert record["predictor"] is None
    assert record["reused_from"].endswith("output")


def test_what_each_example_gave_lies_beside_the_record_and_is_found_with_its_point(compose, tmp_path):
    cfg = compose("evaluate", "predictor=random")
    keep(cfg)
    file = tmp_path / "output" / "samples.json"
    kept = {"perplexity": [2.0, 3.0], "choices/acc": [0.0, 1.0]}
    assert json.loads(file.read_text()) == kept
    file.unlink()
    assert is_found(cfg)
    assert json.loads(file.read_text()) == kept


def test_a_point_of_a_net_is_found_with_its_size_though_the_net_is_gone(compose, trained):
    cfg = compose("evaluate", *NET)
    folder = trained(cfg)
    keep(cfg)
    shutil.rmtree(folder)
    record = record_of(cfg)
    assert point_records.find(cfg, record)
    assert record["predictor"] == {
        "taps": 1,
        "rank": 8,
        "parameters": 12345,
        "share_of_model": 0.0625,
        "metrics": {"val/recall@50": 0.75, "val/loss": 0.5},
    }


@pytest.mark.parametrize("job", [["predictor=static"], ["sparsity.level=0"]], ids=str)
def test_a_point_that_no_net_decides_has_no_size(compose, trained, job):
    trained(compose("evaluate", *NET))
    cfg = compose("evaluate", *NET, *job)
    record = record_of(cfg)
    point_records.keep(cfg, record, {"head": 0, "neuron": 0}, UNREAD, METRICS)
    assert record["predictor"] is None


SAME = [
    "tags=[a]",
    "logger=wandb",
    "callbacks.progress=null",
    "make_missing=true",
    "model.source.cache=/elsewhere",
]
OTHER = [
    "predictor=oracle",
    "predictor=static",
    "sparsity.level=0.3",
    "sparsity=global",
    "sparsity.min_units=2",
    "sparsity.stand_in=mean",
    "sparsity.dense_layers=[0,1]",
    "sparsity.kinds=[head]",
    "sparsity.tokens=decode",
    "sparsity.slots=[o]",
    "executor=gathered",
    "sparsity.decided_at=prompt",
    "criterion=fisher",
    "seed=2",
    "model=tiny-opt",
    "model.dtype=bfloat16",
    "measure.windows=3",
    "measure.dtype=bfloat16",
    "measure.batch_size=1",
    "measure=choices",
    "data.split_seed=1",
    "data.eval_share=0.5",
]


@pytest.mark.parametrize("override", SAME)
def test_a_point_is_found_whatever_does_not_concern_it(compose, override):
    keep(compose("evaluate", "predictor=random"))
    assert is_found(compose("evaluate", "predictor=random", override))


def test_a_point_is_found_whether_its_fill_is_said_or_follows_from_the_criterion(compose):
    job = ["predictor=random", "criterion=l2_deviation"]
    keep(compose("evaluate", *job))
    assert is_found(compose("evaluate", *job, "sparsity.stand_in=mean"))
    assert not is_found(compose("evaluate", *job, "sparsity.stand_in=zero"))


@pytest.mark.parametrize("override", OTHER)
def test_a_point_of_other_settings_is_not_found(compose, override):
    keep(compose("evaluate", "predictor=random"))
    overrides = [override] if override.startswith("predictor") else ["predictor=random", override]
    assert not is_found(compose("evaluate", *overrides))


@pytest.mark.parametrize("override", ["predictor.rank=3", "data.windows=50", "traces.tokens_per_window=3"])
def test_a_point_of_another_predictor_is_not_found(compose, override):
    keep(compose("evaluate"))
    assert is_found(compose("evaluate"))
    assert not is_found(compose("evaluate", override))


STATIC = ["predictor=static"]
ORACLE = ["predictor=oracle", "criterion=fisher"]
DRAWN = ["predictor=static", "criterion=random"]
PROMPT = ["predictor=prompt_activation", "sparsity.decided_at=prompt"]
COPY = ["predictor=svd"]


@pytest.mark.parametrize(
    ("job", "override", "same"),
    [
        (STATIC, "data.windows=100", False),
        (STATIC, "data.tokens=32", False),
        (STATIC, "traces.loss=next_token", False),
        (STATIC, "traces.summed=prompt", False),
        (STATIC, "traces.dtype=ranks", False),
        (STATIC, "traces.shard_windows=32", False),
        (STATIC, "traces.criteria=all", True),  # of the same store, what is used is the same
        (STATIC, "traces.batch_size=4", True),
        (ORACLE, "traces.loss=next_token", False),
        (ORACLE, "traces.summed=prompt", True),
        (ORACLE, "data.windows=100", True),
        (DRAWN, "data.windows=100", True),
        (PROMPT, "criterion=griffin", False),
        (PROMPT, "data.windows=100", True),
        (["predictor=teal"], "criterion=fisher", True),  # which nothing reads
        (COPY, "predictor.rank=3", False),
        (COPY, "data.windows=100", False),
        ([*COPY, "criterion=random"], "predictor.rank=3", False),
        ([*COPY, "criterion=random"], "data.windows=100", True),
    ],
    ids=str,
)
def test_a_point_follows_what_its_scores_are_made_from_and_nothing_else(compose, job, override, same):
    keep(compose("evaluate", *job))
    assert is_found(compose("evaluate", *job)) is True
    assert is_found(compose("evaluate", *job, override)) is same


def test_the_dense_point_is_the_same_for_every_scorer(compose):
    keep(compose("evaluate", "sparsity.level=0.0", "predictor=unified"))
    for predictor in ("static", "random", "oracle", "layerwise", "svd"):
        assert is_found(
            compose("evaluate", "sparsity.level=0.0", f"predictor={predictor}", "criterion=fisher")
        )
        assert is_found(
            compose("evaluate", "sparsity.level=0.0", f"predictor={predictor}", "sparsity.stand_in=mean")
        )
    assert not is_found(compose("evaluate", "sparsity.level=0.1"))


@pytest.mark.parametrize(
    ("library", "executor", "same"),
    [
        ("torch", "masked", False),
        ("transformers", "masked", False),
        ("lm-eval", "masked", False),
        ("numba", "gathered", False),
        ("numba", "masked", True),
        ("hydra-core", "masked", True),
    ],
)
def test_a_point_of_other_libraries_is_not_found(compose, monkeypatch, library, executor, same):
    cfg = compose("evaluate", "predictor=random", f"executor={executor}")
    keep(cfg)
    known = versions()
    monkeypatch.setattr(point_records, "versions", lambda: known | {library: "99"})
    assert is_found(cfg) is same


def test_a_point_of_another_format_is_not_found(compose, monkeypatch):
    """What a change of code that changes figures must raise; nothing else of the code counts."""
    cfg = compose("evaluate", "predictor=random")
    keep(cfg)
    monkeypatch.setattr(point_records, "POINT_FORMAT", point_records.POINT_FORMAT + 1)
    assert not is_found(cfg)


def test_every_setting_of_method_and_executor_is_in_the_key(compose):
    """Also those of a class that this project does not know."""
    cfg = compose("evaluate", "executor=gathered", "measure.text=null")
    settings = point_records.settings_of(cfg, record_of(cfg))
    assert settings["predictor"] == config.plain(cfg.predictor)
    assert settings["executor"] == config.plain(cfg.executor)
    unused = {"learnt", "block", "slot_levels", "slot_probes"}  # nothing is learnt or shared out
    assert settings["sparsity"].keys() == cfg.sparsity.keys() - unused
    learning = compose("evaluate", "predictor=teal", "sparsity.learnt.windows=8", "sparsity.budgets=block")
    learning.sparsity.slot_levels = {"o": 0.7}
    asked = point_records.settings_of(learning, record_of(learning))["sparsity"]
    assert asked.keys() == cfg.sparsity.keys() - {"slot_probes"}
    assert settings["measure"].keys() == cfg.measure.keys() - {"root", "text", "column"}


def test_reuse_can_be_refused(compose):
    keep(compose("evaluate", "predictor=random"))
    assert not is_found(compose("evaluate", "predictor=random", "reuse_points=false"))


def test_a_point_of_another_text_is_not_found_though_its_file_has_the_same_name(compose, tmp_path):
    job = ["predictor=random", "data=text"]
    job += [f"data.{part}={tmp_path / part}.txt" for part in ("train", "eval")]
    for part in ("train", "eval"):
        (tmp_path / f"{part}.txt").write_text("some words " * 100)
    keep(compose("evaluate", *job))
    assert is_found(compose("evaluate", *job))
    (tmp_path / "eval.txt").write_text("other words " * 100)
    assert not is_found(compose("evaluate", *job))


def test_a_point_of_other_questions_is_not_found_though_the_tasks_have_the_same_name(compose, tmp_path):
    (tmp_path / "rte").mkdir()
    row = {"sentence1": "a", "sentence2": "b", "label": 0, "idx": 0}
    for part in ("train", "validation"):
        (tmp_path / "rte" / f"{part}.jsonl").write_text(json.dumps(row) + "\n")
    job = ["predictor=random", "measure=tasks", "measure.tasks=[rte]", f"measure.root={tmp_path}"]
    keep(compose("evaluate", *job))
    assert is_found(compose("evaluate", *job))
    (tmp_path / "rte" / "validation.jsonl").write_text(json.dumps(row | {"label": 1}) + "\n")
    assert not is_found(compose("evaluate", *job))


def test_a_point_of_other_weights_is_not_found_though_they_lie_in_the_same_folder(compose, tmp_path, make_lm):
    """A model that was trained further and saved to its place again."""
    job = ["predictor=random", f"model.path={tmp_path / 'model'}"]
    make_lm("opt").model.save_pretrained(tmp_path / "model")
    keep(compose("evaluate", *job))
    assert is_found(compose("evaluate", *job))
    make_lm("opt", seed=1).model.save_pretrained(tmp_path / "model")
    assert not is_found(compose("evaluate", *job))


# The curve of a predictor


NET = ["sparsity.level=0.3", "sparsity.decided_at=prompt"]


@pytest.fixture
def trained(compose, tiny_opt, make_net, config_of):
    """trained(cfg): the folder of its predictor, finished."""

    def make(cfg):
        net = make_net(tiny_opt, [1])
        save_predictor(keys.predictor_folder(cfg), net, config_of(net, tiny_opt))
        return keys.predictor_folder(cfg)

    return make


def rows_of(folder):
    if not (folder / "curve.csv").is_file():
        return []
    with (folder / "curve.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_point_of_a_trained_net_is_added_to_its_curve_and_its_card(compose, trained):
    cfg = compose("evaluate", *NET)
    folder = trained(cfg)
    record = record_of(cfg)
    point_records.keep(cfg, record, {"head": 0.25, "neuron": 0.125}, UNREAD, METRICS)
    predictor_curve.add_to_curve(cfg, record)
    (row,) = rows_of(folder)
    assert len(row.pop("point")) == 10
    assert row == {
        "level": "0.3",
        "decided_at": "prompt",
        "scope": "layer",
        "tokens": "all",
        "scored": "behind the prompt",
        "stand_in": "zero",
        "data": "builtin",
        "other": "",
        "bytes_skipped": "0.25",
        "bytes_skipped_of_layers": "0.375",
        "achieved_head": "0.25",
        "achieved_neuron": "0.125",
        "commit": "abc",
        "format": "2",
        "perplexity": "12.5",
        "perplexity_stderr": "0.25",
        "choices/acc": "0.5",
        "choices/acc_stderr": "",
        "seconds": "0.5",
        "seconds_stderr": "",
    }
    assert (
        "| 0.3 | prompt | layer | all | behind the prompt | zero | builtin | 0.25 | 0.375 | 0.25 | 0.125 "
        "| 0.5 | 12.5 ± 0.25 | 0.5 |"
    ) in (folder / "README.md").read_text(encoding="utf-8")
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "predictor.safetensors",
        "README.md",
        "curve.csv",
    }


def test_points_that_differ_in_more_than_the_columns_say_in_what(compose, trained):
    folder = trained(compose("evaluate", *NET))
    for others in (
        ["predictor.dense_fed=true"],
        ["sparsity.kinds=[head]", "sparsity.dense_layers=[0,1]"],
        ["executor=gathered", "executor.storage=int8"],
    ):
        keep(compose("evaluate", *NET, *others))
    assert sorted(row["other"] for row in rows_of(folder)) == [
        "dense_fed=True",
        "dense_layers=[0, 1], kinds=['head']",
        "storage=int8, executor=gathered",
    ]


def test_times_are_of_so_many_threads_and_other_figures_of_any(compose, monkeypatch):
    def keys():
        timed = ["executor=gathered", "measure=latency"]
        cfgs = [compose("evaluate", *others) for others in (timed, [])]
        return [point_records.settings_of(cfg, record_of(cfg)) for cfg in cfgs]

    before = keys()
    monkeypatch.setattr("torch.get_num_threads", lambda: 99)
    after = keys()
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_a_point_measured_by_other_libraries_replaces_itself_and_no_point_of_other_settings(
    compose, trained, monkeypatch
):
    folder, known = trained(compose("evaluate", *NET)), versions()
    for torch, others in (
        ("old", []),
        ("new", []),
        ("new", ["sparsity.level=0.4"]),
        ("new", ["measure=choices"]),
    ):
        monkeypatch.setattr(point_records, "versions", lambda torch=torch: known | {"torch": torch})
        keep(compose("evaluate", *NET, *others), commit={"sha": torch})
    assert sorted((row["level"], row["commit"]) for row in rows_of(folder)) == [
        ("0.3", "new"),
        ("0.3", "new"),
        ("0.4", "new"),
    ]


@pytest.mark.parametrize(
    "others", [["predictor=static"], ["predictor=random"], ["sparsity.level=0"]], ids=str
)
def test_a_point_of_no_trained_net_is_on_no_curve(compose, trained, others):
    folder = trained(compose("evaluate", *NET))
    keep(compose("evaluate", *NET, *others))
    assert rows_of(folder) == []


def test_a_point_whose_job_was_killed_before_its_curve_was_told_is_told_by_the_rerun(compose, trained):
    cfg = compose("evaluate", *NET)
    folder = trained(cfg)
    keep(cfg)
    told = (folder / "curve.csv").read_bytes()
    (folder / "curve.csv").unlink()
    record = record_of(cfg)
    assert point_records.find(cfg, record)
    predictor_curve.add_to_curve(cfg, record)
    assert (folder / "curve.csv").read_bytes() == told


# Descriptions and refusals


def test_a_point_is_described_in_the_words_of_a_curve(compose):
    cfg = compose("evaluate", "model=tiny-opt", "predictor=oracle", "criterion=fisher", "sparsity.level=0.3")
    assert point_records.describe(cfg) == {
        "model": "tiny-opt",
        "data": "builtin",
        "criterion": "fisher",
        "scorer": "oracle",
        "decided_at": "token",
        "scope": "layer",
        "level": 0.3,
        "tokens": "all",
        "scored": "all",
        "seed": 1234,
    }


def test_a_local_model_is_called_by_its_folder(compose):
    assert point_records.describe(compose("evaluate", "model.path=/some/my-model"))["model"] == "my-model"


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (["measure.perplexity=false", "measure.choices=false"], "measure must ask for at least one"),
        (["measure.divergence=2"], "measure.divergence must be true or false, got 2"),
        (["data=text"], r"data\.eval"),
        (["data=text", "measure=choices"], r"data\.eval"),
        (["data=tasks"], "measure=tasks"),
        (["measure=criterion_quality"], r"sparsity\.level must be 0, got 0\.5"),
        (["measure=criterion_quality", "sparsity.level=0", "measure.quality=[best]"], "quality.*best"),
        (
            ["measure=criterion_quality", "sparsity.level=0", "measure.quality=[l2_deviation]"],
            "measure.quality.*setting a unit to 0.*l2_deviation",
        ),
        (["measure=criterion_quality", "sparsity.level=0", "data=text"], r"data\.eval"),
    ],
)
def test_a_measure_that_cannot_be_is_refused_before_the_model_is_loaded(compose, job, message):
    with pytest.raises(UserError, match=message):
        measure_checks.check_measure(compose("evaluate", *job))


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize(
    ("job", "message"),
    [
        (["measure.tasks=[no_such_task]"], "no_such_task"),
        (["measure.tasks=[piqa]", "measure.root=/nowhere"], "/nowhere"),
    ],
)
def test_tasks_that_cannot_be_are_refused_before_the_model_is_loaded(compose, job, message):
    with pytest.raises(UserError, match=message):
        measure_checks.check_measure(compose("evaluate", "measure=tasks", *job))


def test_the_folder_of_the_tasks_of_calibration_is_that_of_measuring_unless_another_is_given(compose):
    assert measure_checks.task_root(compose("evaluate", "data=tasks", "data.root=/a")) == "/a"
    other = compose("evaluate", "data=tasks", "data.root=/a", "measure.root=/b")
    assert measure_checks.task_root(other) == "/b"
    assert measure_checks.task_root(compose("evaluate")) is None


def test_a_scorer_of_tasks_can_be_measured_on_a_text_of_its_own(compose, tmp_path):
    file = tmp_path / "other.jsonl"
    file.write_text(json.dumps({"body": "words of another kind"}) + "\n")
    job = ["data=tasks", "measure=perplexity", f"measure.text={file}"]
    cfg = compose("evaluate", *job, "measure.column=body")
    measure_checks.check_measure(cfg)
    assert measure_checks.running_text(cfg) == ["words of another kind"]
    assert predictor_curve.unusual(cfg) == "text=other.jsonl"
    with pytest.raises(UserError, match=r"measure\.text.*'page'"):
        measure_checks.check_measure(compose("evaluate", *job))


def test_a_text_that_no_measure_reads_is_refused(compose, tmp_path):
    (tmp_path / "a.txt").write_text("words")
    job = ["data=tasks", "measure=tasks", "measure.tasks=[piqa]", f"measure.text={tmp_path / 'a.txt'}"]
    with pytest.raises(UserError, match=r"measure\.text=.*measure asks for none"):
        measure_checks.check_measure(compose("evaluate", *job))


@pytest.mark.parametrize("setting", ["data.eval", "measure.text"])
@pytest.mark.parametrize(
    "job",
    [
        ["measure=perplexity", "measure.tokens=400"],
        ["measure=choices", "measure.tokens=4000"],  # of perplexity's windows alone
        ["measure=perplexity", "measure.tokens=400", "predictor=oracle", "sparsity=threshold"],
    ],
    ids=["perplexity", "choices", "thresholds"],
)
def test_what_was_calibrated_on_is_not_measured_on(compose, tmp_path, setting, job):
    def file(name: str, *pages: str) -> Path:
        (tmp_path / name).write_text("".join(json.dumps({"page": page}) + "\n" for page in pages))
        return tmp_path / name

    train = file("train.jsonl", "title", "長" * 150)
    other = file("other.jsonl", "title", "else " * 100)
    both = file("both.jsonl", "title", "else " * 100, "長" * 150)
    job = ["data=text", f"data.train={train}", f"data.eval={other}", "make_missing=true", *job]
    disjoint.check_disjoint(compose("evaluate", *job))  # a title is no window
    cfg = compose("evaluate", *job, f"{setting}={both}")
    with pytest.raises(UserError, match=rf"{setting} must have no document of data\.train.* 1 of its 3 "):
        disjoint.check_disjoint(cfg)
    disjoint.check_disjoint(compose("evaluate", *job, f"{setting}={both}", "sparsity.level=0"))


def test_a_point_is_of_the_text_that_was_measured_wherever_it_lies(compose, tmp_path):
    (tmp_path / "a.txt").write_text("words " * 100)
    (tmp_path / "b.txt").write_text("words " * 100)
    job = ["predictor=random", "measure=perplexity"]
    keep(compose("evaluate", *job, f"measure.text={tmp_path / 'a.txt'}"))
    assert is_found(compose("evaluate", *job, f"measure.text={tmp_path / 'b.txt'}"))
    assert not is_found(compose("evaluate", *job))
    (tmp_path / "b.txt").write_text("other words " * 100)
    assert not is_found(compose("evaluate", *job, f"measure.text={tmp_path / 'b.txt'}"))


def test_jobs_that_end_together_all_reach_the_curve(compose, trained):
    cfg = compose("evaluate", *NET)
    folder = trained(cfg)
    levels = [0.1, 0.2, 0.3, 0.4]
    fork = multiprocessing.get_context("fork")
    jobs = [
        fork.Process(target=keep, args=(compose("evaluate", *NET, f"sparsity.level={n}"),)) for n in levels
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [float(row["level"]) for row in rows_of(folder)] == levels

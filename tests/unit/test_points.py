"""A point that was measured before is found again, and never taken for another."""

import csv
import json
import multiprocessing
import shutil
from pathlib import Path

import pytest

from shadow.artifacts.hub import save_predictor
from shadow.errors import UserError
from shadow.jobs import checks, measures, points, settings
from shadow.measures.evaluation import Metric

CODE = "0123456789abcdef"
METRICS = {
    "perplexity": Metric(12.5, 0.25, [2.0, 3.0]),
    "choices/acc": Metric(0.5, None, [0.0, 1.0]),
    "seconds": Metric(0.5, None),
}


def record_of(cfg, code=CODE, **others):
    return {"code": code, "content": measures.content_of(cfg), **others}


def keep(cfg, **others):
    points.keep(cfg, record_of(cfg, **others), {"head": 0.375, "neuron": 0.375}, METRICS)


def is_found(cfg, code=CODE) -> bool:
    return points.find(cfg, record_of(cfg, code)) is not None


def test_a_point_is_found_with_its_figures(compose):
    cfg = compose("evaluate", "predictor=random")
    keep(cfg, versions={"torch": "1"}, machine={"threads": 3})
    record = record_of(cfg, versions={"torch": "2"}, machine={"threads": 4})
    assert points.find(cfg, record).is_file()
    assert (record["versions"], record["machine"]) == ({"torch": "1"}, {"threads": 3})
    assert record["achieved"] == {"head": 0.375, "neuron": 0.375}
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
    assert points.find(cfg, record)
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
    points.keep(cfg, record, {"head": 0, "neuron": 0}, METRICS)
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
    "sparsity.fill=mean",
    "sparsity.dense_layers=[0,1]",
    "sparsity.kinds=[head]",
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
    assert is_found(compose("evaluate", *job, "sparsity.fill=mean"))
    assert not is_found(compose("evaluate", *job, "sparsity.fill=zero"))


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
        (STATIC, "predictor.rank=3", True),
        (ORACLE, "traces.loss=next_token", False),
        (ORACLE, "traces.summed=prompt", True),
        (ORACLE, "data.windows=100", True),
        (DRAWN, "data.windows=100", True),
        (DRAWN, "traces.loss=next_token", True),
        (PROMPT, "criterion=griffin", False),
        (PROMPT, "traces.loss=next_token", True),  # the loss is that of the prompt's own tokens
        (PROMPT, "data.windows=100", True),
        (COPY, "predictor.rank=3", False),
        (COPY, "data.windows=100", False),
        (COPY, "predictor.lr=0.1", True),
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
            compose("evaluate", "sparsity.level=0.0", f"predictor={predictor}", "sparsity.fill=mean")
        )
    assert not is_found(compose("evaluate", "sparsity.level=0.1"))


def test_a_point_of_other_code_is_not_found(compose):
    keep(compose("evaluate", "predictor=random"))
    assert not is_found(compose("evaluate", "predictor=random"), code="another")


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
        save_predictor(settings.predictor_folder(cfg), net, config_of(net, tiny_opt))
        return settings.predictor_folder(cfg)

    return make


def rows_of(folder):
    if not (folder / "curve.csv").is_file():
        return []
    with (folder / "curve.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_point_of_a_trained_net_is_added_to_its_curve_and_its_card(compose, trained):
    cfg = compose("evaluate", *NET)
    folder = trained(cfg)
    points.keep(cfg, record_of(cfg, commit={"sha": "abc"}), {"head": 0.25, "neuron": 0.125}, METRICS)
    (row,) = rows_of(folder)
    assert len(row.pop("point")) == 10
    assert row == {
        "level": "0.3",
        "decided_at": "prompt",
        "scope": "layer",
        "fill": "zero",
        "data": "builtin",
        "other": "",
        "achieved_head": "0.25",
        "achieved_neuron": "0.125",
        "code": CODE,
        "commit": "abc",
        "perplexity": "12.5",
        "perplexity_stderr": "0.25",
        "choices/acc": "0.5",
        "choices/acc_stderr": "",
        "seconds": "0.5",
        "seconds_stderr": "",
    }
    assert "| 0.3 | prompt | layer | zero | builtin |  | 0.25 | 0.125 | 0.5 | 12.5 ± 0.25 | 0.5 |" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "predictor.safetensors",
        "README.md",
        "curve.csv",
    }


def test_points_that_differ_in_more_than_the_columns_say_in_what(compose, trained):
    folder = trained(compose("evaluate", *NET))
    for others in (
        ["measure.dense_fed=true"],
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
        return [points.settings_of(cfg, record_of(cfg)) for cfg in cfgs]

    before = keys()
    monkeypatch.setattr("torch.get_num_threads", lambda: 99)
    after = keys()
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_a_point_measured_by_other_code_replaces_itself_and_no_point_of_other_settings(compose, trained):
    folder = trained(compose("evaluate", *NET))
    for code, others in (
        ("old", []),
        ("new", []),
        ("new", ["sparsity.level=0.4"]),
        ("new", ["measure=choices"]),
    ):
        keep(compose("evaluate", *NET, *others), code=code)
    assert sorted((row["level"], row["code"]) for row in rows_of(folder)) == [
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
    assert points.find(cfg, record)
    points.tell(cfg, record)
    assert (folder / "curve.csv").read_bytes() == told


# Descriptions and refusals


def test_a_point_is_described_in_the_words_of_a_curve(compose):
    cfg = compose("evaluate", "model=tiny-opt", "predictor=oracle", "criterion=fisher", "sparsity.level=0.3")
    assert points.describe(cfg) == {
        "model": "tiny-opt",
        "data": "builtin",
        "criterion": "fisher",
        "scorer": "oracle",
        "decided_at": "token",
        "scope": "layer",
        "level": 0.3,
        "seed": 1234,
    }


def test_a_local_model_is_called_by_its_folder(compose):
    assert points.describe(compose("evaluate", "model.path=/some/my-model"))["model"] == "my-model"


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (["measure.perplexity=false", "measure.choices=false"], "measure must ask for at least one"),
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
        measures.check_measure(compose("evaluate", *job))


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
        measures.check_measure(compose("evaluate", "measure=tasks", *job))


def test_the_folder_of_the_tasks_of_calibration_is_that_of_measuring_unless_another_is_given(compose):
    assert measures.task_root(compose("evaluate", "data=tasks", "data.root=/a")) == "/a"
    assert measures.task_root(compose("evaluate", "data=tasks", "data.root=/a", "measure.root=/b")) == "/b"
    assert measures.task_root(compose("evaluate")) is None


def test_a_scorer_of_tasks_can_be_measured_on_a_text_of_its_own(compose, tmp_path):
    file = tmp_path / "other.jsonl"
    file.write_text(json.dumps({"body": "words of another kind"}) + "\n")
    job = ["data=tasks", "measure=perplexity", f"measure.text={file}"]
    cfg = compose("evaluate", *job, "measure.column=body")
    measures.check_measure(cfg)
    assert measures.running_text(cfg) == ["words of another kind"]
    assert points.unusual(cfg) == "text=other.jsonl"
    with pytest.raises(UserError, match=r"measure\.text.*'page'"):
        measures.check_measure(compose("evaluate", *job))


def test_a_text_that_no_measure_reads_is_refused(compose, tmp_path):
    (tmp_path / "a.txt").write_text("words")
    job = ["data=tasks", "measure=tasks", "measure.tasks=[piqa]", f"measure.text={tmp_path / 'a.txt'}"]
    with pytest.raises(UserError, match=r"measure\.text=.*measure asks for none"):
        measures.check_measure(compose("evaluate", *job))


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
    checks.check_disjoint(compose("evaluate", *job))  # a title is no window
    cfg = compose("evaluate", *job, f"{setting}={both}")
    with pytest.raises(UserError, match=rf"{setting} must have no document of data\.train.* 1 of its 3 "):
        checks.check_disjoint(cfg)
    checks.check_disjoint(compose("evaluate", *job, f"{setting}={both}", "sparsity.level=0"))


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

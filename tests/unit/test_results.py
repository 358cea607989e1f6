"""The table that a measurement ends with."""

import json

from run_records import write_job
from shadow.sweeps.records.reading import read
from shadow.sweeps.reports.markdown import aligned

from shadow.jobs import point_records
from shadow.jobs.config import plain
from shadow.jobs.results import tables, tell
from shadow.measures.evaluation import Metric


def record_in(folder):
    (found,) = read([folder]).done
    return found


def test_each_metric_stands_beside_the_dense_model_and_their_difference_is_of_the_same_examples(tmp_path):
    ours = {"perplexity": [2.0, 3.0, 4.0], "choices/acc": [0.0, 1.0, 0.0], "piqa/acc_norm": [0.0, 1.0, 0.0]}
    dense = {"perplexity": [1.9, 2.9, 3.6], "choices/acc": [1.0, 1.0, 0.0], "piqa/acc_norm": [1.0, 1.0, 0.0]}
    write_job(tmp_path / "ours", 0.3, samples=ours)
    write_job(tmp_path / "dense", 0.0, samples=dense)
    ours, dense = record_in(tmp_path / "ours"), record_in(tmp_path / "dense")
    (table,) = tables(ours, dense)
    assert table == [
        ["metric", "value", "dense", "difference"],
        ["perplexity", "20.1 ± 1.0", "16.4 ± 1.0", "+0.200 ± 0.100 nats"],
        ["choices/acc %", "33.3 ± 100.0", "66.7 ± 100.0", "-33.3 ± 33.3"],
        ["piqa/acc_norm %", "33.3 ± 100.0", "66.7 ± 100.0", "-33.3 ± 33.3"],
    ]
    (table,) = tables(ours, None)
    assert [row[2:] for row in table[1:]] == [["-", "-"]] * 3


def test_clocks_criteria_and_ranks_have_tables_of_their_own(tmp_path):
    figures = {
        **{
            f"latency/token_ms{end}": (value, None)
            for end, value in (("", 2.0), ("_low", 1.5), ("_high", 3.0))
        },
        "latency/kv_bytes": (123456.0, None),
        "quality/fisher/head/spearman": (0.25, 0.125),
        "quality/fisher/neuron/spearman": (0.5, None),
        "quality_static/snip/head/spearman": (1.0, None),
        "rank_variance/fisher/3": (0.75, None),
    }
    write_job(tmp_path, 0.0, metrics=figures)
    found = [aligned(table) for table in tables(record_in(tmp_path), None)]
    assert found == [
        [
            "latency    median  lower quartile  upper quartile",
            "token ms        2             1.5               3",
            "kv bytes  123,456               -               -",
        ],
        ["quality  heads: spearman  neurons: spearman", "fisher     0.250 ± 0.125              0.500"],
        ["quality static  heads: spearman", "snip                      1.000"],
        ["variance of ranks, layer  fisher", "3                          0.750"],
    ]


UNREAD = {"skipped": 0.25, "skipped_of_layers": 0.375, "by_kind": {"head": 0.125}, "added": 0.0}
JOB = ["model=tiny-llama", "predictor=random", "measure=perplexity"]


def told(compose, level, samples):
    """What a job has in its record when it has measured."""
    cfg = compose("evaluate", *JOB, f"sparsity.level={level}")
    record = {
        **{"task": "evaluate", "status": "running", "error": None, "overrides": JOB, "seed": 1234},
        **{"content": {"text": "abc", "tasks": {}}, "settings": plain(cfg)},
        **{"commit": {"sha": None, "dirty": None}, "versions": {}, "machine": {}, "reused_from": None},
        "point": point_records.describe(cfg),
    }
    metrics = {"perplexity": Metric(2.0 + level, 0.5, samples)}
    point_records.keep(cfg, record, {"head": level, "neuron": level}, UNREAD, metrics)
    return cfg, record


def test_the_dense_model_is_looked_up_or_its_command_is_said(compose, tmp_path, caplog):
    caplog.set_level("INFO")
    tell(*told(compose, 0.5, [0.8, 0.9]))
    assert "dense is not measured yet: python evaluate.py" in caplog.text
    assert f"-> {tmp_path}/output/run.json" in caplog.text
    told(compose, 0, [0.6, 0.8])
    caplog.clear()
    cfg, record = told(compose, 0.5, [0.8, 0.9])
    tell(cfg, record)
    assert "+0.223 ± 0.050 nats" in caplog.text
    assert "not measured yet" not in caplog.text
    (beside,) = (tmp_path / "output" / "looked_up").glob("*/run.json")
    content = json.loads(beside.read_text())
    assert (content["point"]["level"], content["status"]) == (0, "done")

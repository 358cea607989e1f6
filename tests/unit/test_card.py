"""A predictor's card and curve: what they say, and that a point measured again replaces itself."""

import csv

import pytest
from huggingface_hub import ModelCard

from shadow.artifacts import curve
from shadow.artifacts import learnt_policies as policies
from shadow.artifacts.card import card
from shadow.plans.policy import SparsityPolicy


@pytest.fixture
def config(tiny_opt, make_net, config_of):
    return config_of(make_net(tiny_opt, [1]), tiny_opt)


def row(point="a", level=0.5, value=12.5, **others):
    found = {"point": point, "level": level, "decided_at": "token", "scope": "layer", "data": "builtin"}
    found |= {"tokens": "all", "scored": "all", "stand_in": "mean", "other": "dense_fed=True"}
    found |= {"bytes_skipped": 0.25, "bytes_skipped_of_layers": 0.3125}
    found |= {"achieved_head": 0.375, "achieved_neuron": 0.25, "commit": None}
    return found | {"perplexity": value, "perplexity_stderr": 0.125} | others


def rows_of(folder):
    with (folder / "curve.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def of_source(config, source, model="tiny"):
    traces = config["settings"]["traces"] | {"model": {"name": "tiny", "source": source}}
    return config | {"model": model, "settings": config["settings"] | {"traces": traces}}


# The card


def test_the_hub_can_read_the_front_matter(config):
    data = ModelCard(card(config, [])).data
    assert data.library_name == "shadow-llm"
    assert data.base_model == "someone/tiny"
    assert {"contextual-sparsity", "shadowllm"} <= set(data.tags)


@pytest.mark.parametrize(
    "source",
    [
        {"_target_": "shadow.models.load.from_package", "package": "weights"},
        {"config.json": 1700000000, "model.safetensors": 1700000000},
    ],
)
def test_no_base_model_is_named_that_the_hub_does_not_know(config, source):
    text = card(of_source(config, source, 'my: "model"'), [])
    assert ModelCard(text).data.base_model is None
    assert "1700000000" not in text


def test_terms_of_use_of_the_base_model_are_named(config):
    terms = "https://ai.google.dev/gemma/terms"
    text = card(config | {"model": "gemma-3-270m", "terms": terms}, [])
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.license_link) == (
        "other",
        "gemma-3-270m terms of use",
        terms,
    )
    assert f"[terms of use]({terms})" in ModelCard(text).text


@pytest.mark.parametrize("named", [{}, {"terms": None}])
def test_a_base_model_of_which_no_terms_are_known_gives_no_licence(config, named):
    assert ModelCard(card(config | named, [])).data.license is None


@pytest.mark.parametrize(
    "said",
    [
        "`l2_norm`",
        "4 layers of width 32, 4 heads and 64 neurons each",
        "| taps | 1 |",
        "| net | rank 8, hidden 16, depth 2 |",
        "12,345 (6.25 % of the model)",
        "108 to train, 12 to validate",
        "epochs 3",
        "tokens 12, 20 examples",
        "seed 1",
        "torch 2.6.0",
        "| val/recall@50 | 0.75 |",
        'load_predictor("',
        'name = "someone/tiny"',
    ],
)
def test_a_card_says_what_is_to_be_known(config, said):
    assert said in card(config, [])


def test_the_usage_on_a_card_is_python_that_decides_when_the_predictor_can(config):
    usage = card(config, []).partition("```python\n")[2].partition("```")[0]
    compile(usage, "card", "exec")
    assert "sparse(model, predictor, level=0.5):" in usage
    settings = config["settings"] | {"reads": ["window", "prompt/mean"]}
    assert 'level=0.5, decided_at="prompt"):' in card(config | {"settings": settings}, [])


def test_a_card_tells_of_the_thresholds_that_lie_beside_the_net(config, tmp_path):
    assert "predictor.policy" not in card(config, [])
    for decided_at, level in (("token", 0.25), ("prompt", 0.5)):
        policy = SparsityPolicy(level, "threshold", thresholds={(1, "head"): 0.5})
        policies.save(tmp_path, decided_at, policy, {})
    curve.add(tmp_path, config, row("a"))
    told = (tmp_path / "README.md").read_text()
    assert '`sparse(model, predictor, predictor.policy(0.5, "prompt"), "prompt")`, `sparse(model, ' in told
    assert "predictor, predictor.policy(0.25))`" in told


def test_a_card_counts_the_means_that_lie_beside_the_net(config):
    assert "| means | 384 numbers" in card(config | {"means": 384}, [])


def test_rows_of_another_format_are_left_out(config, tmp_path):
    """They have other columns, which would be taken for metrics."""
    curve.add(tmp_path, config, row("a"))
    old = (tmp_path / "curve.csv").read_text().replace(",format,", ",fill,")
    (tmp_path / "curve.csv").write_text(old)
    curve.add(tmp_path, config, row("b", 0.3))
    assert [found["point"] for found in rows_of(tmp_path)] == ["b"]
    assert "fill" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("taps", "ahead", "first"), [([2], 0, 2), ([0, 1], 2, 2), ([3], 0, 3)])
def test_the_usage_on_a_card_leaves_the_layers_dense_that_are_not_scored(config, taps, ahead, first):
    text = card(config | {"taps": taps, "ahead": ahead}, [])
    assert f"from layer {first} on" in text
    usage = text.partition("```python\n")[2].partition("```")[0]
    compile(usage, "card", "exec")
    assert "from shadow import SparsityPolicy, load_predictor, sparse\n" in usage
    assert f"sparse(model, predictor, SparsityPolicy(0.5, dense_layers=range({first}))):" in usage


def test_the_usage_on_a_card_prunes_only_what_is_scored(config):
    text = card(config | {"kinds": ["head"]}, [])
    assert "scores each attention head from layer 1 on" in text
    assert "sparse(model, predictor, SparsityPolicy(0.5, kinds=['head'])):" in text
    both = card(config | {"kinds": ["neuron"], "taps": [2]}, [])
    assert "SparsityPolicy(0.5, dense_layers=range(2), kinds=['neuron'])" in both


def test_a_card_has_a_curve_when_points_were_measured(config):
    assert "## Curve" not in card(config, [])
    rows = [{name: "" if value is None else str(value) for name, value in row().items()}]
    assert (
        "| level | decided at | scope | sparse tokens | scored | stand-in | data | other settings "
        "| weight bytes skipped | of the layers | heads skipped | neurons skipped | perplexity |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| 0.5 | token | layer | all | all | mean | builtin | dense_fed=True | 0.25 | 0.3125 | 0.375 | 0.25 "
        "| 12.5 ± 0.125 |\n"
    ) in card(config, rows)
    few = {"level": "0.5", "scored": "", "achieved_channel": "0.25", "perplexity": "12.5"}
    assert "| level | channels skipped | perplexity |\n" in card(config, [few])


# The curve


def test_a_row_is_kept_as_it_was_given(config, tmp_path):
    curve.add(tmp_path, config, row())
    (found,) = rows_of(tmp_path)
    given = {name: "" if value is None else str(value) for name, value in row().items()}
    assert found == given | {"format": curve.FORMAT}
    assert {file.name for file in tmp_path.iterdir()} == {"curve.csv", "README.md"}


def test_a_point_measured_again_replaces_itself_and_no_other(config, tmp_path):
    for point, level, value in (("b", 0.5, 2.0), ("a", 0.3, 1.0), ("b", 0.5, 3.0)):
        curve.add(tmp_path, config, row(point, level, value))
    assert [(found["level"], found["perplexity"]) for found in rows_of(tmp_path)] == [
        ("0.3", "1.0"),
        ("0.5", "3.0"),
    ]
    text = (tmp_path / "README.md").read_text()
    assert "| 3 ± 0.125 |" in text
    assert "| 2 ± 0.125 |" not in text


def test_points_of_different_measures_stand_together(config, tmp_path):
    curve.add(tmp_path, config, row())
    curve.add(
        tmp_path,
        config,
        {"point": "b", "choices/acc": 0.75, **{k: v for k, v in row("b").items() if "perp" not in k}},
    )
    one, other = rows_of(tmp_path)
    assert (one["perplexity"], one["choices/acc"]) == ("12.5", "")
    assert (other["perplexity"], other["choices/acc"]) == ("", "0.75")
    assert "| choices/acc | perplexity |" in (tmp_path / "README.md").read_text()


def test_the_order_of_measuring_does_not_show(config, tmp_path):
    for name, order in (("one", "abc"), ("other", "cab")):
        for point in order:
            curve.add(tmp_path / name, config, row(point, {"a": 0.1, "b": 0.3, "c": 0.5}[point]))
    for file in ("curve.csv", "README.md"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()

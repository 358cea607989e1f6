"""A predictor's folder: it says what the saved net said, and what is none is refused in one sentence."""

import json
import math
import subprocess
import sys

import httpx
import huggingface_hub.constants
import pytest
import torch
from observed import drawn_means
from safetensors.torch import save

import shadow
from shadow.artifacts import hub
from shadow.artifacts import learnt_policies as policies
from shadow.errors import UserError
from shadow.front import sparse
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import Zero
from shadow.scorers.predicted import Predicted
from shadow.signals import Signal

FILES = {"config.json", "predictor.safetensors", "README.md"}
COMMIT = "0123456789" * 4


@pytest.fixture
def net(lm, make_net):
    return make_net(lm, [1])


@pytest.fixture
def folder(net, lm, config_of, tmp_path):
    hub.save_predictor(tmp_path / "predictor", net, config_of(net, lm))
    return tmp_path / "predictor"


@pytest.fixture
def refusal():
    """refusal(*arguments): the one sentence with which load_predictor answers."""

    def run(*arguments) -> str:
        with pytest.raises(UserError) as error:
            shadow.load_predictor(*arguments)
        sentence = str(error.value)
        assert "\n" not in sentence
        assert hub.CURE in sentence
        return sentence

    return run


def same_scores(one, other):
    states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    expected, found = (scorer.scores(Signal(1, "layer_input"), states, None) for scorer in (one, other))
    assert found.keys() == expected.keys()
    return all(torch.equal(found[unit], expected[unit]) for unit in expected)


# The package


def test_importing_the_package_and_its_configs_imports_no_torch(root):
    program = "import sys, shadow, shadow.conf; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == 0


def test_the_package_gives_what_it_says_and_nothing_else():
    from shadow.front import sparse
    from shadow.plans.policy import SparsityPolicy

    assert set(shadow.__all__) == set(shadow.HOMES)
    assert shadow.sparse is sparse
    assert shadow.SparsityPolicy is SparsityPolicy
    assert shadow.load_predictor is hub.load_predictor
    with pytest.raises(AttributeError, match="no attribute 'no_such_thing'"):
        shadow.no_such_thing  # noqa: B018


# Loading


def test_a_saved_predictor_is_three_files(folder):
    assert {file.name for file in folder.iterdir()} == FILES


@pytest.mark.parametrize("kinds", [["head", "neuron"], ["head"]], ids=str)
@pytest.mark.parametrize(("taps", "ahead"), [([1], 0), ([1, 3], 0), ([0, 1], 1)], ids=str)
def test_a_loaded_predictor_says_what_the_saved_one_said(
    lm, make_net, config_of, tmp_path, taps, ahead, kinds
):
    net = make_net(lm, taps, ahead=ahead, kinds=kinds)
    hub.save_predictor(tmp_path, net, config_of(net, lm))
    loaded = shadow.load_predictor(tmp_path)
    assert (loaded.taps, loaded.first, loaded.net.kinds) == (taps, taps[0] + ahead, kinds)
    assert not loaded.net.training
    assert same_scores(Predicted(net, "scores"), loaded)


@pytest.mark.parametrize("of", ["weights", "means"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_predictor_that_is_not_finite_is_refused_though_its_checksum_fits(
    tiny_opt, net, config_of, tmp_path, of, value
):
    means = drawn_means(tiny_opt)
    if of == "weights":
        with torch.no_grad():
            net.reader(1).down.weight[0, 0] = value
        name = r"readers\.0\.down\.weight"
    else:
        means[2, "head"][0, 0] = value
        name = r"means\.2\.head"
    hub.save_predictor(tmp_path, net, config_of(net, tiny_opt), means)
    with pytest.raises(UserError, match=rf"'{name}' is not finite.* smaller predictor\.lr"):
        shadow.load_predictor(tmp_path)


def test_the_means_come_back_with_the_predictor_and_can_stand_in_for_what_it_drops(
    lm, net, config_of, tmp_path, batch
):
    means = drawn_means(lm)
    hub.save_predictor(tmp_path, net, config_of(net, lm), means)
    loaded = shadow.load_predictor(tmp_path)
    assert loaded.means.keys() == means.keys()
    assert all(torch.equal(loaded.means[unit], values) for unit, values in means.items())
    assert same_scores(Predicted(net, "scores"), loaded)
    with sparse(lm.model, Predicted(net, "scores"), level=0.5, stand_in=means) as run:
        expected = run.logits(batch)
    with sparse(lm.model, loaded, level=0.5, stand_in=loaded.means) as run:
        assert torch.equal(run.logits(batch), expected)
    with sparse(lm.model, loaded, level=0.5) as run:  # it was not trained on deviations
        assert not torch.allclose(run.logits(batch), expected)


def test_a_predictor_of_deviations_lets_dropped_units_say_their_means_unasked(
    lm, net, config_of, tmp_path, batch
):
    hub.save_predictor(tmp_path, net, config_of(net, lm, deviates=True), drawn_means(lm))
    loaded = shadow.load_predictor(tmp_path)
    with sparse(lm.model, loaded, level=0.5, stand_in=loaded.means) as run:
        expected = run.logits(batch)
    with sparse(lm.model, loaded, level=0.5) as run:
        assert torch.equal(run.logits(batch), expected)
    with sparse(lm.model, loaded, level=0.5, stand_in="mean") as run:
        assert torch.equal(run.logits(batch), expected)
    silent = []
    for fill in ("zero", Zero()):
        with sparse(lm.model, loaded, level=0.5, stand_in=fill) as run:
            silent.append(run.logits(batch))
    assert torch.equal(*silent)
    assert not torch.allclose(silent[0], expected)


def test_a_folder_of_before_has_no_means(folder):
    assert shadow.load_predictor(folder).means == {}


def test_a_folder_can_be_given_as_text(folder, net):
    assert same_scores(Predicted(net, "scores"), shadow.load_predictor(str(folder)))


@pytest.fixture
def cached(folder, tmp_path, monkeypatch):
    """The hub's cache on disk, with two commits of someone/predictor; the tests have no network."""
    repo = tmp_path / "cache" / "models--someone--predictor"
    for commit, name in ((COMMIT, "main"), (COMMIT[::-1], "old")):
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / name).write_text(commit)
    for file in hub.CONFIG, hub.WEIGHTS:
        (repo / "snapshots" / COMMIT / file).symlink_to(folder / file)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cached")
def test_a_hub_id_that_is_in_the_cache_is_loaded_without_a_network(net):
    for revision in (None, "main"):
        loaded = shadow.load_predictor("someone/predictor", revision)
        assert same_scores(Predicted(net, "scores"), loaded)


@pytest.mark.usefixtures("cached")
def test_a_revision_that_holds_no_predictor_is_refused(refusal):
    assert "has no config.json" in refusal("someone/predictor", "old")


def test_only_the_files_that_are_needed_are_fetched(folder, net, monkeypatch):
    asked = []
    monkeypatch.setattr(
        hub, "snapshot_download", lambda *ids, **settings: asked.append((ids, settings)) or str(folder)
    )
    assert same_scores(Predicted(net, "scores"), shadow.load_predictor("someone/predictor", "v1"))
    files = ["config.json", "predictor.safetensors", "thresholds-*.json"]
    assert asked == [(("someone/predictor",), {"revision": "v1", "allow_patterns": files})]


# Thresholds that were learnt for it


def learnt(level=0.5, **settings):
    values = {(1, "head"): -math.inf, (1, "neuron"): 0.1 + 0.2}
    return SparsityPolicy(level, "threshold", dense_layers=[0, 2, 3], thresholds=values, **settings)


def test_thresholds_lie_beside_the_predictor_and_are_loaded_with_it(folder):
    asked = {("token", 0.5): learnt(), ("prompt", 0.3): learnt(0.3, min_units=2, kinds=["neuron"])}
    policies.save(folder, "token", learnt(min_units=3), {})  # learnt again below
    for (decided_at, _), policy in asked.items():
        policies.save(folder, decided_at, policy, {})
    assert FILES | {"thresholds-token-0.5.json", "thresholds-prompt-0.3.json"} == {
        file.name for file in folder.iterdir()
    }
    loaded = shadow.load_predictor(folder)
    assert loaded.policy(0.5) == asked["token", 0.5]
    assert loaded.policy(0.3, "prompt") == asked["prompt", 0.3]
    policies.save(folder, "token", learnt(0.1 + 0.2), {})  # as of range(0.1,0.4,0.1)
    assert shadow.load_predictor(folder).policy(0.3).level == 0.1 + 0.2
    with pytest.raises(UserError, match=r"no thresholds for level 0\.3 decided at token, and it has"):
        loaded.policy(0.3)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"thresholds": []}', '{"thresholds": [[1, "head", "much"]]}', "NaN", "LEVEL"]
)
def test_damaged_thresholds_are_refused_by_name(folder, content):
    policies.save(folder, "token", learnt(), {})
    file = folder / "thresholds-token-0.5.json"
    told = json.loads(file.read_text())
    if content == "NaN":
        content = json.dumps(told | {"thresholds": [[1, "head", math.nan]]})
    elif content == "LEVEL":
        content = json.dumps(told | {"level": 1.5})
    file.write_text(content)
    with pytest.raises(UserError, match=r"thresholds-token-0\.5\.json holds no thresholds .* remove it; "):
        shadow.load_predictor(folder)


# Refusals


@pytest.mark.parametrize("name", ["config.json", "predictor.safetensors"])
def test_a_missing_file_is_named(folder, refusal, name):
    (folder / name).unlink()
    assert f"has no {name}" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[1]", "is no predictor's"),
        (json.dumps({"model_type": "opt", "layers": 4}), "is no predictor's, for it has no 'taps'"),
    ],
)
def test_a_config_of_something_else_is_refused(folder, refusal, content, message):
    (folder / "config.json").write_text(content)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 100, save({"weight": torch.ones(2)}), save({"readers.0.down.bias": torch.ones(2)})],
    ids=["empty", "noise", "other names", "other shapes"],
)
def test_weights_of_something_else_are_refused(folder, refusal, content):
    (folder / "predictor.safetensors").write_bytes(content)
    assert "is not the predictor that config.json tells of" in refusal(folder)


@pytest.mark.parametrize("name", ["/no/such/folder", "no/such/folder", "~/no such folder"])
def test_a_folder_that_is_not_there_and_no_hub_id_is_refused(refusal, name):
    assert "no id on the hub" in refusal(name)


def test_a_hub_id_without_a_network_is_refused(refusal):
    """The tests are offline: HF_HUB_OFFLINE."""
    assert "nobody-at-all/no-such-predictor" in refusal("nobody-at-all/no-such-predictor")


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("[Errno -2] Name or service not known"),
        httpx.ReadTimeout(""),
        OSError("404 Client Error.\n\nRepository Not Found for url ..."),
    ],
    ids=repr,
)
def test_what_a_hub_may_answer_becomes_one_sentence(refusal, monkeypatch, error):
    def fail(*ids, **settings):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    assert "check the name and the network" in refusal("someone/predictor")

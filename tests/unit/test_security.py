"""What strangers give: files are checked before they are used, names lead nowhere, pages run nothing."""

import ast
import base64
import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from run_records import write_job, write_report
from safetensors.torch import load_file, save_file
from shadow.sweeps.records.reading import read
from shadow.sweeps.records.record import RecordError

from shadow.artifacts import hub, learnt_policies
from shadow.errors import UserError
from shadow.fit.checkpoints import WholeCheckpoints
from shadow.jobs import keys
from shadow.models.load import load
from shadow.plans.policy import SparsityPolicy
from shadow.scorers.nets import NetShape, TapNet
from shadow.traces.shards import read_manifest, read_means, write_shard
from shadow.traces.store import Traces

ROOT = Path(__file__).parents[2]
EVIL, IMAGE = "<script>alert(1)</script>", "![x](../secret.png)"
# how a pickle, or code that is text, would be run
RUNS = {"eval", "exec", "pickle.load", "pickle.loads", "joblib.load", "np.load", "numpy.load", "yaml.load"}


class Boom:
    def __reduce__(self):
        return (Path.touch, (Path("boom"),))


def test_no_code_loads_a_pickle_or_runs_text():
    for file in [*ROOT.glob("*.py"), *(ROOT / "shadow").rglob("*.py"), *(ROOT / "sweeps").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in RUNS, f"{file}:{node.lineno} {name}"
                told = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert name != "torch.load" or told.get("weights_only") == "True", f"{file}:{node.lineno}"


def test_a_checkpoint_runs_nothing_that_it_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 1, "x": Boom()}, tmp_path / "last.ckpt", pickle_module=pickle)
    with pytest.raises(UserError, match="must hold tensors and plain values alone"):
        WholeCheckpoints().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("word", ["false", "True", 1, None])
def test_code_of_models_runs_only_where_the_switch_is_true_itself(word):
    with pytest.raises(UserError, match=r"model\.trust_remote_code must be true or false, got"):
        load(lambda **given: pytest.fail("loaded"), None, "float32", None, word)


@pytest.mark.parametrize("setting", ["model.name", "predictor.name"])
@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a\\b", "a\nb", "x" * 300])
def test_no_name_of_a_config_leaves_its_folder(setting, name):
    cfg = OmegaConf.create({"model": {"name": "m", "path": None}, "predictor": {"name": "p"}})
    assert keys.method_part(cfg) == "m-p"
    OmegaConf.update(cfg, setting, name)
    with pytest.raises(UserError, match=rf"{setting} becomes part of a folder's name"):
        keys.method_part(cfg)


CONFIGS = {
    "layers": [10**12, 0, "3", float("nan"), -1],
    "width": [10**12, None],
    "taps": [[0, 0], [99], [], ["1"], 7],
    "units": [{"head": 10**12}, [], {"neuron": 4}],
    "kinds": [["head", "planet"], "head", []],
    "net": [{"rank": 10**12, "hidden": 1, "depth": 1}, {"rank": 1}, {"evil": 1}, 3],
    "pooling": ["../x", 1],
    "deviates": ["no", None],
}


@pytest.mark.parametrize("name", [7, None, "a" * 5000, "~nobody-of-this-name/x", "a\0b"])
def test_what_names_no_predictor_is_refused(name):
    with pytest.raises(UserError, match=r"a folder that train\.py has finished"):
        hub.load_predictor(name)


def test_a_config_too_deep_to_read_is_damaged(tmp_path):
    (tmp_path / hub.CONFIG).write_text("[" * 100_000)
    with pytest.raises(UserError, match="is damaged"):
        hub.load_predictor(tmp_path)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, of in CONFIGS.items() for value in of])
def test_a_predictor_whose_config_lies_is_refused(tmp_path, predictor_folder, key, value):
    shutil.copytree(predictor_folder, tmp_path / "p")
    file = tmp_path / "p" / hub.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UserError) as refused:
        hub.load_predictor(tmp_path / "p")
    assert "\n" not in str(refused.value)


def spoilt(weights, what):
    name = next(name for name in weights if not name.startswith("means"))
    if what == "dtype":
        weights[name] = weights[name].half()
    elif what == "shape":
        weights[name] = weights[name][..., :-1].contiguous()
    elif what == "nan":
        weights[name] = torch.full_like(weights[name], torch.nan)
    elif what == "means":
        weights["means.0.head"] = torch.zeros(10_000, 2)
    elif what == "stranger":
        weights["means.99.head"] = torch.zeros(4, 2)
    return weights


@pytest.mark.parametrize("what", ["dtype", "shape", "nan", "means", "stranger"])
def test_a_predictor_whose_weights_are_others_is_refused(tmp_path, predictor_folder, what):
    shutil.copytree(predictor_folder, tmp_path / "p")
    config, weights = tmp_path / "p" / hub.CONFIG, tmp_path / "p" / hub.WEIGHTS
    save_file(spoilt(load_file(weights), what), weights)
    made = {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}  # by whoever made the file
    config.write_text(json.dumps(json.loads(config.read_text()) | made))
    with pytest.raises(UserError, match=r"is not the predictor that|is not finite"):
        hub.load_predictor(tmp_path / "p")


@pytest.mark.parametrize("row", ["NaN", "Infinity", '"0.1"', "true", "[1]"])
def test_thresholds_that_are_no_numbers_are_refused(tmp_path, row):
    policy = SparsityPolicy(0.5, scope="threshold", thresholds={(1, "head"): 0.25})
    learnt_policies.save(tmp_path, "token", policy, {})
    assert learnt_policies.load(tmp_path)["token", 0.5].thresholds == policy.thresholds
    (file,) = tmp_path.glob(learnt_policies.PATTERN)
    file.write_text(file.read_text().replace("0.25", row))
    with pytest.raises(UserError, match="holds no thresholds"):
        learnt_policies.load(tmp_path)


@pytest.mark.parametrize("name", ["../../secret-00000-rank0of1.safetensors", "/etc/passwd", 3])
def test_a_manifest_names_shards_of_its_own_folder_alone(tmp_path, caplog, name):
    (tmp_path / "manifest.json").write_text(json.dumps({"parts": {"features": [{"file": name}]}}))
    assert read_manifest(tmp_path) is None
    assert "cannot be read" in caplog.text


@pytest.fixture(scope="module")
def predictor_folder(tmp_path_factory):
    """Of a net that scores 4 heads in 3 layers."""
    net = TapNet([1], 3, 8, {"head": 4}, NetShape(2, 4, 1))
    config = dict.fromkeys(hub.NEEDED) | {"taps": [1], "ahead": 0, "layers": 3, "width": 8}
    config |= {"units": {"head": 4}, "kinds": ["head"], "net": NetShape(2, 4, 1)._asdict()}
    config |= {"pooling": "scores", "source": "state", "deviates": False}
    folder = tmp_path_factory.mktemp("predictor")
    tensors = net.state_dict() | {"means.0.head": torch.zeros(4, 2)}
    save_file({name: values.contiguous() for name, values in tensors.items()}, folder / hub.WEIGHTS)
    content = (folder / hub.WEIGHTS).read_bytes()
    config["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / hub.CONFIG).write_text(json.dumps(config))
    assert hub.load_predictor(folder).means.keys() == {(0, "head")}
    return folder


@pytest.mark.parametrize("report", ["curve", "grid", "latency"])
def test_a_page_runs_nothing_and_shows_no_file_that_a_name_asks_for(tmp_path, report):
    (tmp_path / "secret.png").write_bytes(b"secret")
    timed = {"latency/ms_per_token": (10.0, 1.0), "perplexity": (20.0, 1.0), f"{EVIL}/acc": (0.5, 0.1)}
    for n, level in enumerate([0, 0.3]):
        write_job(
            tmp_path / "a" / str(n),
            level,
            EVIL,
            timed,
            model=EVIL,
            data=IMAGE,
            criterion=EVIL,
            settings={"measure": {"</script><script>alert(1)</script>": EVIL}},
        )
    write_job(tmp_path / "a" / "2", error=EVIL)
    page = write_report(tmp_path / "a", report).page.read_text()
    assert "alert(1)" in page
    assert "<script>alert(1)" not in page
    assert base64.b64encode(b"secret").decode() not in page


WRONG = {
    "metrics": [{"perplexity": {"value": "7", "stderr": None}}, ["x"], 7],
    "achieved": [{"head": "<b>"}, 3],
    "bytes": [{"skipped": None}, 7],
    "point": [[], "x", 3],
    "overrides": [7],
    "commit": ["x", None],
    "content": [7],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, of in WRONG.items() for value in of])
def test_a_record_of_other_shape_is_refused(tmp_path, key, value):
    file = write_job(tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(RecordError, match=r"run\.json"):
        read([tmp_path])


@pytest.mark.parametrize(
    ("where", "reads"),
    [
        ("features", lambda folder: Traces(folder).read("window", "features", "tap/0", torch.arange(2))),
        ("means", read_means),
    ],
)
def test_traces_that_are_no_numbers_are_refused(tmp_path, where, reads):
    """Their checksums are a stranger's too."""
    name = {"features": "window/tap/0", "means": "mean/head"}[where]
    broken = torch.full((2, 4), torch.nan)
    file = write_shard(tmp_path, "key", where, 0, (2, 2), {name: broken, "mean/neuron": torch.zeros(2, 4)})
    listed = {where: [{"file": file.name, "index": 0, "windows": 2, "tokens": 2}]}
    facts = {"taps": [0], "settings": {"traces": {"shard_windows": 2}}, "parts": listed}
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="not finite: remove the folder"):
        reads(tmp_path)

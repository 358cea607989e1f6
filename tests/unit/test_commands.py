"""The command `shadow`: help, typos, names of artifacts and of runs, what lies there, and taking it away."""

import inspect
import pkgutil
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from shadow.artifacts.files import alone, key_of, write_json
from shadow.artifacts.usual import differences, in_name
from shadow.commands import describe, main
from shadow.commands.comments import options_of, usual_options
from shadow.commands.ls import ls
from shadow.commands.overrides import composed, parsed
from shadow.commands.rm import rm
from shadow.commands.run_names import run_name
from shadow.commands.tasks import TASKS
from shadow.errors import UserError, first_line
from shadow.jobs import command_line, export, ingredients, keys, loading, recommend
from shadow.jobs.command_line import prepare
from shadow.jobs.config import model_label
from shadow.jobs.refused import RefusalCallback


@pytest.fixture(autouse=True)
def own_signals(monkeypatch):
    """The tests' process keeps its own."""
    monkeypatch.setattr(command_line, "expect", lambda: None)


# Help


@pytest.mark.parametrize("task", TASKS)
def test_help_tells_every_group_and_each_setting_that_it_names(task):
    text = describe.of_task(task, ["model=opt-mini"])
    groups = [name for name in usual_options(task) if len(options_of(name)) > 1]
    assert {"model", "predictor", "sweep"} <= set(groups)
    for group in groups:
        assert all(option in text for option in [f"  {group}=", *options_of(group)]), group
    assert [name for name in TASKS[task].settings if f"  {name}=" not in text] in ([], ["contenders"])
    assert "opt-mini (chosen)" in text
    assert max(map(len, text.splitlines())) <= 110
    for words, _ in TASKS[task].examples:
        assert f"shadow {task} {words}" in text


def test_the_examples_of_help_compose():
    for task in ("train", "recommend", "compare"):
        words = shlex.split(TASKS[task].examples[1][0])
        composed(task, [word for word in words if "=" in word])


def test_help_of_an_option_has_the_comments_of_what_it_is_made_from():
    text = describe.of_task("evaluate", ["predictor=few_taps"])
    assert "predictor.taps=4 " in text
    assert "evenly spread from layer 1 on" in text
    assert "predictor.floor=3.0" in text  # of unified


@pytest.mark.parametrize(
    ("task", "words", "chosen"),
    [
        ("train", [], ["predictor=      recommended (", "sparsity=       learnt (", "learnt.windows=256 "]),
        (
            "train",
            ["predictor=teal"],
            ["predictor=      teal (", "sparsity=       layer (", "learnt.windows=0 "],
        ),
        ("train", ["sparsity=threshold"], ["predictor=      recommended (", "sparsity=       threshold ("]),
        ("evaluate", ["sweep=demo"], ["predictor=      teal (", "sparsity=       layer ("]),  # of methods
        ("recommend", [], ["predictor=      teal (", "sparsity=       layer ("]),  # by sweep=methods
    ],
    ids=str,
)
def test_help_tells_the_options_that_the_chosen_ones_choose(task, words, chosen):
    text = describe.of_task(task, words)
    assert [one for one in chosen if one not in text] == []


def test_help_imports_no_torch():
    """Else it takes seconds."""
    code = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); "
    code += "sys.argv[1:] = ['evaluate', '--help']; from shadow.commands.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "sweep "),
        (["--help"], "rm "),
        (["sweep", "--help"], "accuracy_curve"),
        (["sweep"], "Methods of every kind on one axis"),
    ],
)
def test_the_command_tells_what_there_is(monkeypatch, capsys, words, says):
    monkeypatch.setattr("sys.argv", ["shadow", *words])
    main.main()
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluat"], "did you mean evaluate?"),
        (["xyz"], "give one of train, evaluate"),
        (["sweep", "acuracy_curve"], "did you mean accuracy_curve?"),
        (["rm", "nothing"], "there is no artifact nothing"),
    ],
)
def test_a_command_that_there_is_not_is_refused(monkeypatch, tmp_path, words, message):
    monkeypatch.setenv("SHADOW_ROOT", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["shadow", *words])
    with pytest.raises(SystemExit, match=message.replace("?", r"\?")):
        main.main()


def test_every_command_is_a_function_that_takes_words():
    for name, command in main.COMMANDS.items():
        function = pkgutil.resolve_name(command.function)
        assert len(inspect.signature(function).parameters) == 1, name


# Typos


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=opt-min"], "model=opt-min names no option of model: did you mean opt-mini?"),
        (["-m", "model=tiny-opt,opt-min"], "model=opt-min names no option of model: did you mean opt-mini?"),
        (["predictr=unified"], "there is no setting predictr: did you mean predictor=unified?"),
        (["level=0.5"], "there is no setting level: did you mean sparsity.level=0.5?"),
        (["+modle.path=3"], "no job reads what +modle.path=3 adds: did you mean model.path=3?"),
        (["+model=opt-mini"], "model is chosen already: give model=opt-mini without +"),
        (["sparsity.level=0.1,0.2"], "has several values: give -m"),
        (["opt-mini"], "a setting is given as KEY=VALUE and an option as GROUP=OPTION, got 'opt-mini'"),
        (["measure.tasks=[a"], "'measure.tasks=[a' cannot be read as KEY=VALUE"),
        (["--multirn"], "there is no flag --multirn"),
        (
            ["model=opt-mini", "-m", "seed=1,2"],
            "seed=1,2 stands behind a flag that others precede: give -m first",
        ),
        (["-m", "--cfg", "job"], "give one of --multirun and --cfg"),
        pytest.param(
            ["launch=slurm"],
            "Hydra's submitit_slurm is not installed: pip install 'shadow-llm[launchers]'",
            marks=pytest.mark.skipif(
                find_spec("hydra_plugins") is not None, reason="launchers are installed"
            ),
        ),
    ],
    ids=str,
)
def test_a_typo_is_answered_in_one_sentence(words, message):
    with pytest.raises(SystemExit) as refused:
        prepare("evaluate", words)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        [
            "+trainer.enable_progress_bar=false",
            "+predictor.scale=2",
            "+alpha=3",
            "trainer.max_epochs=${alpha}",
        ],
        [
            "-m",
            "model=glob(opt-*)",
            "predictor=unified",
            "predictor.lr=interval(0.1,0.2)",
            "predictor.rank=range(1,3)",
        ],
        ["sweep=methods", "contender='[teal,block]'", "sparsity.level=0,0.5", "+predictor@recipe.own=own"],
    ],
    ids=str,
)
def test_what_hydra_takes_is_taken(monkeypatch, words):
    monkeypatch.setenv("SHADOW_RUN_NAME", "")
    prepare("evaluate", words)


def test_a_sweep_on_a_cluster_that_is_not_there_is_refused():
    launcher = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"}
    cfg = OmegaConf.create({"hydra": {"mode": RunMode.MULTIRUN, "launcher": launcher}})
    with pytest.raises(UserError, match="launch=slurm submits with sbatch, and there is no such command"):
        command_line.refuse_launch(cfg, [], False)


@pytest.mark.parametrize("mode", [RunMode.RUN, RunMode.MULTIRUN])
def test_a_job_that_is_refused_ends_with_its_sentence_and_a_sweep_goes_on(mode):
    cfg = OmegaConf.create({"hydra": {"mode": mode}})
    ended = JobReturn(status=JobStatus.FAILED, _return_value=CompactHydraException("give another"))
    if mode == RunMode.MULTIRUN:
        RefusalCallback().on_job_end(cfg, ended)
        return
    with pytest.raises(SystemExit, match="give another"):
        RefusalCallback().on_job_end(cfg, ended)


# Names


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], ""),
        (["model=opt-mini", "predictor=few_taps", "sparsity.level=0.3"], "-opt-mini-few_taps-level=0.3"),
        (["seed=3", "logger=none", "hydra.verbose=true", "~data"], "-seed=3"),
        (["data.train=/some/where/a b.txt", "predictor=a,b"], "-train=ab.txt-a,b"),
        ([f"tag={'x' * 300}"], "-" + f"tag={'x' * 300}"[:80]),
    ],
)
def test_a_run_is_named_by_what_was_asked_of_it(words, name):
    assert run_name(parsed(words)) == name


NAMED = [
    ([], ""),
    (
        ["criterion=plainact", "data.tokens=32", "seed=2", "predictor.epochs=3"],
        "epochs=3-tokens=32-plainact-seed=2",
    ),
]


@pytest.mark.parametrize(("overrides", "told"), NAMED, ids=str)
def test_a_predictors_folder_tells_what_differs_and_ends_with_its_key(compose, overrides, told):
    cfg = compose("train", "model=opt-mini", "criterion=l2_deviation", *overrides)
    key = key_of(keys.predictor_settings(cfg))
    name = keys.predictor_folder(cfg).name
    assert name == "-".join(part for part in ("opt-mini-unified", told, key) if part)


def test_what_is_long_in_a_name_is_counted_and_no_sign_leads_elsewhere():
    found = {"data": "text", "predictor.taps": list(range(9)), "model.x": "../y z" * 9, "traces.top": None}
    assert in_name(found) == "text-taps=0,1,2,3,4,5,6,7,8+2"
    assert in_name({"predictor.a": "x" * 99}) == "+1"
    assert "/" not in in_name({"predictor.a": "../../b"})


def test_an_artifact_is_found_by_its_key_whatever_it_is_called(compose, artifacts):
    cfg = compose("train", "model=opt-mini", "seed=77")
    key = keys.traces_folder(cfg).name.rpartition("-")[2]
    old = keys.traces_folder(cfg).with_name(f"opt-mini-builtin-{key}")
    old.mkdir(parents=True)
    assert keys.traces_folder(cfg) == old


def test_a_model_of_ones_own_is_called_as_it_is_named(tmp_path):
    def label(**model):
        return model_label(OmegaConf.create({"model": {"path": str(tmp_path), **model}}))

    assert label(name="mine") == "mine"
    assert label(name="smollm2-135m") == tmp_path.name  # an option's name is no folder's
    assert model_label(OmegaConf.create({"model": {"path": None, "name": "opt-mini"}})) == "opt-mini"


# What lies there


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A predictor of two traces' stores, one of which is unfinished."""
    monkeypatch.setenv("SHADOW_ROOT", str(tmp_path))
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    traces = {"model": {"name": "opt-mini"}, "data": {}, "traces": {"top": 0.5}, "seed": 3}
    fit = {"traces": traces, "predictor": {"name": "few_taps", "epochs": 9}, "criterion": "l2_norm"}
    shelf = tmp_path / "artifacts"
    manifest = {"settings": traces, "sizes": {"8": 8}, "parts": {"features": []}}
    write_json(shelf / "traces" / "opt-mini-traces-aaaaaaaaaa" / "manifest.json", manifest)
    config = {"settings": fit, "metrics": {"val/mass@50": 0.75, "val/static_mass@50": 0.5}}
    write_json(shelf / "predictors" / "opt-mini-few_taps-bbbbbbbbbb" / "config.json", config)
    (shelf / "traces" / "opt-mini-traces-cccccccccc").mkdir()
    metrics = {"choices/acc": {"value": 0.75}, "perplexity": {"value": 12.0}}
    run = {"status": "done", "overrides": ["seed=3"], "metrics": metrics}
    write_json(tmp_path / "logs" / "evaluate" / "runs" / "2026-seed=3" / "run.json", run)
    return shelf


def test_ls_tells_size_quality_and_what_differs(made, capsys):
    ls([])
    told = capsys.readouterr().out
    assert "opt-mini-few_taps-bbbbbbbbbb" in told
    assert "mass@50 0.750 (static 0.500)" in told
    assert "predictor.epochs=9" in told
    assert "criterion=l2_norm, seed=3" in told
    assert "8 windows of features" in told
    assert "unfinished: the same command goes on" in told
    ls(["runs"])
    assert (
        "evaluate/runs/2026-seed=3\n      done  perplexity 12, choices/acc 0.75\n      seed=3\n"
        in capsys.readouterr().out
    )


def test_rm_keeps_what_others_came_of_and_what_is_in_use(made):
    with pytest.raises(UserError, match="stays, for opt-mini-few_taps-bbbbbbbbbb came of it: name that too"):
        rm(["aaaaaaaaaa", "--yes"])
    folder = made / "predictors" / "opt-mini-few_taps-bbbbbbbbbb"
    with alone(folder), pytest.raises(UserError, match="is in use, for a job holds"):
        rm([folder.name, "--yes"])
    with pytest.raises(UserError, match="no terminal to ask in: give --yes"):
        rm([folder.name])
    with pytest.raises(UserError, match="did you mean opt-mini-few_taps-bbbbbbbbbb"):
        rm(["opt-mini-few_tap-bbbbbbbbbb"])
    assert folder.is_dir()


def test_rm_removes_what_was_named(made, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    with pytest.raises(SystemExit, match="nothing was removed"):
        rm(["cccccccccc"])

    def interrupted(question):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    with pytest.raises(SystemExit, match="nothing was removed"):
        rm(["cccccccccc"])
    rm(["aaaaaaaaaa", "bbbbbbbbbb", "--yes"])
    assert [path.name for path in (made / "traces").iterdir()] == ["opt-mini-traces-cccccccccc"]
    assert list((made / "predictors").iterdir()) == []


def test_what_differs_is_told_of_damaged_and_foreign_settings_too():
    assert differences({}) == {}
    assert differences({"model": {"name": "theirs", "dtype": "float16"}}) == {"model.dtype": "float16"}
    assert differences({"predictor": {"name": "few_taps", "taps": 2}}) == {"predictor.taps": 2}
    of_paths = {"sparsity": {"min_units": 1, "budgets": "block", "dense_layers": [0]}}
    assert differences(of_paths) == {"sparsity.budgets": "block"}


# Recommending

FEW = ("data.windows=12", "sparsity.budget_windows=4", "windows=4", "data.tokens=16", "levels=[0.5]")


def test_the_recommended_is_what_skips_most_within_the_budget(compose):
    cfg = compose("recommend", "model=tiny-llama", *FEW, "contenders=[[teal,threshold]]")
    recommend.check(cfg)
    one = recommend.try_all(cfg, [])[0]
    assert one.contender == ("teal", "threshold")
    assert one.skipped > 0.1
    other = one._replace(contender=("cats", "threshold"), skipped=one.skipped / 2, lost=one.lost - 0.1)
    assert recommend.choose([other, one], one.lost) is one
    assert recommend.choose([other, one], other.lost) is other
    with pytest.raises(
        UserError, match=r"nats over dense is less than any of these loses.* at level 0\.5 loses"
    ):
        recommend.choose([other, one], other.lost - 0.01)
    assert "contender=[cats,threshold]" in recommend.command(cfg, other)

    cfg.budget_of = "kl"
    diverged = recommend.try_all(cfg, [])[0]
    assert diverged.skipped == one.skipped
    assert diverged.lost > 3 * diverged.stderr > 0

    lm = loading.load_lm(cfg)
    seen = {tuple(row) for batch in ingredients.calibration_batches(cfg, lm, 4) for row in batch.ids.tolist()}
    assert not seen & {tuple(one.ids) for one in recommend.held_out(cfg, lm)}
    cfg.windows = 9
    with pytest.raises(UserError, match="methods learn from 4, and 9 are measured on: give windows=8"):
        recommend.held_out(cfg, lm)
    cfg.sparsity.budget_windows = 12
    with pytest.raises(UserError, match=r"9 are measured on: give data\.windows=21$"):
        recommend.held_out(cfg, lm)


def test_what_cannot_be_recommended_is_refused_before_anything_is_loaded(compose):
    for setting, value, message in (
        (
            "contenders",
            [["teel", "threshold"]],
            r"a predictor and a rule of .* got 'teel': did you mean teal\?",
        ),
        ("levels", [], "levels and contenders must name some"),
        ("levels", 0.5, "levels and contenders must name some"),
        ("contenders", ["teal", "threshold"], "levels and contenders must name some"),
        ("contenders", [["static", "layer"]], "static learns from all of them"),
        ("budget", -1, "budget must be a number of nats above 0, got -1"),
    ):
        cfg = compose("recommend", "model=tiny-llama", *FEW, "contenders=[[teal,threshold]]")
        cfg[setting] = value
        with pytest.raises(UserError, match=message):
            recommend.check(cfg)


def test_a_checkpoint_of_what_was_learnt_from_other_text_lies_elsewhere(compose):
    def folder(*more):
        cfg = compose("export", "model=tiny-llama", "predictor=teal", "sparsity=threshold", *more)
        return export.folder_of(cfg)

    assert folder("data.split_seed=1") != folder("data.split_seed=2")
    assert folder("sparsity.level=0", "data.split_seed=1") == folder("sparsity.level=0", "data.split_seed=2")


@pytest.mark.parametrize(
    ("error", "line"), [(OSError("\nno disk\nat all"), "no disk"), (OSError(), "OSError")], ids=str
)
def test_of_a_librarys_error_the_first_line_is_told_or_its_class(error, line):
    assert first_line(error) == line

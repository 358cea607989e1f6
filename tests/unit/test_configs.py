"""Every option of every group composes, and builds on tiny models."""

import importlib.resources
from pathlib import Path

import pytest
import pytorch_lightning as pl
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from shadow.criteria import CRITERIA, REMOVAL
from shadow.front import sparse
from shadow.jobs import (
    calibration,
    checks,
    config,
    fitting,
    ingredients,
    keys,
    loading,
    measure_checks,
    measures,
    method,
    stores,
    trace_checks,
)
from shadow.jobs.command_line import refuse_null_groups
from shadow.models.kinds import find_sites
from shadow.scorers.fixed import Fixed, random_scores

CONF = Path(__file__).parents[2] / "conf"
SCRIPTS = ("train", "evaluate")
OPTIONS = sorted(
    (str(file.parent.relative_to(CONF)), file.stem) for file in CONF.rglob("*.yaml") if file.parent != CONF
)
NAMED = pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["=".join(pair) for pair in OPTIONS])
SMALL = (
    "model=tiny-llama",
    "traces.batch_size=2",
    "traces.shard_windows=4",
    "traces.tokens_per_window=5",
    "callbacks.progress=null",
    "+trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
)
OF_CHANNELS = ("larosa", "r_sparse", "scap", "teal", "wina")
OF_NEURONS = ("cats", "cfsp", "chess", "d_countdown", "m_countdown", "sparse_infer", "svdp")
OF_BOTH = ("flap", "magnitude", "oracle", "prompt_activation", "random", "static", "svd", "wanda_sp")
TRAINING_FREE = (*OF_CHANNELS, *OF_NEURONS, *OF_BOTH, "teal_two_step", "two_step_head")
APART = ("own", "recommended", "ftp")  # ftp has thresholds, and tests of its own
MEASURE = (
    "measure.windows=3",
    "measure.tokens=16",
    "measure.questions=3",
    "measure.context_tokens=8",
    "measure.continuation_tokens=4",
    "measure.limit=2",
    "measure.quality_windows=2",
    "measure.context_windows=2",
    "measure.quality_layers=1",
    "measure.quality_neurons=4",
)


def groups_of(script: str) -> set[str]:
    """The groups in the script's defaults list."""
    defaults = yaml.safe_load((CONF / f"{script}.yaml").read_text())["defaults"]
    return {name.removeprefix("optional ") for entry in defaults if isinstance(entry, dict) for name in entry}


def script_with(group: str) -> str:
    """train, or of the groups that it lacks, evaluate."""
    return next(script for script in SCRIPTS if group in groups_of(script))


def plugins(group: str) -> list[str]:
    """What there is to choose from of a group of Hydra's own."""
    return GlobalHydra.instance().config_loader().get_group_options(group)


@pytest.fixture
def text_files(tmp_path):
    """Overrides that name two text files."""
    for part in ("train", "eval"):
        (tmp_path / f"{part}.txt").write_text(f"Words of the {part} file, one by one. " * 60)
    return [f"data.{part}={tmp_path / part}.txt" for part in ("train", "eval")]


PLUGINS = {
    ("launch", "joblib"): ("hydra/launcher", "joblib"),
    ("launch", "submitit_local"): ("hydra/launcher", "submitit_local"),
    ("launch", "slurm"): ("hydra/launcher", "submitit_slurm"),
    ("hparams_search", "optuna"): ("hydra/sweeper", "optuna"),
}  # of the extra `launchers`: what each of these options chooses for Hydra


@NAMED
def test_every_option_composes_and_resolves(compose, group, option):
    """With train.py, or of the groups that it lacks, with evaluate.py.

    What needs the extra `launchers` is refused by its name where that is not installed.
    """
    script = script_with(group)
    chosen, plugin = PLUGINS.get((group, option), (None, None))
    if chosen and plugin not in plugins(chosen):
        with pytest.raises(MissingConfigException, match=f"Could not find '{chosen}/{plugin}'"):
            compose(script, f"{group}={option}")
    else:
        cfg = compose(script, f"{group}={option}")
        assert cfg.task_name == script
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def test_the_scripts_share_all_groups_but_those_that_only_one_reads():
    train, evaluate = (groups_of(script) for script in SCRIPTS)
    assert (train - evaluate, evaluate - train) == ({"hparams_search"}, {"measure", "executor"})


def test_every_option_says_in_its_first_line_when_to_choose_it():
    for group, option in OPTIONS:
        lines = (CONF / group / f"{option}.yaml").read_text().splitlines()
        first = next(line for line in lines if "@package" not in line)
        assert first.startswith("# "), (group, option)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_defaults_compose_and_every_default_is_an_option(compose, script):
    OmegaConf.to_container(compose(script), resolve=True, throw_on_missing=True)
    for group in groups_of(script):
        assert group == "local" or any(group == other for other, _ in OPTIONS), group


@pytest.mark.parametrize("group", ["model", "criterion", "sparsity", "measure", "trainer", "traces", "paths"])
def test_the_options_of_a_group_have_the_same_keys(compose, group):
    """So that a sweep over the options can set any of them. (Data, loggers, predictors and executors are
    classes of their own.)"""
    script = script_with(group)
    found = {
        option: set(compose(script, f"{group}={option}")[group])
        for other, option in OPTIONS
        if other == group
    }
    assert len({frozenset(each) for each in found.values()}) == 1, found


@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if pair[0] == "model"])
def test_every_model_builds_or_is_ready_to(compose, group, option):
    cfg = compose("train", f"model={option}")
    source = instantiate(cfg.model.source)
    assert callable(source)
    assert cfg.model.name == option
    if option.startswith("tiny"):
        lm = loading.load_lm(cfg)
        assert len(find_sites(lm.model)) == 8
        assert lm.model.dtype.is_floating_point


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "criterion"])
def test_every_criterion_has_a_formula_and_its_file_the_formulas_name(compose, option):
    assert compose("train", f"criterion={option}").criterion.name == option
    assert option in (*CRITERIA, REMOVAL)


def test_every_formula_has_an_option():
    assert {option for group, option in OPTIONS if group == "criterion"} == {*CRITERIA, REMOVAL}


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "data"])
def test_every_data_gives_calibration_examples(compose, text_files, task_root, tiny_llama, option):
    more = {
        "text": [*text_files, "data.windows=4", "data.tokens=16"],
        "builtin": ["data.windows=4", "data.tokens=16"],
        "tasks": [
            f"data.root={task_root}",
            "data.tasks=[piqa,rte]",
            "data.examples_per_task=2",
            "data.num_fewshot=1",
        ],
    }[option]
    data = calibration.calibration_data(compose("train", f"data={option}", *more))
    examples = data.examples(tiny_llama)
    assert len(examples) == 4
    assert all(0 < example.prompt < len(example.ids) for example in examples)
    assert data.fingerprint() == data.fingerprint()


@pytest.mark.parametrize(
    "option", [name for group, name in OPTIONS if group == "predictor" and name not in APART]
)
def test_every_predictor_is_a_scorer_that_makes_a_model_sparse(compose, shelf, batch, option):
    more = {
        "prompt_activation": ["sparsity.decided_at=prompt"],
        "unified_paper": ["sparsity.decided_at=prompt"],
        "unified_paper_global": ["sparsity.decided_at=prompt"],
        "unified_sequence": ["sparsity.decided_at=prompt"],
        "layerwise_paper": ["sparsity.decided_at=prompt"],
    }.get(option, [])
    few = [] if option in TRAINING_FREE else ["predictor.epochs=1"]
    of_relu = ["model=tiny-opt"] if option == "sparse_infer" else []
    small = [*SMALL, *few, *of_relu, "data.windows=10", "data.tokens=12"]
    cfg = compose("evaluate", f"predictor={option}", *small, *more)
    assert cfg.predictor.name == option
    checks.check_method(cfg)
    lm = loading.load_lm(cfg)
    if calibration.needs_traces(cfg):
        shelf(keys.traces_folder(cfg), lambda: stores.get_traces(cfg, lm), calibration.asked_parts(cfg))
    scorer = ingredients.get_scorer(cfg, lm, [])
    with sparse(lm.model, scorer, method.policy_of(cfg), cfg.sparsity.decided_at) as run:
        run.logits(batch)
    scored = {"linear_heads": ("head",), "two_step_head": ("row",), "teal_two_step": ("channel", "row")}
    scored |= dict.fromkeys(OF_NEURONS, ("neuron",))
    scored = (scored | dict.fromkeys(OF_CHANNELS, ("channel",))).get(option, ("head", "neuron"))
    assert scorer.kinds == {*scored}
    shares = {kind: pytest.approx(128 / 257 if kind == "row" else 0.375) for kind in scored}
    assert {kind: run.achieved(kind) for kind in scored} == shares


@pytest.mark.usefixtures("compose")
@pytest.mark.parametrize(
    ("words", "name", "scope", "budgets", "learnt"),
    [
        ([], "teal", "threshold", "divergence", 256),
        (["sparsity=threshold"], "teal", "threshold", "uniform", 0),
        (["predictor=unified"], "unified", "layer", "uniform", 0),
        (["predictor=teal"], "teal", "layer", "uniform", 0),
        (["predictor=recommended", "sparsity=layer"], "teal", "layer", "uniform", 0),
    ],
    ids=str,
)
def test_the_recommended_rule_is_the_default_of_the_recommended_predictor_alone(
    compose_once, words, name, scope, budgets, learnt
):
    cfg = compose_once("train", words)
    assert (cfg.predictor.name, cfg.sparsity.scope, cfg.sparsity.budgets) == (name, scope, budgets)
    assert cfg.sparsity.learnt.windows == learnt


def test_a_predictor_decides_at_the_prompt_with_every_pooling(compose, batch):
    for pooling in ("scores", "mean", "last"):
        cfg = compose(
            "evaluate",
            *SMALL,
            "data.windows=10",
            "data.tokens=12",
            "sparsity.decided_at=prompt",
            "predictor.epochs=1",
            f"predictor.pooling={pooling}",
        )
        lm = loading.load_lm(cfg)
        with sparse(lm.model, ingredients.get_scorer(cfg, lm, []), method.policy_of(cfg), "prompt") as run:
            run.logits(batch)
        assert run.achieved("neuron") == 0.375


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "sparsity"])
def test_every_sparsity_is_a_policy(compose, option):
    policy = method.policy_of(compose("train", f"sparsity={option}", "sparsity.level=0.25"))
    assert policy.level == 0.25
    assert policy.scope == {"learnt": "threshold"}.get(option, option)


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "measure"])
def test_every_measure_runs_on_a_tiny_model(compose, task_root, option):
    more = {
        "tasks": [f"measure.root={task_root}", "measure.tasks=[piqa,rte]"],
        "criterion_quality": ["sparsity.level=0"],
        "latency": [
            "executor=gathered",
            "measure.rounds=2",
            "measure.prompt_tokens=8",
            "measure.new_tokens=2",
        ],
        "context": ["sparsity.level=0"],
    }
    cfg = compose("evaluate", f"measure={option}", *SMALL, *MEASURE, *more.get(option, []))
    measure_checks.check_measure(cfg)
    checks.check_latency(cfg)
    lm = loading.load_lm(cfg)
    scorer = Fixed(random_scores(find_sites(lm.model), 0))
    executor = method.executor_of(cfg)
    with sparse(lm.model, scorer, method.policy_of(cfg), cfg.sparsity.decided_at, executor=executor) as run:
        metrics = measures.measure(cfg, lm, run)
    expected = {
        "default": {"perplexity", "word_perplexity", "choices/acc"},
        "perplexity": {"perplexity", "word_perplexity"},
        "choices": {"choices/acc"},
        "tasks": {"piqa/acc", "piqa/acc_norm", "rte/acc"},
        "criterion_quality": {
            "quality/fisher/neuron/spearman",
            "quality_size/snip/neuron/spearman",
            "quality_static/random/head/recall@50",
        },
        "latency": {"latency/token_ms", "latency/times_dense", "latency/dense_prompt_ms", "latency/roofline"},
        "context": {"rank_variance/l2_norm/0", "rank_variance/fisher/3"},
    }[option]
    assert expected <= set(metrics)
    assert {name.split("/")[0] for name in metrics} == {name.split("/")[0] for name in expected}


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "trainer"])
def test_every_trainer_builds_with_the_callbacks(compose, option):
    cfg = compose("train", f"trainer={option}")
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values()]
    strategy = config.STRATEGIES[cfg.trainer.strategy]
    trainer = instantiate(
        cfg.trainer, strategy=strategy, callbacks=callbacks, logger=False, enable_checkpointing=False
    )
    assert isinstance(trainer, pl.Trainer)
    assert trainer.max_epochs == cfg.predictor.epochs


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "callbacks"])
def test_every_callback_builds(compose, option):
    for callback in compose("train", f"callbacks={option}").callbacks.values():
        assert isinstance(instantiate(callback), pl.Callback)


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "logger"])
def test_every_logger_builds(compose, option, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_OFFLINE", "true")
    cfg = compose("train", f"logger={option}")
    for node in OmegaConf.to_container(cfg, resolve=True)["logger"].values():
        logger = instantiate(node)
        assert isinstance(logger, pl.loggers.Logger)
        assert Path(logger.save_dir) == tmp_path / "output"


@pytest.mark.parametrize("word", ["logger=null", "experiment=NULL", "+debug=null"])
def test_a_group_that_is_null_is_refused_with_what_it_may_be(word):
    group = word.strip("+").split("=")[0]
    options = sorted(option for other, option in OPTIONS if other == group)
    with pytest.raises(SystemExit) as refused:
        refuse_null_groups(["-m", "seed=1", word])
    assert str(refused.value) == f"{word} names no option of {group}: give one of {options}, or leave it out"


def test_values_that_are_null_and_loggers_that_are_none_are_no_groups():
    refuse_null_groups(["logger=none", "logger.csv=null", "predictor.ridge=null", "model=tiny-opt", "--help"])


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "traces"])
def test_every_trace_setting_is_accepted(compose, option):
    trace_checks.check_traces(compose("train", f"traces={option}"))


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "experiment"])
def test_every_experiment_passes_the_checks_before_a_model_is_loaded(compose, text_files, script, option):
    files = text_files if option == "wikitext" else []
    if script == "train":
        checks.check_train(compose(script, f"experiment={option}", *files))
    else:
        cfg = compose(script, f"experiment={option}", "make_missing=true", *files)
        checks.check_scorer(cfg)
        measure_checks.check_measure(cfg)


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "sweep"])
def test_every_sweep_is_a_multirun_over_settings_that_there_are(compose, option):
    grid = yaml.safe_load((CONF / "sweep" / f"{option}.yaml").read_text())["hydra"]
    assert grid["mode"] == "MULTIRUN"
    parser = OverridesParser.create()
    swept = {
        name: parser.parse_override(f"{name}={values}") for name, values in grid["sweeper"]["params"].items()
    }
    assert any(override.is_sweep_override() for override in swept.values())
    for name, override in swept.items():
        if not override.is_sweep_override():
            jobs = [compose("evaluate", f"sweep={option}", override.input_line)]
        elif name in groups_of("evaluate"):
            chosen = [f"{name}={value}" for value in override.sweep_string_iterator()]
            jobs = [compose("evaluate", f"sweep={option}", one) for one in chosen]
        else:
            cfg = compose("evaluate", f"sweep={option}")  # once, as it takes a while
            jobs = [cfg.copy() for _ in override.sweep_iterator()]
            for job, value in zip(jobs, override.sweep_iterator()):
                OmegaConf.update(job, name, value)
        for job in jobs:
            checks.check_predictor(job)
            trace_checks.check_traces(job)
            method.policy_of(job)


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "debug"])
def test_every_debug_run_collects_and_fits_in_no_time(compose, option, batch):
    cfg = compose("train", f"debug={option}", *SMALL, "data.tokens=16")
    lm = loading.load_lm(cfg)
    folder = fitting.get_predictor(cfg, lm, [])
    assert (folder / "config.json").is_file()


# Composition


def test_an_experiment_overrides_a_primary_key_and_a_groups(compose, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /predictor: layerwise\n"
        "seed: 7\ntags: [mine]\nsparsity:\n  level: 0.9\n"
    )
    where = f"hydra.searchpath=[file://{tmp_path}/own]"
    for script in SCRIPTS:
        cfg = compose(script, where, "experiment=mine")
        assert (cfg.seed, list(cfg.tags), cfg.sparsity.level) == (7, ["mine"], 0.9)
        assert cfg.predictor.name == "layerwise"
        assert cfg.data.seed == 7
        assert (
            compose(script, where, "experiment=mine", "seed=8").seed == 8
        )  # the command line has the last word


def test_paths_follow_shadow_root(compose, tmp_path):
    assert compose("train").paths.artifact_dir == f"{tmp_path}/artifacts"


def test_without_shadow_root_paths_begin_where_the_command_is_given(compose, monkeypatch):
    monkeypatch.delenv("SHADOW_ROOT")
    assert compose("train").paths.artifact_dir == "./artifacts"


def test_a_setting_that_does_not_exist_is_refused(compose):
    with pytest.raises(Exception, match=r"sparsity\.lvl"):
        compose("evaluate", "sparsity.lvl=0.5")


def test_the_configs_are_a_package_with_every_file():
    """What a wheel ships: `conf/` under the name shadow.conf."""
    packaged = importlib.resources.files("shadow.conf")
    for script in SCRIPTS:
        assert (packaged / f"{script}.yaml").read_text() == (CONF / f"{script}.yaml").read_text()
    for group, option in OPTIONS:
        assert (packaged / group / f"{option}.yaml").is_file()


def test_paper_mode_names_the_conditions_of_the_reference_and_what_replaces_them(compose):
    def condition(name):
        cfg = compose("evaluate", "experiment=paper_mode", f"condition={name}", "hydra.mode=RUN")
        checks.check_method(cfg)
        return (
            cfg.predictor.name,
            cfg.sparsity.decided_at,
            list(cfg.sparsity.kinds),
            cfg.predictor.raw_inputs,
            cfg.predictor.dense_fed,
        )

    heads, both = ["head"], ["head", "neuron"]
    assert condition("unified_published") == ("unified_paper", "sequence", heads, False, False)
    assert condition("unified_honest") == ("unified_paper", "prompt", both, False, False)
    assert condition("layerwise_published") == ("layerwise_paper", "sequence", heads, True, True)
    assert condition("layerwise_in_one_pass") == ("layerwise_paper", "sequence", heads, False, False)
    assert condition("layerwise_honest") == ("layerwise_paper", "prompt", both, False, False)

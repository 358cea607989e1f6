"""What names a result, what does not, and the command that makes a missing one."""

import json
import shlex
from pathlib import Path

import pytest

from shadow.artifacts.files import write_json
from shadow.criteria import CRITERIA, RANDOM
from shadow.errors import UserError
from shadow.jobs.calibration import asked_criteria, asked_parts, asked_size, holds, needs_traces
from shadow.jobs.checks import check_evaluate, check_scorer, check_train
from shadow.jobs.keys import predictor_folder, pruned_folder, traces_folder
from shadow.jobs.method import is_trained, net_of, policy_of
from shadow.jobs.missing import train_command


@pytest.fixture
def text_files(tmp_path):
    """text_files(folder): overrides that name two files of the same content, wherever they lie."""

    def write(folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        for part in ("train", "eval"):
            (tmp_path / folder / f"{part}.jsonl").write_text(
                json.dumps({"page": f"words of {part} " * 99}) + "\n"
            )
        return [f"data.{part}={tmp_path / folder / part}.jsonl" for part in ("train", "eval")]

    return write


# Names

NEITHER = [
    "model.source.cache=/elsewhere",
    "model.source.install=other",
    "paths.artifact_dir=/elsewhere",
    "trainer.accelerator=cpu",
    "sparsity.level=0.1",
    "sparsity=global",
    "logger=wandb",
    "tags=[a,b]",
    "callbacks.progress=null",
    "stage=traces",
    "predictor.dense_fed=true",  # how it is used
    "predictor.raw_inputs=true",
    "trainer.devices=2",
    "traces.criteria=[l2_norm]",  # a store is added what it misses
    "traces.criteria=all",
    "traces.batch_size=4",
]
PREDICTOR = [
    "data.windows=100",  # of the same store, the first
    "predictor=layerwise",
    "predictor.rank=3",
    "predictor.hidden=7",
    "predictor.ahead=1",
    "predictor.kinds=[head]",
    "predictor.depth=1",
    "predictor.rounds=1",
    "predictor.levels=[0.3]",
    "predictor.epochs=1",
    "predictor.ridge=1.0",
    "predictor.floor=0.5",
    "predictor=dejavu",
    "criterion=fisher",
]
BOTH = [
    "model=tiny-opt",
    "model.dtype=bfloat16",
    "model.source.gguf_file=other.gguf",
    "data.tokens=32",
    "data.prompt_share=0.25",
    "data.eval_share=0.5",
    "data.split_seed=1",
    "seed=2",
    "traces.taps=[0,1]",
    "traces.tokens_per_window=4",
    "traces.statistic_tokens=4",
    "traces.shard_windows=32",
    "traces.loss=next_token",
    "traces.summed=prompt",
    "traces.dtype=ranks",
    "traces.top=0.5",
]


@pytest.mark.parametrize("override", [*NEITHER, *PREDICTOR, *BOTH])
def test_a_setting_renames_what_it_concerns_and_nothing_else(compose, override):
    before, after = compose("train"), compose("train", override)
    renames_traces = traces_folder(before).name != traces_folder(after).name
    renames_predictor = predictor_folder(before).name != predictor_folder(after).name
    assert (renames_traces, renames_predictor) == (override in BOTH, override not in NEITHER)


def test_the_number_of_tasks_examples_renames_predictors_alone(compose, task_root):
    job = ["data=tasks", "data.tasks=[copa]", f"data.root={task_root}"]
    few, more = (compose("train", *job, f"data.examples_per_task={count}") for count in (3, 5))
    assert traces_folder(few) == traces_folder(more)
    assert predictor_folder(few) != predictor_folder(more)
    assert (asked_size(few), asked_size(more)) == ("3", "5")


def test_a_predictor_of_tokens_serves_every_time_of_decision_and_one_of_windows_its_own(compose):
    def names(pooling, *times):
        overrides = [f"predictor.pooling={pooling}"]
        return {
            predictor_folder(compose("train", *overrides, f"sparsity.decided_at={t}")).name for t in times
        }

    assert len(names("scores", "token", "prompt", "sequence")) == 1
    assert len(names("last", "prompt", "sequence")) == 2
    assert not names("last", "prompt") & names("mean", "prompt")


def test_names_do_not_depend_on_where_results_lie(compose, monkeypatch, tmp_path):
    names = set()
    for root in ("one", "two"):
        monkeypatch.setenv("SHADOW_ROOT", str(tmp_path / root))
        cfg = compose("train")
        assert predictor_folder(cfg).is_relative_to(tmp_path / root)
        names.add((traces_folder(cfg).name, predictor_folder(cfg).name))
    assert len(names) == 1


def test_names_are_those_of_evaluate_too(compose):
    assert predictor_folder(compose("train")) == predictor_folder(compose("evaluate"))


def test_traces_follow_the_content_of_their_text_and_not_its_place(compose, text_files):
    one, two = text_files("one"), text_files("two")
    before = traces_folder(compose("train", "data=text", *one)).name
    assert traces_folder(compose("train", "data=text", *two)).name == before
    file = one[0].partition("=")[2]
    with open(file, "a") as stream:
        stream.write(json.dumps({"page": "one more"}) + "\n")
    assert traces_folder(compose("train", "data=text", *one)).name != before


def test_traces_do_not_depend_on_the_text_for_evaluation(compose, text_files):
    calibration, evaluation = text_files("one")
    alone = traces_folder(compose("train", "data=text", calibration)).name
    assert traces_folder(compose("train", "data=text", calibration, evaluation)).name == alone


def test_traces_of_tasks_follow_the_content_of_their_files_and_not_its_place(compose, task_root, tmp_path):
    def name(root):
        return traces_folder(compose("train", "data=tasks", "data.tasks=[copa]", f"data.root={root}")).name

    (tmp_path / "copy" / "copa").mkdir(parents=True)
    for part in ("train", "validation"):
        content = (task_root / "copa" / f"{part}.jsonl").read_text()
        (tmp_path / "copy" / "copa" / f"{part}.jsonl").write_text(content)
    assert name(tmp_path / "copy") == name(task_root)
    (tmp_path / "copy" / "copa" / "train.jsonl").write_text(content)
    assert name(tmp_path / "copy") != name(task_root)


# What a store must hold


@pytest.mark.parametrize(
    ("job", "criteria"),
    [
        ([], ["l2_norm"]),
        (["criterion=fisher"], ["fisher"]),
        (["traces.criteria=[snip]"], ["snip", "l2_norm"]),
        (["traces.criteria=[snip,l2_norm]"], ["snip", "l2_norm"]),
        (["traces.criteria=all"], [name for name in CRITERIA if name != RANDOM]),
        (["traces.criteria=[random,snip]", "predictor=random"], ["snip"]),
        (["predictor=static", "criterion=random"], []),
        (["predictor=random"], []),
        (["predictor=oracle", "criterion=fisher"], []),
        (["predictor=prompt_activation"], []),
        (["predictor=svd"], ["l2_norm"]),
        (["predictor=svd", "criterion=random"], []),
    ],
    ids=str,
)
def test_a_store_must_hold_the_criterion_that_is_used_and_those_that_are_asked_for(compose, job, criteria):
    cfg = compose("train", *job)
    assert asked_criteria(cfg) == criteria
    assert needs_traces(cfg) == (cfg.criterion.name in criteria)


def manifest(**windows: int) -> dict:
    """Of a store with so many windows of each part, of which 10 and 20 were asked for."""
    parts = {
        part: [{"index": 0, "windows": count, "file": f"{part}-00000-rank0of1.safetensors"}]
        for part, count in windows.items()
    }
    return {"settings": {"traces": {"shard_windows": 64}}, "sizes": {"10": 10, "20": 20}, "parts": parts}


@pytest.mark.parametrize(
    ("job", "found", "enough"),
    [
        ([], manifest(features=20, means=20, l2_norm=20), True),
        ([], manifest(features=20, means=20, l2_norm=10), False),
        ([], manifest(features=20, means=20, fisher=20), False),
        ([], manifest(features=10, means=20, l2_norm=20), False),
        ([], manifest(means=20, l2_norm=20), False),
        ([], manifest(features=20, l2_norm=20), False),
        ([], manifest(features=20, means=10, l2_norm=20), False),  # its shards are of 64 windows
        ([], None, False),
        (["data.windows=10"], manifest(features=20, means=20, l2_norm=10), True),
        (["data.windows=30"], manifest(features=30, means=30, l2_norm=30), False),  # not yet known to be 30
        (["criterion=fisher"], manifest(features=20, means=20, fisher=20), True),
        (["traces.criteria=[snip]"], manifest(features=20, means=20, l2_norm=20), False),
        (["predictor=static", "criterion=random"], manifest(features=20, means=20), True),
    ],
    ids=str,
)
def test_a_store_is_enough_if_it_covers_all_windows_of_all_that_is_asked_for(compose, job, found, enough):
    cfg = compose("train", "data.windows=20", *job)
    assert holds(found, asked_size(cfg), asked_parts(cfg)) == enough


def test_the_means_are_of_the_first_shard_alone(compose):
    found = manifest(features=20, means=16, l2_norm=20)
    found["settings"]["traces"]["shard_windows"] = 16
    cfg = compose("train", "data.windows=20")
    assert holds(found, asked_size(cfg), asked_parts(cfg))


@pytest.mark.parametrize(
    "job",
    [
        ["predictor=random", "sparsity.stand_in=mean"],
        ["predictor=oracle", "sparsity.stand_in=mean"],
        ["predictor=oracle", "criterion=l2_deviation"],
        ["predictor=static", "sparsity.stand_in=mean"],
        ["predictor=static", "criterion=random", "sparsity.stand_in=mean"],
        ["predictor=prompt_activation", "criterion=l2_deviation", "sparsity.decided_at=prompt"],
    ],
    ids=str,
)
def test_means_that_are_needed_and_missing_are_answered_with_the_command(compose, job):
    cfg = compose("evaluate", "model=tiny-opt", "data.windows=20", *job)
    write_json(traces_folder(cfg) / "manifest.json", manifest(features=20, l2_norm=20))
    with pytest.raises(UserError, match=r"no trace store with all that is asked for.*`python train.py"):
        check_scorer(cfg)
    write_json(traces_folder(cfg) / "manifest.json", manifest(features=20, l2_norm=20, means=20))
    check_scorer(cfg)
    (traces_folder(cfg) / "manifest.json").unlink()
    check_scorer(compose("evaluate", "model=tiny-opt", "data.windows=20", *job, "sparsity.level=0"))


def test_what_stands_in_for_dropped_units_names_only_what_has_seen_it(compose):
    """Fits whose later rounds ran under it, and the states that those rounds left."""
    filled = "sparsity.stand_in=mean"
    first = predictor_folder(compose("train"))
    assert predictor_folder(compose("train", filled)) == first
    later = predictor_folder(compose("train", "predictor.rounds=1"))
    assert predictor_folder(compose("train", "predictor.rounds=1", filled)) not in (first, later)
    zero, mean = (compose("train", *more) for more in ([], [filled]))
    assert pruned_folder(zero, 0.5) != pruned_folder(mean, 0.5)
    assert traces_folder(zero) == traces_folder(mean)


def test_the_unit_of_heads_names_what_later_rounds_have_pruned(compose):
    job, grouped = "predictor.rounds=1", "sparsity.head_unit=group"
    assert predictor_folder(compose("train", grouped)) == predictor_folder(compose("train"))
    assert predictor_folder(compose("train", job, grouped)) != predictor_folder(compose("train", job))
    query, group = (compose("train", *more) for more in ([], [grouped]))
    assert pruned_folder(query, 0.5) != pruned_folder(group, 0.5)


def test_what_stands_in_for_dropped_units_is_one_of_three(compose):
    for check, script in ((check_scorer, "evaluate"), (check_train, "train")):
        with pytest.raises(
            UserError, match=r"sparsity\.stand_in must be one of \['auto', 'mean', 'zero'\], got 'median'"
        ):
            check(compose(script, "sparsity.stand_in=median"))


# The command that makes what is missing

JOBS = [
    [],
    ["predictor=layerwise"],
    ["sparsity=global", "sparsity.level=0.7"],
    ["sparsity.decided_at=prompt", "predictor.pooling=mean"],
    ["seed=7"],
    ["predictor.rounds=1", "sparsity.stand_in=mean"],
    ["predictor.rounds=1", "sparsity.head_unit=group"],
    ["debug=fdr"],
    ["model=tiny-opt", "model.source.layers=3"],
    ["criterion=fisher"],
    ["traces.taps=[0,1]", "predictor.taps=[1]"],
    ["trainer=cpu", "+trainer.deterministic=true"],
    ["data.windows=100", "data.split_seed=1"],
    ["measure=perplexity", "measure.windows=2", "tags=[a,b]", "logger=wandb", "reuse_points=false"],
    ["callbacks.progress=null", "+trainer.enable_progress_bar=false"],
    ["sweep=accuracy_curve", "sparsity.level=0.3", "predictor=unified"],
    ["predictor=static", "model=tiny-llama"],
    ["predictor=svd", "predictor.rank=7"],
    ["predictor=static", "criterion=nwot", "traces.shard_windows=16", "traces.batch_size=16"],
    ["traces.criteria=[fisher,snip]", "traces.dtype=ranks", "traces.top=0.3"],
]


def overrides_of(command: str) -> list[str]:
    words = shlex.split(command)
    assert words[:2] == ["python", "train.py"]
    return words[2:]


def folders(cfg) -> list[Path]:
    return [traces_folder(cfg), *([predictor_folder(cfg)] if is_trained(cfg) else [])]


@pytest.mark.parametrize("job", JOBS, ids=[" ".join(job) or "defaults" for job in JOBS])
def test_the_command_makes_what_the_job_misses(compose, job):
    if not any(override.startswith("criterion") for override in job):
        job = ["criterion=l2_norm", *job]
    cfg = compose("evaluate", *job)
    wanted = folders(cfg)
    assert folders(compose("train", *overrides_of(train_command()))) == wanted


def test_the_command_of_an_experiment_makes_what_the_job_misses(compose, text_files):
    cfg = compose("evaluate", "experiment=wikitext", *text_files("with space"))
    wanted = folders(cfg)
    assert folders(compose("train", *overrides_of(train_command()))) == wanted


@pytest.mark.parametrize(
    "override", ["measure=choices", "sparsity.level=0.3", "tags=[a]", "make_missing=false"]
)
def test_the_command_leaves_out_what_does_not_concern_it(compose, override):
    compose("evaluate", "model=tiny-opt", override)
    assert train_command() == "python train.py criterion=l2_norm predictor=unified model=tiny-opt"


@pytest.mark.parametrize(
    ("predictor", "thing"), [("unified", "predictor"), ("static", "trace store"), ("svd", "trace store")]
)
def test_what_is_missing_is_answered_with_the_command_and_the_other_way(compose, predictor, thing):
    cfg = compose("evaluate", "model=tiny-opt", f"predictor={predictor}")
    with pytest.raises(UserError, match=f"no {thing}.*`python train.py .*`.*make_missing=true") as error:
        check_scorer(cfg)
    assert f"predictor={predictor}" in str(error.value)
    assert "model=tiny-opt" in str(error.value)


def test_what_a_sweeps_job_misses_is_not_made_by_a_command_without_the_sweeps_settings(compose):
    cfg = compose("evaluate", "sweep=methods", "model=tiny-llama", "sparsity.level=0.5", "make_missing=false")
    with pytest.raises(UserError, match=r"there are no thresholds .*: set make_missing=true, or give"):
        check_scorer(cfg)


@pytest.mark.parametrize(
    ("found", "enough"),
    [(manifest(features=20, l2_norm=20), True), (manifest(features=20, fisher=20), False)],
    ids=["with the criterion", "without"],
)
def test_a_store_without_the_criterion_is_missing_too(compose, found, enough):
    cfg = compose(
        "evaluate", "model=tiny-opt", "predictor=static", "data.windows=20", "traces.shard_windows=16"
    )
    write_json(traces_folder(cfg) / "manifest.json", found)
    if enough:
        check_scorer(cfg)
    else:
        with pytest.raises(UserError, match=r"no trace store with all that is asked for.*`python train.py"):
            check_scorer(cfg)


@pytest.mark.parametrize(
    "job",
    [
        ["predictor=random"],
        ["predictor=oracle"],
        ["predictor=prompt_activation", "sparsity.decided_at=prompt"],
        ["predictor=static", "criterion=random"],
        ["predictor=svd", "criterion=random"],
        ["sparsity.level=0"],
        ["make_missing=true"],
    ],
)
def test_nothing_is_missing_where_nothing_is_needed(compose, job):
    check_scorer(compose("evaluate", *job))


@pytest.mark.parametrize(
    ("asked", "layers", "taps"),
    [("each", 4, [1, 2, 3]), (1, 30, [1]), (2, 30, [1, 15]), (4, 30, [1, 8, 15, 22]), (4, 4, [1, 2, 3])],
)
def test_so_many_taps_are_spread_evenly_over_the_layers_from_1_on(compose, asked, layers, taps):
    assert net_of(compose("train", f"predictor.taps={asked}")).taps_in(layers) == taps


@pytest.mark.parametrize(
    ("asked", "ahead", "layers", "taps"),
    [
        ("each", 1, 4, [0, 1, 2]),
        ("each", 2, 4, [0, 1]),
        (1, 1, 30, [0]),
        (2, 1, 30, [0, 14]),
        (4, 3, 30, [0, 6, 13, 20]),
        (4, 1, 4, [0, 1, 2]),
        ("[0,2]", 1, 4, [0, 2]),
    ],
)
def test_taps_that_look_ahead_lie_so_many_layers_before_what_they_score(compose, asked, ahead, layers, taps):
    cfg = compose("train", f"predictor.taps={asked}", f"predictor.ahead={ahead}")
    assert net_of(cfg).taps_in(layers) == taps


def test_the_real_dejavu_reads_the_layer_before(compose):
    assert net_of(compose("train", "predictor=dejavu")).taps_in(30) == list(range(29))


@pytest.mark.parametrize(
    ("taps", "ahead", "message"),
    [
        ("[1,3]", 1, r"predictor\.taps.*\[0, 3\).*predictor\.ahead=1.*\[1, 3\]"),
        ("each", 4, r"predictor\.ahead.*4 layers, got 4"),
        ("2", 9, r"predictor\.ahead.*4 layers, got 9"),
    ],
)
def test_taps_that_look_beyond_the_last_layer_are_refused(compose, taps, ahead, message):
    with pytest.raises(UserError, match=message):
        net_of(compose("train", f"predictor.taps={taps}", f"predictor.ahead={ahead}")).taps_in(4)


def test_a_tap_beyond_the_model_is_refused_once_its_layers_are_known(compose):
    with pytest.raises(UserError, match=r"predictor\.taps.*\[0, 4\).*\[1, 4\]"):
        net_of(compose("train", "predictor.taps=[1,4]")).taps_in(4)


@pytest.mark.parametrize("levels", ["[]", "[0.5,1.0]", "[0]", "0.5", "[0.5,0.5]", "[half]"])
def test_later_rounds_need_levels_at_which_something_goes_and_something_stays(compose, levels):
    with pytest.raises(UserError, match=r"predictor\.levels.*\(0, 1\)"):
        check_train(compose("train", "predictor.rounds=1", f"predictor.levels={levels}"))


@pytest.mark.parametrize("active", ["[]", "[0.5,1.0]", "negative", "0.5", "null"])
def test_what_is_active_is_what_is_positive_or_what_plans_keep(compose, active):
    with pytest.raises(UserError, match=r"predictor\.active\.neuron .*`positive`, or levels"):
        check_train(compose("train", "predictor=dejavu", f"predictor.active.neuron={active}"))
    with pytest.raises(UserError, match=r"predictor\.active\.head must be levels"):
        check_train(compose("train", "predictor=dejavu", f"predictor.active.head={active}"))


def test_neurons_alone_may_be_active_above_0_and_by_a_criterion_that_knows_0(compose):
    job = ("predictor=dejavu", "predictor.active.neuron=positive")
    check_train(compose("train", *job, "criterion=l2_norm"))
    with pytest.raises(UserError, match=r"neuron=positive .*criterion=l2_norm, got .*l2_deviation"):
        check_train(compose("train", *job, "criterion=l2_deviation"))
    with pytest.raises(UserError, match=r"predictor\.active\.head must be levels .*got positive"):
        check_train(compose("train", *job, "criterion=l2_norm", "predictor.active.head=positive"))


def test_taps_whose_states_are_not_kept_are_refused(compose):
    with pytest.raises(UserError, match=r"predictor\.taps=\[2\] must be among traces\.taps=\[1\]"):
        check_train(compose("train", "predictor.taps=[2]", "traces.taps=[1]"))


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (["predictor=layerwise", "sparsity=global"], r"scope=global .*predictor=layerwise with 29 taps"),
        (["predictor=few_taps", "sparsity=global"], r"scope=global .*predictor=few_taps with 4 taps"),
        (["predictor=unified", "sparsity.dense_layers=[]"], r"sparsity\.dense_layers .*\(1\), got \[\]"),
        (["predictor=dejavu", "predictor.ahead=3"], r"sparsity\.dense_layers .*\(3\), got \[0\]"),
        (["executor=gathered", "sparsity=global"], r"executor=gathered .*scope=layer or threshold"),
        (["executor=gathered", "predictor.dense_fed=true"], r"executor=gathered runs no predictor=unified"),
        (
            ["executor=gathered", "predictor=unified_paper", "sparsity.decided_at=prompt"],
            r"executor=gathered .*predictor=unified_paper reads head_output",
        ),
        (["executor=gathered", "predictor=svd"], r"executor=gathered .*predictor=svd is none"),
    ],
    ids=str,
)
def test_what_an_executor_cannot_run_is_refused_before_anything_is_collected(compose, job, message):
    with pytest.raises(UserError, match=message):
        check_scorer(compose("evaluate", "make_missing=true", *job))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("predictor.schedule=linear", r"predictor\.schedule must be one of .*'cosine'.*got 'linear'"),
        ("predictor.clip=0", r"predictor\.clip .* above 0, or null for none, got 0"),
    ],
)
def test_a_descent_that_cannot_be_is_refused(compose, changed, message):
    with pytest.raises(UserError, match=message):
        check_train(compose("train", changed))


def test_dejavu_descends_as_its_code_does(compose):
    cfg = compose("train", "predictor=dejavu")
    names = ("epochs", "batch_size", "lr", "warmup", "schedule", "clip", "weight_decay", "last_weight_decay")
    found = [cfg.predictor[name] for name in names]
    assert found == [20, 1024, 1e-4, 0.0, "constant_with_warmup", None, 0.01, 0.01]
    assert cfg.trainer.gradient_clip_val is None


def test_the_papers_nets_descend_as_its_code_does(compose):
    cfg = compose("train", "predictor=unified_paper", "sparsity.decided_at=prompt")
    names = ("epochs", "batch_size", "lr", "warmup", "schedule", "clip", "weight_decay", "val_share")
    assert [cfg.predictor[name] for name in names] == [100, 32, 1e-3, 0.0, "cosine", None, 0.01, 0.2]


@pytest.mark.parametrize(
    "net",
    [
        ["predictor=few_taps"],
        ["predictor=unified_paper", "predictor.mlp.scaled=false", "sparsity.decided_at=prompt"],
    ],
    ids=str,
)
def test_raw_inputs_are_of_nets_that_were_trained_on_scaled_ones(compose, net):
    asked = ["make_missing=true", "predictor.raw_inputs=true", *net]
    with pytest.raises(UserError, match=r"predictor\.raw_inputs .*predictor\.raw_inputs=false"):
        check_scorer(compose("evaluate", *asked))


def test_the_regression_alone_is_not_left_out(compose):
    with pytest.raises(UserError, match=r"predictor\.epochs=0.*predictor\.ridge.*got None and 0"):
        check_train(compose("train", "predictor=ridge", "predictor.ridge=null"))
    check_train(compose("train", "predictor=ridge", "predictor.taps=each", "predictor.rank=5000"))


@pytest.mark.parametrize("active", ["[]", "[0.5,1.0]", "positive"])
def test_what_errors_cost_is_learnt_at_levels(compose, active):
    with pytest.raises(UserError, match=r"predictor\.active\.neuron must be levels.*loss=cutoff"):
        check_train(compose("train", "predictor.loss=cutoff", f"predictor.active.neuron={active}"))


@pytest.mark.parametrize("loss", ["listwise", "pairwise", "cutoff"])
def test_an_order_within_layers_makes_no_ranking_over_layers(compose, loss):
    job = [f"predictor.loss={loss}", "make_missing=true"]
    check_scorer(compose("evaluate", *job, "predictor.ridge=null"))
    check_scorer(compose("evaluate", *job))
    with pytest.raises(UserError, match=rf"predictor\.loss={loss}.*sparsity\.scope=layer, got global"):
        check_scorer(compose("evaluate", *job, "sparsity=global"))


def test_logits_are_not_learnt_from_the_ridge_of_log_scores_on(compose):
    with pytest.raises(UserError, match=r"predictor\.loss=bce.*predictor\.ridge=null.*0\.1"):
        check_train(compose("train", "predictor.loss=bce", "predictor.ridge=0.1"))


def test_later_rounds_learn_from_single_tokens(compose):
    job = ["sparsity.decided_at=prompt", "predictor.pooling=mean", "predictor.rounds=1"]
    with pytest.raises(UserError, match=r"predictor\.rounds=1.*predictor\.pooling=scores.*'mean'"):
        check_train(compose("train", *job))


# Refusals before the model is loaded


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("predictor.pooling=max", r"predictor\.pooling.*'max'"),
        ("predictor.pooling=last", r"predictor\.pooling=last.* give sparsity\.decided_at=prompt or sequence"),
        ("sparsity.level=1.5", r"sparsity\.level.*1\.5"),
        ("sparsity.scope=block", r"sparsity\.scope.*block"),
        ("predictor.taps=[]", r"predictor\.taps"),
        ("predictor.taps=[2,1]", r"predictor\.taps"),
        ("predictor.taps=0", r"predictor\.taps.*how many.*0"),
        ("predictor.taps=all", r"predictor\.taps.*`each`.*all"),
        ("predictor.ahead=-1", r"predictor\.ahead.*at least 0, got -1"),
        ("predictor.ahead=0.5", r"predictor\.ahead.*whole number.*0\.5"),
        ("predictor.kinds=[]", r"predictor\.kinds.*'head', 'neuron'.*\[\]"),
        ("predictor.kinds=[heads]", r"predictor\.kinds.*'heads'"),
        ("predictor.kinds=[head,head]", r"predictor\.kinds.*'head', 'head'"),
        ("predictor.rank=0", r"predictor\.rank must be a whole number of at least 1, got 0"),
        ("predictor.rank=72.5", r"predictor\.rank must be a whole number of at least 1, got 72\.5"),
        ("predictor.hidden=true", r"predictor\.hidden .*got True"),
        ("predictor.depth=-1", r"predictor\.depth .*at least 0, got -1"),
        ("sparsity.learnt.lr=${x}", r"sparsity\.learnt\.lr stands for another .*'x' not found\)"),
        (r"predictor.kinds='\n'", r"predictor\.kinds must name some of .* got \\n$"),
        ("predictor.epochs=1.5", r"predictor\.epochs must be a whole number .*got 1\.5"),
        ("predictor.batch_size=0", r"predictor\.batch_size .*at least 1, got 0"),
        ("predictor.rounds=1.5", r"predictor\.rounds must be a whole number .*got 1\.5"),
        ("predictor.rounds=null", r"predictor\.rounds .*got None"),
        ("predictor.lr=0", r"predictor\.lr must be a number above 0, got 0"),
        ("predictor.lr=fast", r"predictor\.lr .*got 'fast'"),
        ("predictor.lr=nan", r"predictor\.lr .*got nan"),
        ("predictor.beta2=1", r"predictor\.beta2 .*\[0, 1\), got 1"),
        ("predictor.weight_decay=-1", r"predictor\.weight_decay .*at least 0, got -1"),
        ("predictor.last_weight_decay=null", r"predictor\.last_weight_decay .*got None"),
        ("predictor.warmup=2", r"predictor\.warmup must be a share of the steps, .*got 2"),
        ("predictor.val_share=1.0", r"predictor\.val_share .*\(0, 1\), got 1\.0"),
        ("predictor.ridge=0", r"predictor\.ridge must be a number above 0, or null for none, got 0"),
        ("predictor.clip=much", r"predictor\.clip .*got 'much'"),
        ("predictor.mlp=true", r"predictor\.mlp must be null, or give head, neuron and scaled, got True"),
        ("predictor.mlp={head:5}", r"predictor\.mlp .*got \{'head': 5\}"),
        ("predictor.kinds=head", r"predictor\.kinds must name some of .* in brackets, got head"),
        ("predictor.taps=null", r"predictor\.taps.*got None"),
        ("sparsity.kinds=head", r"sparsity\.kinds must name some of .* in brackets, got 'head'"),
        ("sparsity.dense_layers=0", r"sparsity\.dense_layers must be numbers of layers in brackets, got 0"),
        ("sparsity.decided_at=word", r"sparsity\.decided_at .*'token', 'prompt', 'sequence'.*'word'"),
        ("predictor.epochs=-1", r"predictor\.epochs.*at least 0, got -1"),
        ("predictor.epochs=0", r"predictor\.epochs=0.*predictor\.depth=0, got None and 2"),
        ("predictor.rounds=-1", r"predictor\.rounds.*-1"),
        ("predictor.loss=mse", r"predictor\.loss.*'log_mse', 'listwise', 'pairwise', 'cutoff', 'bce'.*'mse'"),
        ("predictor.floor=-0.1", r"predictor\.floor.*at least 0, got -0\.1"),
        ("predictor._target_=my.Net", r"predictor\._target_ must name a class.*got 'my\.Net'"),
        ("criterion.name=magnitude", r"criterion .*l2_norm.*magnitude"),
        ("stage=fit", r"stage .*traces.*'fit'"),
        ("trainer.devices=2", r"trainer\.devices=2 .*trainer\.strategy=ddp, .*got auto"),
        ("trainer.strategy=deepspeed", r"trainer\.strategy.*'auto', 'ddp', 'fsdp'.*'deepspeed'"),
        ("traces.criteria=[magnitude]", r"traces\.criteria.*magnitude"),
        ("traces.criteria=[removal]", r"traces\.criteria.*removal"),
        ("traces.criteria=[]", r"traces\.criteria.*\[\]"),
        ("traces.criteria=fisher", r"traces\.criteria"),
        ("traces.loss=all", r"traces\.loss.*'answer', 'next_token'.*'all'"),
        ("traces.summed=real", r"traces\.summed.*'answer', 'prompt', 'all'.*'real'"),
        ("traces.dtype=float32", r"traces\.dtype.*'float16', 'ranks'.*'float32'"),
        ("traces.top=0", r"traces\.top.*\(0, 1\).*0"),
        ("traces.top=1.0", r"traces\.top.*\(0, 1\).*1"),
        ("traces.top=-0.5", r"traces\.top.*-0\.5"),
        ("traces.shard_windows=7", r"traces\.shard_windows.*traces\.batch_size.*7 and 8"),
        ("traces.shard_windows=0", r"traces\.shard_windows"),
        ("traces.batch_size=0", r"traces\.batch_size.*64 and 0"),
        ("traces.tokens_per_window=-1", r"traces\.tokens_per_window.*-1 and 24"),
        ("traces.tokens_per_window=0", r"traces\.tokens_per_window"),  # a predictor of tokens has none
        ("traces.statistic_tokens=1", r"traces\.statistic_tokens.*24 and 1"),
        ("sparsity.learnt.windows=x", r"sparsity\.learnt\.windows must be .*'x'"),
    ],
)
def test_a_bad_setting_is_refused_before_the_model_is_loaded(compose, override, message):
    with pytest.raises(UserError, match=message):
        check_train(compose("train", override))


def test_measuring_is_of_one_process(compose):
    with pytest.raises(UserError, match=r"trainer\.devices=1 and trainer\.strategy=auto, got 2 and ddp"):
        check_scorer(compose("evaluate", "sparsity.level=0", "trainer.devices=2", "trainer.strategy=ddp"))


def test_a_model_is_spread_or_copied_to_every_process_and_not_both(compose):
    with pytest.raises(UserError, match=r"trainer\.devices=auto.*model\.device_map=null.*'auto'"):
        check_train(compose("train", "model=opt-30b", "trainer=ddp"))


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (["trainer.devices=1"], r"needs several.*trainer\.devices=2 or more.*got trainer\.devices=1 "),
        (["trainer.devices=[0]"], r"needs several.*got trainer\.devices=\[0\]"),
        (
            ["trainer.accelerator=cpu"],
            r"got trainer\.devices=auto with trainer\.accelerator=cpu, which is one",
        ),
        (["trainer.devices=8", "model=llama-2-70b"], r"model\.device_map=null, got 'auto'"),
        (
            ["trainer.devices=2", "traces.criteria=[fisher,grasp]"],
            r"criterion=grasp.*\['fisher', 'grasp', 'l2_norm'\]",
        ),
        (["trainer.devices=2", "traces.criteria=all"], r"criterion=grasp"),
        (["trainer.devices=2", "predictor=static", "criterion=grasp"], r"criterion=grasp.*\['grasp'\]"),
    ],
    ids=str,
)
def test_weights_are_not_shared_where_they_cannot_be(compose, job, message):
    with pytest.raises(UserError, match=message):
        check_train(compose("train", "trainer=fsdp", *job))


def test_weights_are_shared_in_collecting_alone(compose):
    with pytest.raises(UserError, match=r"trainer\.devices=1 and trainer\.strategy=auto, got 8 and fsdp"):
        check_scorer(compose("evaluate", "sparsity.level=0", "trainer=fsdp", "trainer.devices=8"))


@pytest.mark.parametrize(
    "job",
    [
        ["stage=traces", "trainer.devices=2", "trainer.strategy=ddp"],
        ["trainer=ddp"],
        ["trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2", "model.device_map=auto"],
        ["trainer=fsdp", "trainer.devices=8", "model=llama-2-70b", "model.device_map=null"],
        ["trainer=fsdp", "trainer.devices=1", "trainer.num_nodes=2"],
        ["predictor=static", "traces.tokens_per_window=0"],
        ["predictor.pooling=last", "sparsity.decided_at=prompt", "traces.tokens_per_window=0"],
        ["traces.criteria=[fisher]"],
        ["predictor=static", "criterion=grasp"],
        ["predictor=static", "criterion=nwot", "data.windows=64"],
        ["traces.criteria=all", "traces.top=0.5", "traces.dtype=ranks"],
    ],
    ids=str,
)
def test_settings_that_can_be_are_not_refused(compose, job):
    check_train(compose("train", *job))


STATISTICS = ["nwot", "jacov", "epenas"]


@pytest.mark.parametrize("criterion", STATISTICS)
def test_a_statistic_of_fewer_windows_than_a_shard_is_refused(compose, criterion):
    for job in (["predictor=static", f"criterion={criterion}"], [f"traces.criteria=[{criterion}]"]):
        with pytest.raises(UserError, match=rf"{criterion}.*traces\.shard_windows=64.*63 windows"):
            check_train(compose("train", "data.windows=63", *job))
        check_train(compose("train", "data.windows=63", "traces.shard_windows=56", *job))


@pytest.mark.parametrize("predictor", ["unified", "layerwise", "oracle", "prompt_activation"])
@pytest.mark.parametrize("criterion", STATISTICS)
def test_a_statistic_says_nothing_of_one_prompt(compose, criterion, predictor):
    job = [f"predictor={predictor}", f"criterion={criterion}", "sparsity.decided_at=prompt"]
    with pytest.raises(UserError, match=rf"criterion={criterion}.*predictor=static.*{predictor}"):
        check_train(compose("train", *job))
    with pytest.raises(UserError, match=rf"criterion={criterion}.*predictor=static.*{predictor}"):
        check_scorer(compose("evaluate", "make_missing=true", *job))


@pytest.mark.parametrize("predictor", ["unified", "layerwise"])
@pytest.mark.parametrize("criterion", ["random", "grasp"])
def test_scores_that_are_no_sizes_cannot_be_learnt(compose, criterion, predictor):
    job = [f"predictor={predictor}", f"criterion={criterion}"]
    message = rf"criterion={criterion}.*predictor=static or predictor=oracle.*{predictor}"
    with pytest.raises(UserError, match=message):
        check_train(compose("train", *job))
    with pytest.raises(UserError, match=message):
        check_scorer(compose("evaluate", "make_missing=true", *job))


@pytest.mark.parametrize("job", [["predictor=static"], ["predictor=unified"], ["sparsity.decided_at=token"]])
def test_removing_units_one_by_one_is_for_an_oracle_of_windows(compose, job):
    fine = ["criterion=removal", "predictor=oracle", "sparsity.decided_at=prompt"]
    check_scorer(compose("evaluate", *fine))
    with pytest.raises(UserError, match=r"criterion=removal.*predictor=oracle.*prompt or sequence"):
        check_scorer(compose("evaluate", *fine, *job))


@pytest.mark.parametrize("decided_at", ["token", "sequence"])
def test_what_knows_the_prompt_alone_decides_at_the_prompt(compose, decided_at):
    fine = ["predictor=prompt_activation", "sparsity.decided_at=prompt", "criterion=fisher"]
    check_scorer(compose("evaluate", *fine))
    message = rf"predictor=prompt_activation .*sparsity\.decided_at=prompt, got {decided_at}"
    with pytest.raises(UserError, match=message):
        check_scorer(compose("evaluate", *fine, f"sparsity.decided_at={decided_at}"))


def test_a_copy_of_no_rank_is_refused(compose):
    with pytest.raises(UserError, match=r"predictor\.rank must be a whole number of at least 1, got 0"):
        check_scorer(compose("evaluate", "predictor=svd", "predictor.rank=0", "make_missing=true"))


@pytest.mark.parametrize("predictor", ["oracle", "static", "unified"])
def test_a_loss_that_there_is_not_is_refused_for_every_scorer_that_has_one(compose, predictor):
    job = ["make_missing=true", "traces.loss=all", f"predictor={predictor}"]
    with pytest.raises(UserError, match=r"traces\.loss.*'all'"):
        check_scorer(compose("evaluate", *job))


def test_a_kind_that_the_predictor_does_not_score_is_not_pruned(compose):
    job = ["predictor=linear_heads", "make_missing=true"]
    assert policy_of(compose("evaluate", *job)).kinds == ["head"]  # unless others are named
    check_scorer(compose("evaluate", *job))
    both = "sparsity.kinds=[head,neuron]"
    check_train(compose("train", *job[:1], both))  # which prunes nothing
    check_scorer(compose("evaluate", *job, both, "sparsity.level=0"))
    message = r"sparsity\.kinds.*\['head'\], which are all that predictor=linear_heads scores, got .*'neuron'"
    with pytest.raises(UserError, match=message):
        check_scorer(compose("evaluate", *job, both))


def test_what_a_predictor_reads_follows_its_pooling(compose):
    def reads(*overrides: str, at: str) -> tuple:
        return net_of(compose("train", *overrides)).reading(at)

    assert reads(at="token") == ("token", "state", "features")
    mean = reads("predictor.pooling=mean", at="sequence")
    assert mean == ("window", "sequence/mean", "features")
    assert reads("predictor=unified_paper", at="prompt") == ("window", "prompt/last", "contexts")
    assert reads("predictor=unified_sequence", at="sequence") == ("window", "sequence", "embeddings")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("predictor.taps=[1]", r"predictor\.taps=\[0\] and predictor\.source=state, got \[1\] and state"),
        ("predictor.source=context", r"got \[0\] and context"),
        ("predictor.mlp=null", r"pooling=attention .* needs predictor\.mlp, got null"),
        ("sparsity.decided_at=token", r"pooling=attention reads a whole prompt .* got token"),
        ("predictor.rounds=1", r"predictor\.rounds=1 needs predictor\.pooling=scores"),
    ],
)
def test_a_net_that_attends_reads_the_embeddings_of_a_whole_prompt_alone(compose, changed, message):
    job = ["predictor=unified_sequence", "sparsity.decided_at=prompt"]
    check_train(compose("train", *job))
    with pytest.raises(UserError, match=message):
        check_train(compose("train", *job, changed))


def test_contexts_are_refused_token_by_token(compose):
    cfg = compose("train", "predictor=unified_paper", "predictor.pooling=scores")
    with pytest.raises(UserError, match=r"predictor\.source=context.*pooling=last or mean, got 'scores'"):
        check_train(cfg)


def test_the_papers_nets_have_no_regression_to_start_from(compose):
    cfg = compose("train", "predictor=unified_paper", "sparsity.decided_at=prompt", "predictor.ridge=0.1")
    with pytest.raises(UserError, match=r"predictor\.ridge=null, got 0\.1"):
        check_train(cfg)


@pytest.mark.parametrize("width", ["head", "neuron"])
def test_the_papers_nets_have_a_hidden_layer(compose, width):
    changed = f"predictor.mlp.{width}=0"
    with pytest.raises(UserError, match=rf"predictor\.mlp\.{width} must be a whole number of at least 1"):
        check_train(compose("train", "predictor=unified_paper", "sparsity.decided_at=prompt", changed))


def test_contexts_are_collected_for_those_who_read_them(compose):
    assert "contexts" in asked_parts(compose("train", "predictor=unified_paper"))
    assert "embeddings" in asked_parts(compose("train", "predictor=unified_sequence"))
    assert not {"contexts", "embeddings"} & set(asked_parts(compose("train")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["executor._target_=shadow.fast"], r"executor\._target_ must name a class.*got 'shadow.fast'"),
        (["+executor.compact=true"], r"executor\._target_=.*Masked takes no settings: .*'compact'"),
        (["executor=gathered", "executor.storage=int2"], "executor.storage must be one of"),
        (["executor=gathered", "executor.kv_policy=none"], "executor.kv_policy must be one of"),
        (["executor=gathered", "predictor=oracle"], "executor=gathered runs no predictor=oracle"),
        (
            ["executor=gathered", "executor.compact=true"],
            "decided_at=prompt, .* token with predictor=unified",
        ),
        (["measure=latency"], "give executor=gathered"),
        (
            ["measure=latency", "executor=gathered", "measure.rounds=1"],
            "measure.rounds must be at least 2, got 1",
        ),
        (
            ["measure=latency", "executor=gathered", "measure.new_tokens=0"],
            "measure.new_tokens must be at least 2",
        ),
    ],
)
def test_what_no_executor_does_is_refused_before_work(compose, overrides, message):
    with pytest.raises(UserError, match=message):
        check_evaluate(compose("evaluate", "make_missing=true", *overrides))


@pytest.mark.parametrize("predictor", ["oracle", "svd"])
def test_the_gathered_executor_keeps_everything_of_any_scorer_at_level_0(compose, predictor):
    check_scorer(compose("evaluate", "executor=gathered", f"predictor={predictor}", "sparsity.level=0"))

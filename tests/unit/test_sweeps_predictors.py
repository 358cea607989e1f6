"""Run records to predictors by their size, on made-up records."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from run_records import csv_rows, only_section, table_of, write_job, write_report
from shadow.sweeps.figures.png import draw
from shadow.sweeps.records.reading import read
from shadow.sweeps.reports.predictors.survey import COLUMNS, Survey, find_surveys, front

from shadow.jobs import checks
from shadow.jobs.method import is_trained

SWEEP = Path(__file__).parents[2] / "conf" / "sweep" / "predictors.yaml"
DENSE = [3.0, 4.0, 5.0, 6.0]  # the log perplexity of each window


def write_point(
    folder: Path,
    nats: float,
    scorer: str = "few_taps",
    size: tuple[int, int, float] | None = None,
    level: float = 0.5,
    dense_fed: bool = False,
    **job: object,
) -> None:
    """size: (taps, rank, share of the model in %) of a net."""
    net = None
    if size:
        taps, rank, share = size
        parameters = round(share * 1e6)
        net = {"taps": taps, "rank": rank, "parameters": parameters, "share_of_model": share / 100}
    number = len(list(folder.glob("*/run.json")))
    write_job(
        folder / str(number),
        level,
        scorer,
        samples={"perplexity": [x + nats for x in DENSE]},
        overrides=(f"contender=[{scorer},{size},token]", f"predictor.dense_fed={dense_fed}"),
        settings={"measure": {"windows": 4}, "predictor": {"dense_fed": dense_fed}},
        predictor=net,
        added=net["share_of_model"] if net else 0.0,
        **job,
    )


def write_some(folder: Path, **job: object) -> None:
    write_point(folder, 0.0, "static", level=0, **job)
    write_point(folder, 1.5, "static", **job)
    write_point(folder, 0.25, "oracle", **job)
    write_point(folder, 0.75, size=(4, 32, 2.0), **job)
    write_point(folder, 0.5, size=(4, 128, 6.0), **job)
    write_point(folder, 0.625, size=(8, 128, 9.0), **job)
    write_point(folder, 0.375, size=(8, 128, 9.0), dense_fed=True, **job)


def only_survey(folder: Path) -> Survey:
    (survey,) = find_surveys(read([folder]).done)
    return survey


def test_nets_of_one_name_are_told_apart_by_size_and_feeding_and_drawn_as_one_family(tmp_path: Path) -> None:
    write_some(tmp_path)
    nets = only_survey(tmp_path).nets(0.5)
    assert [entry.label for entry in nets] == [
        "few_taps 4x32",
        "few_taps 4x128",
        "few_taps 8x128",
        "few_taps 8x128 dense-fed",
    ]
    assert {entry.family for entry in nets} == {"few_taps"}


def test_the_front_has_what_nothing_smaller_beats_and_nothing_that_is_dense_fed(tmp_path: Path) -> None:
    write_some(tmp_path)
    nets = only_survey(tmp_path).nets(0.5)
    assert [entry.label for entry in front(nets, "parameters")] == ["few_taps 4x32", "few_taps 4x128"]
    assert [entry.label for entry in front(nets, "taps")] == ["few_taps 4x128"]


def test_scorers_without_a_net_are_lines(tmp_path: Path) -> None:
    write_some(tmp_path)
    write_point(tmp_path, 1.0, "oracle", decided_at="sequence")
    found = only_survey(tmp_path).others(0.5)
    assert {entry.label: entry.over.mean for entry in found} == pytest.approx(
        {"static, token": 1.5, "oracle, token": 0.25, "oracle, sequence": 1.0}
    )


def test_the_table_goes_by_size_and_has_the_paired_error_and_the_seeds(tmp_path: Path) -> None:
    for seed, shift in ((1, 0.0), (2, 0.25)):
        write_point(tmp_path, 0.0, "static", level=0, seed=seed)
        write_point(tmp_path, 0.5 + shift, size=(4, 128, 6.0), seed=seed)
        write_point(tmp_path, 0.75, size=(4, 32, 2.0), seed=seed)
    assert table_of(only_section(tmp_path, "predictors"), "Nominal level 0.5")[1:] == [
        [
            "few_taps *",
            "4",
            "32",
            "2,000,000",
            "2.00",
            "one pass",
            "35.5",
            "+0.750 ± 0.000 (+0.750 to +0.750)",
        ],
        [
            "few_taps *",
            "4",
            "128",
            "6,000,000",
            "6.00",
            "one pass",
            "31.5",
            "+0.625 ± 0.000 (+0.500 to +0.750)",
        ],
    ]


def test_the_files_have_every_entry(tmp_path: Path) -> None:
    write_some(tmp_path)
    rebuilt = write_report(tmp_path, "predictors")
    rows = csv_rows(tmp_path / "predictors.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [
        (
            row["scorer"],
            row["feeding"],
            row["taps"],
            row["rank"],
            row["on_front"],
            float(row["nats_over_dense"]),
        )
        for row in rows
    ] == [
        ("few_taps", "one pass", "4", "32", "1", pytest.approx(0.75)),
        ("few_taps", "one pass", "4", "128", "1", pytest.approx(0.5)),
        ("few_taps", "one pass", "8", "128", "0", pytest.approx(0.625)),
        ("few_taps", "dense-fed", "8", "128", "0", pytest.approx(0.375)),
        ("static", "", "", "", "", pytest.approx(1.5)),
        ("oracle", "", "", "", "", pytest.approx(0.25)),
    ]
    report = rebuilt.report.read_text()
    assert "![predictors](predictors.png)" in report
    assert "| few_taps 4x128 | 0.5 | 31.5 | 37.5 | -1.000 ± 0.000 | +0.500 ± 0.000 |" in report
    assert (tmp_path / "predictors.png").read_bytes().startswith(b"\x89PNG")


def test_each_level_has_a_panel_for_size_and_one_for_taps(tmp_path: Path) -> None:
    write_some(tmp_path)
    write_point(tmp_path, 0.25, size=(4, 32, 2.0), level=0.3)
    figure = draw(only_section(tmp_path, "predictors").figure)
    assert figure is not None
    assert len(figure.axes) == 4
    assert {ax.get_xlabel() for ax in figure.axes} == {
        "size of the predictor, % of the model",
        "number of taps",
    }


def test_a_level_that_a_panel_has_no_room_for_is_named_with_its_value(tmp_path: Path) -> None:
    write_some(tmp_path)
    write_point(tmp_path, 5.25, "random")
    write_point(tmp_path, -0.25, "svd")  # better than dense, on a log axis
    figure = draw(only_section(tmp_path, "predictors").figure)
    assert figure is not None
    assert figure.axes[0].get_ylim()[1] < 2
    assert [text.get_text() for text in figure.axes[0].texts] == ["random: 5.25", "svd: -0.25"]


def test_without_nets_or_a_dense_point_there_is_a_report_yet(tmp_path: Path) -> None:
    write_point(tmp_path, 1.5, "static")
    rebuilt = write_report(tmp_path, "predictors")
    assert not rebuilt.figures
    assert "There is no dense perplexity to compare with" in rebuilt.report.read_text()
    write_point(tmp_path, 0.0, "static", level=0)
    assert write_report(tmp_path, "predictors").figures


def test_points_of_other_windows_than_the_dense_ones_are_named_and_left_out(tmp_path: Path) -> None:
    write_some(tmp_path)
    write_job(tmp_path / "more", 0.5, "random", samples={"perplexity": DENSE})  # of 32 windows
    survey = only_survey(tmp_path)
    assert survey.chart.notes == [
        "Measured on other windows than the dense model, and left out: random at 0.5, seed 1234."
    ]


def contenders() -> list[list]:
    text = yaml.safe_load(SWEEP.read_text())["hydra"]["sweeper"]["params"]["contender"]
    override = OverridesParser.create().parse_override(f"contender={text}")
    return [yaml.safe_load(text) for text in override.sweep_string_iterator()]


def test_every_contender_is_a_predictor_of_its_option_with_its_taps_and_rank(
    compose: Callable[..., DictConfig],
) -> None:
    found = contenders()
    assert len({str(one) for one in found}) == len(found)
    last_of = {one[0]: one for one in found}  # of each predictor; composing takes a quarter of a second
    for name, taps, rank, decided_at, dense_fed in last_of.values():
        text = f"contender=[{name},{taps},{rank},{decided_at},{dense_fed}]"
        cfg = compose("evaluate", "sweep=predictors", text)
        checks.check_predictor(cfg)
        swept = OmegaConf.to_container(cfg.predictor, resolve=True)
        option = OmegaConf.to_container(compose("evaluate", f"predictor={name}").predictor, resolve=True)
        if is_trained(cfg):
            option |= {"taps": taps, "dense_fed": dense_fed} | ({} if option["mlp"] else {"rank": rank})
        assert swept == option
        assert cfg.sparsity.decided_at == decided_at


def test_a_recipe_can_be_changed(compose: Callable[..., DictConfig]) -> None:
    cfg = compose(
        "evaluate", "sweep=predictors", "contender=[few_taps,4,16,token,false]", "recipe.few_taps.hidden=64"
    )
    assert cfg.predictor.hidden == 64

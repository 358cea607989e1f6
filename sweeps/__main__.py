"""python -m sweeps FOLDER...: curves, or criteria compared, from the run records below the folders."""

import argparse
import logging
from pathlib import Path

from sweeps import criteria_rebuild, grid_report, latency_report, predictors_report
from sweeps.rebuild import AGAINST, rebuild
from sweeps.records import RecordError
from sweeps.table import summary
from sweeps.upload import upload


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps",
        description="Redraw curves, or a comparison of criteria, from run.json files.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="searched for run.json files, deeply"
    )
    parser.add_argument("--out", type=Path, help="where the files go (default: the first FOLDER)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--criteria",
        action="store_true",
        help="compare pruning criteria: criteria.csv, criteria.png and criteria.md instead of the curve's",
    )
    instead.add_argument(
        "--predictors",
        action="store_true",
        help="compare predictors by their size: predictors.csv, predictors.png and predictors.md instead",
    )
    instead.add_argument(
        "--grid",
        action="store_true",
        help="criterion x predictor x decided-at as a heat map: grid.csv, grid.png and grid.md instead",
    )
    instead.add_argument(
        "--latency",
        action="store_true",
        help="accuracy against speed: latency.csv, latency.png and latency.md instead",
    )
    parser.add_argument(
        "--against",
        default=AGAINST,
        metavar="SCORER",
        help="which scorer the others are compared with, example by example (default: %(default)s)",
    )
    parser.add_argument("--wandb", action="store_true", help="log it to W&B as the jobs' own logger says")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = args.out or args.folders[0]
    try:
        if args.criteria:
            rebuilt = criteria_rebuild.rebuild(args.folders, out)
            print(criteria_rebuild.told(args.folders))
        elif args.predictors:
            rebuilt = predictors_report.rebuild(args.folders, out, args.against)
            print(predictors_report.summary(args.folders))
        elif args.grid:
            rebuilt = grid_report.rebuild(args.folders, out, args.against)
            print(grid_report.summary(args.folders))
        elif args.latency:
            rebuilt = latency_report.rebuild(args.folders, out, args.against)
            print(latency_report.summary(args.folders))
        else:
            rebuilt = rebuild(args.folders, out, args.against)
            print(summary(rebuilt.records, rebuilt.charts))
        if args.wandb:
            upload(rebuilt)
    except RecordError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()

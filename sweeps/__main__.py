"""python -m sweeps FOLDER...: curve.csv, curve.png and report.md from the run records below the folders."""

import argparse
import logging
from pathlib import Path

from sweeps.rebuild import rebuild
from sweeps.records import RecordError
from sweeps.table import summary
from sweeps.upload import upload


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps", description="Redraw curves from run.json files."
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="searched for run.json files, deeply"
    )
    parser.add_argument("--out", type=Path, help="where the files go (default: the first FOLDER)")
    parser.add_argument(
        "--wandb", action="store_true", help="log the curve to W&B as the jobs' own logger says"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        rebuilt = rebuild(args.folders, args.out or args.folders[0])
        print(summary(rebuilt.records, rebuilt.charts))
        if args.wandb:
            upload(rebuilt)
    except RecordError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()

"""`shadow report FOLDER...`: curves, or another report, from the run records below the folders."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from .records.record import RecordError
from .reports import AGAINST, REPORTS, find_report
from .reports.write import require_known, summary, write
from .wandb.upload import upload


def main(words: Sequence[str] | None = None) -> None:
    """words: None: those of the command line."""
    parser = argparse.ArgumentParser(
        prog="shadow report",
        description="Redraw curves, or another report, from run.json files: CSV, PNG, Markdown and HTML.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="searched for run.json files, deeply"
    )
    parser.add_argument("--out", type=Path, help="where the files go (default: the first FOLDER)")
    reports = parser.add_mutually_exclusive_group()
    for name, entry in REPORTS.items():
        reports.add_argument(
            f"--{name}",
            dest="report",
            action="store_const",
            const=name,
            help=f"{entry.about}: {entry.stem}.md ...",
        )
    parser.set_defaults(report="curve")
    parser.add_argument(
        "--against",
        default=AGAINST,
        metavar="SCORER",
        help="which scorer the others are compared with, example by example (default: %(default)s)",
    )
    parser.add_argument("--wandb", action="store_true", help="log it to W&B as the jobs' own logger says")
    parser.add_argument(
        "--wandb-report",
        action="store_true",
        help="make a W&B Report of the runs that the jobs and --wandb have logged (extra: wandb-reports)",
    )
    args = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    report = find_report(args.report)
    try:
        require_known(args.against, args.folders)
        written = write(report, args.folders, args.out or args.folders[0], args.against)
        print(summary(report, args.folders, args.against))
        if args.wandb:
            upload(written)
        if args.wandb_report:
            from .wandb import report as wandb_report

            wandb_report.save(written)
    except RecordError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()

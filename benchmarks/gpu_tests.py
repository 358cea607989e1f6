"""The tests of the kernels, on the device."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

COLUMNS = ("tests", "passed", "failed", "skipped", "why")
FILES = ("tests/unit/test_gpu_kernels.py", "tests/unit/test_gpu_decode.py")
ROOT = Path(__file__).parents[1]


def run(dry: bool) -> Iterator[dict]:
    """A row for each file; in a dry run their names alone, as the suite runs them anyway."""
    if dry:
        yield from ({"tests": file, "why": "not run: --dry; `make test` runs them"} for file in FILES)
        return
    for file in FILES:
        command = [sys.executable, "-m", "pytest", file, "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        last = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-300:]]
        counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped)", last[0])}
        row = {"tests": file} | counts
        if done.returncode != 0:
            failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
            row |= {"why": f"exit code {done.returncode}: {', '.join(failed) or last[0]}", "broken": True}
        yield row

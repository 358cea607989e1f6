"""Do Hydra's launchers and Optuna's grid give the curve of jobs one by one? python benchmarks/launchers.py

Needs the extra `launchers`; arguments choose some by name, of which the first is what the others are compared
with. Each begins with an empty folder, so that jobs make the same artifacts at once.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAUNCHERS = {
    "basic": ["hydra/launcher=basic"],
    "joblib": ["launch=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["launch=submitit_local", "hydra.launcher.timeout_min=10"],
    # its grid sampler takes the very points of the grid, in an order of its own
    "optuna": ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_jobs=1"],
}
GRID = [
    *("evaluate.py", "-m", "model=opt-mini", "make_missing=true", "predictor=static,unified"),
    *("sparsity.level=0.0,0.5", "data.windows=16", "data.tokens=24", "traces.batch_size=4"),
    *("traces.shard_windows=8", "measure.windows=8", "measure.questions=8"),
    *("callbacks.progress=null", "+trainer.enable_progress_bar=false"),
]


def curve_of(overrides: list[str], folder: Path) -> list[dict[str, str]]:
    where = f"hydra.sweep.dir={folder / 'sweep'}"
    subprocess.run(
        [sys.executable, *GRID, *overrides, where],
        env=os.environ | {"SHADOW_ROOT": str(folder), "OMP_NUM_THREADS": "1"},
        check=True,
    )
    # jobs end in any order, and of two that end at once the later drawing may have begun before
    subprocess.run([sys.executable, "-m", "sweeps", folder / "sweep"], check=True)
    with (folder / "sweep" / "curve.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return sorted(rows, key=lambda row: (row["scorer"], row["level"], row["metric"]))


def main() -> None:
    curves, lines = {}, []
    for name in sys.argv[1:] or LAUNCHERS:
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            curves[name] = curve_of(LAUNCHERS[name], Path(folder))
            lines.append(f"{name}: {len(curves[name])} rows in {time.monotonic() - start:.0f} s")
    print(*lines, sep="\n")
    different = [name for name, curve in curves.items() if curve != next(iter(curves.values()))]
    if different:
        sys.exit(f"other figures than {next(iter(curves))}: {different}")
    print("the same figures from all")


if __name__ == "__main__":
    main()

"""Measure SmolLM2 by a few methods: `python tests/regression/measure.py > tests/regression/figures.json`."""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
JOB = [
    *("sweep=methods", "model=smollm2-135m", "measure=perplexity", "measure.windows=8", "data.windows=96"),
    *(
        "contender=[static,layer],[few_taps,layer],[cats,threshold],[teal,threshold]",
        "sparsity.level=0.0,0.5",
    ),
    *("reuse_points=false", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "logger=none"),
]


def measure(root: Path) -> dict[str, dict[str, float]]:
    """-> of each method at 0.5 `nats` over dense and `bytes` skipped; of the dense model its perplexity."""
    command = [sys.executable, "evaluate.py", *JOB]
    subprocess.run(
        command, cwd=ROOT, env=os.environ | {"SHADOW_ROOT": str(root)}, check=True, stdout=sys.stderr
    )
    runs = [json.loads(file.read_text()) for file in root.rglob("run.json")]
    logs = {(run["point"]["scorer"], run["point"]["level"]): run for run in runs}
    dense = next(run["metrics"]["perplexity"]["value"] for (_, level), run in logs.items() if level == 0)
    found = {"dense": {"perplexity": round(dense, 3)}}
    for (scorer, level), run in sorted(logs.items()):
        if level > 0:
            nats = math.log(run["metrics"]["perplexity"]["value"] / dense)
            found[scorer] = {"nats": round(nats, 4), "bytes": round(run["bytes"]["skipped"], 4)}
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder)), indent=2))

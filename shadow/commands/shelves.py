"""What lies among the artifacts, read from the files themselves: no index that could be old."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadow.artifacts.usual import differences

# of each kind the file that is there when it is whole; of budgets the file is all
WHOLE = {
    "traces": "manifest.json",
    "predictors": "config.json",
    "stand_ins": "config.json",
    "routers": "config.json",
    "checkpoints": "config.json",
    "budgets": "",
}
UNFINISHED = "unfinished: the same command goes on"


@dataclass(frozen=True)
class Artifact:
    """settings: that made it, {} while it is unfinished."""

    kind: str
    path: Path
    settings: Mapping[str, Any]
    quality: str

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".json")

    @property
    def key(self) -> str:
        return self.name.rpartition("-")[2]

    @property
    def differs(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in differences(self.settings).items())

    @property
    def files(self) -> list[Path]:
        return [file for file in [self.path, *self.path.rglob("*")] if file.is_file()]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def made(self) -> str:
        newest = max((file.stat().st_mtime for file in self.files), default=self.path.stat().st_mtime)
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(newest))


def artifacts_in(root: Path) -> list[Artifact]:
    """root: the folder of artifacts."""
    return [
        artifact_at(kind, path)
        for kind in WHOLE
        for path in sorted((root / kind).glob("*"))
        if not path.name.startswith(".")
    ]


def artifact_at(kind: str, path: Path) -> Artifact:
    file = path / WHOLE[kind] if WHOLE[kind] else path
    if not file.is_file():
        return Artifact(kind, path, {}, UNFINISHED)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Artifact(kind, path, content.get("settings") or {}, quality_of(kind, content))
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        return Artifact(kind, path, {}, f"damaged: {error!r}")


def quality_of(kind: str, content: Mapping[str, Any]) -> str:
    if kind == "predictors":
        return best_metric(content["metrics"])
    if kind in ("stand_ins", "routers"):
        return f"KL {content['kl']:.3g} on calibration"
    if kind == "checkpoints":
        return "sparse when it is loaded"
    if kind == "traces":
        return f"{max(content['sizes'].values(), default=0)} windows of {', '.join(sorted(content['parts']))}"
    return f"from {content.get('windows', '?')} windows"


def best_metric(metrics: Mapping[str, float]) -> str:
    """Of a fit: how much of the importance its half of the units holds, beside what the mean's half does."""
    found, static = metrics.get("val/mass@50"), metrics.get("val/static_mass@50")
    if found is None:
        return ""
    return f"mass@50 {found:.3f}" + ("" if static is None else f" (static {static:.3f})")


def dependents(artifact: Artifact, others: list[Artifact]) -> list[Artifact]:
    """What was made of it, and is not found or made again alike without it."""
    if not artifact.settings:
        return []
    return [
        other
        for other in others
        if other is not artifact and artifact.settings in list(parts(other.settings))
    ]


def parts(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings of what something was made of, and of what that was made of."""
    for name in ("traces", "fit", "predictor", "router"):
        inner = settings.get(name)
        if isinstance(inner, Mapping):
            yield inner
            yield from parts(inner)

"""Traces and a predictor of OPT-13B's shape, by the very job that a user starts, with the memory it takes."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_models import DRY, SHAPES, fitting

COLUMNS = ("model", "layers", "windows", "stage", "seconds", "peak, GB", "what", "why")
NAME = "opt-13b"


def run(dry: bool) -> Iterator[dict]:
    shape = fitting((DRY if dry else SHAPES)[NAME], torch.bfloat16, 2)
    windows, tokens = (8, 16) if dry else (64, 64)
    with tempfile.TemporaryDirectory() as folder:
        for stage in ("traces", "predictor"):
            words = [
                *(
                    "model=tiny-opt",
                    f"model.name=random-{NAME}",
                    "predictor=unified",
                    "criterion=l2_deviation",
                ),
                f"model.dtype={'float32' if dry else 'bfloat16'}",
                "model.source._target_=gpu_models.random_on_device",
                *(f"model.source.layers={shape.layers}", f"model.source.hidden={shape.width}"),
                *(f"model.source.heads={shape.heads}", f"model.source.neurons={shape.neurons}"),
                *(f"data.windows={windows}", f"data.tokens={tokens}", "traces.taps=[1]"),
                *(f"traces.batch_size={windows // 8}", f"traces.shard_windows={windows // 2}"),
                *("trainer.max_epochs=2", f"stage={stage}"),
                f"paths.root_dir={folder}",
            ]
            start = time.perf_counter()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            trained(words, Path(folder))
            peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
            yield (
                {
                    "model": NAME,
                    "layers": shape.layers,
                    "windows": windows,
                    "stage": stage,
                    "seconds": time.perf_counter() - start,
                    "peak, GB": peak,
                    "what": sizes_in(Path(folder)),
                    "why": None if torch.cuda.is_available() else "memory not measured: no GPU",
                }
            )


def trained(words: list[str], folder: Path) -> None:
    """train.py with these words, in this process: whose memory it is that is asked."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    import train

    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("shadow.conf", version_base="1.3"):
            cfg = compose("train", words, return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir, cfg.hydra.job.num = str(folder / "output"), 0
        (folder / "output").mkdir(exist_ok=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        train.main.__wrapped__(cfg)  # type: ignore[attr-defined]
    finally:
        HydraConfig.instance().cfg = None
        GlobalHydra.instance().clear()


def sizes_in(folder: Path) -> str:
    """What the job has left, in megabytes."""
    found = {
        what: sum(file.stat().st_size for file in folder.glob(f"artifacts/{what}/*/*")) / 1e6
        for what in ("traces", "predictors")
    }
    return ", ".join(f"{what} {size:.1f} MB" for what, size in found.items() if size)

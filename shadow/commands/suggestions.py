"""Which setting was meant by a key that there is not."""

from collections.abc import Sequence
from difflib import get_close_matches

from omegaconf import DictConfig, OmegaConf

MOST = 3  # settings that one sentence names


def leaves(cfg: DictConfig) -> list[str]:
    """The keys of all settings but Hydra's own, dotted, groups among them."""
    content = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(content, dict)
    return [key for key in keys_below("", content) if not key.startswith("hydra")]


def keys_below(prefix: str, node: dict) -> list[str]:
    found = []
    for name, value in node.items():
        key = f"{prefix}{name}"
        found.append(key)
        if isinstance(value, dict):
            found += keys_below(f"{key}.", value)
    return found


def like(key: str, known: Sequence[str], value: str = "") -> str:
    """The end of a sentence: `: did you mean sparsity.level=0.5?`. value: with its sign; known: dotted."""
    found = [f"{name}{value}" for name in nearest(key, known)]
    return f": did you mean {' or '.join(found)}?" if found else ""


def nearest(key: str, known: Sequence[str]) -> list[str]:
    """Those of the same last word first, then those that are spelt alike in whole or in their last word."""
    leaf = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == leaf]
    if same:
        return same[:MOST]
    whole = get_close_matches(key, known, n=1, cutoff=0.75)
    if whole:
        return whole
    last = get_close_matches(leaf, {name.rpartition(".")[2] for name in known}, n=1, cutoff=0.75)
    return [name for name in known if last and name.rpartition(".")[2] == last[0]][:MOST]

"""What opt-mini reads: docstrings of Python's standard library, and a part of Python's language help."""

import ast
import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shadow.data.texts import builtin_topics

Part = Literal["train", "validation"]

EVAL_SHARE, SPLIT_SEED = 0.3, 0  # of conf/data/builtin.yaml: what the framework evaluates on is never read
VALIDATION_PERCENT, VALIDATION_SEED = 5, 5
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib"}


def documents(part: Part) -> list[str]:
    """Each is a module's docstrings or a topic of the help. A paragraph comes once, in validation first."""
    unseen = plain("\n\n".join(builtin_topics("eval", EVAL_SHARE, SPLIT_SEED)))
    held_out = [] if part == "validation" else documents("validation")
    seen = {plain(paragraph) for text in held_out for paragraph in text.split("\n\n")}
    found = []
    for text in _texts(part):
        paragraphs = []
        for paragraph in text.split("\n\n"):
            if plain(paragraph) not in seen and plain(paragraph) not in unseen:
                seen.add(plain(paragraph))
                paragraphs.append(paragraph.strip("\n"))
        if paragraphs:
            found.append("\n\n".join(paragraphs))
    return found


def plain(text: str) -> str:
    """One line: a paragraph that is only broken or indented differently is the same."""
    return " ".join(text.split())


def _texts(part: Part) -> Iterator[str]:
    for text in builtin_topics("train", EVAL_SHARE, SPLIT_SEED):
        if _part_of(text.strip().partition("\n")[0]) == part:
            yield text
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(root)
        if not LEFT_OUT.intersection(inside.parts) and _part_of(inside.as_posix()) == part:
            yield "\n\n".join(_docstrings(file))


def _part_of(name: str) -> Part:
    """By the name alone: a document stays where it is when another version of Python adds or drops others."""
    draw = int(hashlib.sha256(f"{VALIDATION_SEED}/{name}".encode()).hexdigest(), 16)
    return "validation" if draw % 100 < VALIDATION_PERCENT else "train"


def _docstrings(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def pack(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int, skip: int = 0) -> Tensor:
    """-> [N, tokens]: the texts one after the other, cut anywhere; a text and a sequence begin with <bos>."""
    stream = torch.tensor([id for ids in tokenizer(list(texts), verbose=False)["input_ids"] for id in ids])
    rows = stream[skip:].unfold(0, tokens - 1, tokens - 1)
    return torch.cat([torch.full((len(rows), 1), tokenizer.bos_token_id), rows], 1)

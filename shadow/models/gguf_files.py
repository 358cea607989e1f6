"""From a GGUF file to a Hugging Face model folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def dequantise(source: Path, gguf_file: str, folder: Path) -> None:
    """From a GGUF file in `source` to a Hugging Face model folder."""
    with read_once():
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf_file, dtype=torch.float32)
    del model.config.quantization_config  # it describes the file, not these weights,
    model.hf_quantizer = None  # type: ignore[assignment]  # and with it save_pretrained refuses
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def read_once() -> Iterator[None]:
    """transformers reads the tables of such a file three times, word by word: many seconds each for the
    262,144 words of Gemma. In the block a file is read once."""
    reader = gguf.GGUFReader
    gguf.GGUFReader = cache(reader)  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        gguf.GGUFReader = reader  # type: ignore[misc]

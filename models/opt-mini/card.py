"""The model card, from what the training script measured."""

import math
import platform
from dataclasses import dataclass

import pytorch_lightning
import tokenizers
import torch
import transformers
from transformers import OPTConfig


@dataclass(frozen=True)
class Figures:
    """Losses are in nats a token, on the held-out text."""

    config: OPTConfig
    parameters: int
    megabytes: float
    documents: int
    characters: int
    tokens: int
    held_out_documents: int
    held_out_tokens: int
    seed: int
    epochs: int
    best_epoch: int
    seconds: float
    threads: int
    loss: float
    bigram_loss: float
    unigram_loss: float


def card(found: Figures) -> str:
    config = found.config
    losses = "\n".join(
        f"| {name} | {loss:.3f} | {math.exp(loss):.1f} |"
        for name, loss in {
            "opt-mini, the weights of this folder in float32": found.loss,
            "bigram, same text and tokenizer, interpolated with the unigram": found.bigram_loss,
            "unigram": found.unigram_loss,
        }.items()
    )
    return f"""\
# opt-mini

A small trained language model, to try this framework without a network. It is an OPT with ReLU, like the
models of the ShadowLLM paper. `python models/opt-mini/train.py` trained it, measured it and wrote this page.

| | |
|---|---|
| architecture | `OPTForCausalLM`: {config.activation_function}, learned positions, tied embeddings |
| parameters | {found.parameters:,} |
| layers | {config.num_hidden_layers} of {config.num_attention_heads} heads and {config.ffn_dim} neurons |
| hidden size | {config.hidden_size} |
| positions | {config.max_position_embeddings} |
| vocabulary | {config.vocab_size} pieces, byte-level BPE; a text begins with `</s>`, as OPT's do |
| weights | float16, {found.megabytes:.1f} MB |

## Loss on held-out documents

| what predicts the next token | nats a token | perplexity |
|---|---|---|
{losses}

Held out are {found.held_out_documents} documents ({found.held_out_tokens:,} tokens), drawn by a hash of
their names. The weights are those of the epoch with the least loss on them; the weight of the bigram's
interpolation is the best on them too.

## Text

Docstrings of Python's standard library, and the topics of Python's language help (`pydoc_data.topics`) that
`data=builtin` keeps for calibration: {found.documents} documents, {found.characters:,} characters,
{found.tokens:,} tokens, each paragraph once. The topics that `data=builtin` evaluates on were left out, and
so was every paragraph that occurs in them (`corpus.py`).

The text is part of Python, Copyright (c) Python Software Foundation, and used under the
[PSF License Version 2](https://docs.python.org/3/license.html), which is the licence of these weights too.

## Training

{found.epochs} epochs in {found.seconds:.0f} s on a CPU with {found.threads} thread(s), bfloat16 autocast,
seed {found.seed}; the best epoch was number {found.best_epoch}. Python {platform.python_version()},
torch {torch.__version__}, transformers {transformers.__version__},
pytorch-lightning {pytorch_lightning.__version__}, tokenizers {tokenizers.__version__}.

`python models/opt-mini/train.py` trains again and writes this folder anew. Another version of Python has
other text, and another machine rounds otherwise: the figures will differ a little.

## What it is for, and what not

It is for trials and tests of contextual sparsity. It has learnt how Python's documentation goes on, so
dropping units costs something, and it matters which. It knows nothing else, is no chat model, and says
nothing about what larger models lose.
"""

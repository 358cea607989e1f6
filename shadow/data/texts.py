"""Plain text to cut windows and questions from."""

import hashlib
import pydoc_data.topics
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from shadow.data.batches import Example
from shadow.errors import UserError, require_number
from shadow.models.tokenizers import added

Part = Literal["train", "eval"]


def builtin_topics(part: Part, eval_share: float, seed: int) -> list[str]:
    """The language help that ships with Python, split by topic; what topics share stays in the first."""
    require_number("data.eval_share", eval_share, "a share in [0, 1]", lambda share: 0 <= share <= 1)
    topics: dict[str, str] = pydoc_data.topics.topics
    seen: set[str] = set()
    texts = {}
    for name in sorted(topics):
        paragraphs = []
        for paragraph in topics[name].split("\n\n"):
            if paragraph.strip() not in seen:
                seen.add(paragraph.strip())
                paragraphs.append(paragraph)
        texts[name] = "\n\n".join(paragraphs)
    names = sorted(texts)
    random.Random(seed).shuffle(names)
    n_eval = round(eval_share * len(names))
    chosen = names[:n_eval] if part == "eval" else names[n_eval:]
    return [texts[name] for name in sorted(chosen)]


def fingerprint(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def cut(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[list[int]]:
    """Every whole, disjoint window of `tokens` tokens, begun as the tokenizer begins a text."""
    start, _ = added(tokenizer)
    step = tokens - len(start)
    if step < 1:
        raise UserError(
            f"a window must have room for more than the {len(start)} tokens that begin a text, got {tokens}"
        )
    windows = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        windows += [start + ids[i : i + step] for i in range(0, len(ids) - step + 1, step)]
    return windows


def choose(windows: list, count: int, seed: int, setting: str) -> list:
    """`count` of the windows, spread over the texts by a seeded shuffle; more begin with the fewer."""
    if not windows:
        raise UserError(
            f"{setting} asks for {count} windows, and no text is as long as one: give more text, or shorter "
            "windows"
        )
    if not 1 <= count <= len(windows):
        raise UserError(f"{setting} must be in [1, {len(windows)}], the windows in the text, got {count}")
    return random.Random(seed).sample(windows, len(windows))[:count]


def text_windows(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    tokens: int,
    prompt_share: float,
    seed: int,
    setting: str,
) -> list[Example]:
    """`count` windows; the first `prompt_share` of each is its prompt."""
    prompt = round(prompt_share * tokens)
    return [Example(ids, prompt) for ids in choose(cut(texts, tokenizer, tokens), count, seed, setting)]


class Question(NamedTuple):
    """Which of these continuations follows the context? `options[gold]` does."""

    context: list[int]
    options: list[list[int]]
    gold: int


def questions(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    options: int,
    context_tokens: int,
    continuation_tokens: int,
    seed: int,
) -> list[Question]:
    """Contexts with their true continuation and `options` - 1 continuations from elsewhere in the texts."""
    windows = cut(texts, tokenizer, context_tokens + continuation_tokens)
    others = len({tuple(window[context_tokens:]) for window in windows}) - 1
    if not 2 <= options <= others + 1:
        raise UserError(f"measure.options must be in [2, {others + 1}] for this text, got {options}")
    chosen = choose(windows, count, seed, "measure.questions")
    draw = random.Random(seed)
    found = []
    for window in chosen:
        true = window[context_tokens:]
        elsewhere = [other[context_tokens:] for other in windows if other[context_tokens:] != true]
        answers = [true, *draw.sample(elsewhere, options - 1)]
        draw.shuffle(answers)
        found.append(Question(window[:context_tokens], answers, answers.index(true)))
    return found

"""A model's tokenizer: loading it, how it begins and ends a text, and the tiny models' own."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from shadow.errors import UserError

PLAIN = "a"


def load_tokenizer(name: str, **where: Any) -> PreTrainedTokenizerBase:
    """name: a folder or an id on the hub; where: as transformers takes it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
    except ValueError as error:
        raise no_tokenizer(name, error) from error
    require_tokens(tokenizer, name)
    return tokenizer


def added(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that it puts before a text and behind it, as BOS and EOS."""
    plain: list[int] = tokenizer(PLAIN, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(PLAIN)["input_ids"]
    extra = len(whole) - len(plain)
    begin = next(n for n in range(extra + 1) if whole[n : n + len(plain)] == plain)
    return whole[:begin], whole[begin + len(plain) :]


def require_tokens(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse one made of nothing, as transformers makes it where a folder has no files of a tokenizer."""
    if not tokenizer(PLAIN, add_special_tokens=False)["input_ids"]:
        raise no_tokenizer(name, f"the one found makes no token of {PLAIN!r}")


def no_tokenizer(name: str, reason: object) -> UserError:
    return UserError(
        f"model {name!r} must come with its tokenizer, as tokenizer.json, and "
        f"{str(reason).splitlines()[0].rstrip('.: ')}: copy the tokenizer's files into the model's folder"
    )


def require_open_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse to score or go on behind a text's end."""
    end = added(tokenizer)[1]
    if end:
        raise UserError(
            f"tasks need a tokenizer that leaves a text open, and this one ends each with {end}: save it as "
            "AutoTokenizer.from_pretrained(FOLDER, add_eos_token=False) makes it"
        )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and <pad> as token 0."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<pad>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>", bos_token="<pad>"
    )

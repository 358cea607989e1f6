"""What one text loses: how both models go on with it, each token's nats, and the units that stayed."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shadow.data.batches import Example, collate, logits_of
from shadow.errors import UserError
from shadow.executors.run import Run
from shadow.models.load import LM
from shadow.models.sites import SiteKey
from shadow.scorers.protocol import Looks


@dataclass(frozen=True)
class OneText:
    """The text is the prompt and what the dense model adds to it; both models are asked about its tokens.

    tokens: as they read; prompt: how many are the prompt's. lost: nats of each token but the first, of the
    sparse model over the dense one. stays: bool [T, U] of each site that is pruned, True where the unit
    stayed. skipped: the share of weight bytes that a token of the sparse continuation did not read; of the
    text, where there is none.
    """

    tokens: list[str]
    prompt: int
    dense: str
    sparse: str
    lost: list[float]
    stays: Mapping[SiteKey, Tensor]
    skipped: float

    @property
    def nats(self) -> float:
        """A token, on average."""
        return sum(self.lost) / len(self.lost)


def require_text(lm: LM, text: str, continuation: int) -> list[int]:
    """-> its ids; refuses what nothing can be said of."""
    ids = lm.tokenizer(text)["input_ids"]
    room = getattr(lm.model.config, "max_position_embeddings", None)
    if len(ids) + continuation < 2 or not ids:
        raise UserError(
            f"a text of one token has no token that is predicted, got {text!r}: give a longer one"
        )
    if room is not None and len(ids) + continuation > room:
        raise UserError(
            f"the text must leave room for continuation={continuation} in the {room} tokens that the model "
            f"reads, got {len(ids)} tokens: give a shorter text or a smaller continuation"
        )
    return ids


@torch.no_grad()
def compare(
    lm: LM,
    ids: list[int],
    continuation: int,
    going_on: AbstractContextManager[Run],
    looking: AbstractContextManager[Run],
) -> OneText:
    """ids: of the prompt. going_on: the sparse model that generates; looking: one that has every plan."""
    added = generate(lm, ids, continuation)
    text = [*ids, *added]
    batch = collate([Example(text, len(ids))]).for_model(lm.model)
    dense = log_chances(logits_of(lm.model, batch), text)
    with going_on as run:
        if isinstance(run.scorer, Looks) and run.planner.policy.level > 0 and continuation:
            run.planner.look(collate([Example(ids, len(ids))]))
        sparse_added = generate(lm, ids, continuation)
        skipped = run.bytes()["skipped"]
    with looking as run:
        sparse = log_chances(run.logits(batch), text)
        stays = {key: by_token(keep, len(text)) for key, keep in run.plan.items()}
        skipped = skipped if continuation else run.bytes()["skipped"]
    assert isinstance(skipped, float)
    return OneText(
        tokens=list(pieces(lm.tokenizer, text)),
        prompt=len(ids),
        dense=continued(lm.tokenizer, ids, added),
        sparse=continued(lm.tokenizer, ids, sparse_added),
        lost=(dense - sparse).tolist(),
        stays=stays,
        skipped=skipped,
    )


def generate(lm: LM, ids: list[int], tokens: int) -> list[int]:
    """The likeliest, one after the other, up to an end that the model gives."""
    if not tokens:
        return []
    given = torch.tensor([ids], device=lm.model.device)
    end = lm.model.generation_config.eos_token_id
    pad = end[0] if isinstance(end, list) else end
    out = lm.model.generate(  # type: ignore[operator]
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0 if pad is None else pad,
    )
    return out[0, len(ids) :].tolist()


def log_chances(logits: Tensor, ids: list[int]) -> Tensor:
    """logits: [1, T, V] -> [T - 1], of each token but the first."""
    following = torch.tensor(ids[1:], device=logits.device)
    return logits[0, :-1].float().log_softmax(-1).gather(1, following[:, None])[:, 0]


def by_token(keep: Tensor, tokens: int) -> Tensor:
    """keep: bool [..., U], of every token or of all -> [T, U]."""
    return keep.reshape(-1, keep.shape[-1]).expand(tokens, -1).cpu()


def continued(tokenizer: PreTrainedTokenizerBase, ids: list[int], added: list[int]) -> str:
    """What was added, as it reads behind the rest."""
    before = decoded(tokenizer, ids)
    return decoded(tokenizer, [*ids, *added]).removeprefix(before)


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Iterator[str]:
    """The part of the text that each token adds; empty where a letter is not whole yet."""
    before = ""
    for n in range(len(ids)):
        text = decoded(tokenizer, ids[: n + 1]).rstrip("\ufffd")
        yield text[len(before) :]
        before = text


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text

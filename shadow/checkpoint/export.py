"""Writing such a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadow.artifacts.files import making
from shadow.checkpoint import folder as files
from shadow.checkpoint.card import card
from shadow.checkpoint.method import Method, tell
from shadow.errors import UserError
from shadow.executors.masked import Masked
from shadow.executors.run import Executor
from shadow.front import Named, chosen, open_run, stand_in_of
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import SparsityPolicy
from shadow.plans.stand_ins import StandIn
from shadow.scorers.protocol import Scorer


def export(
    model: PreTrainedModel,
    folder: str | Path,
    scorer: Scorer,
    policy: SparsityPolicy | None = None,
    decided_at: DecidedAt = "token",
    *,
    level: float | None = None,
    stand_in: StandIn | Named = "auto",
    executor: Executor | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    about: Mapping[str, str] | None = None,
    curve: Sequence[Mapping[str, str]] = (),
) -> Path:
    """A folder that `from_pretrained` loads as this sparse model, if `shadow` was imported. The other
    arguments: as `sparse` has them. about: of the method, in words, for the card; curve: its rows there, as
    those of a predictor's curve.csv."""
    target, executor = Path(folder).expanduser(), executor or Masked()
    if target.exists():
        raise UserError(
            f"{target} exists, and a checkpoint is written whole: remove it, or name another folder"
        )
    method = Method(scorer, chosen(policy, level), decided_at, stand_in_of(stand_in, scorer), executor)
    told, tensors = tell(method)
    with open_run(model, scorer, method.policy, decided_at, method.stand_in, executor) as run:
        pruned = sorted({key[1] for key in run.planner.sites if run.planner.policy.prunes(key)})
    with making(target) as unfinished:
        model.save_pretrained(unfinished)
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        files.add(unfinished, files.Stored(told, tensors, str(target)))
        text = card(target.name, method, pruned, about or {}, curve)
        (unfinished / "README.md").write_text(text, encoding="utf-8")
    return target

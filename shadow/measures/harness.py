"""`--model shadow` of lm-eval: its own `hf` model, made sparse by a predictor that there is."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal, cast

from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from shadow.artifacts.hub import find_folder, load_predictor, read_config
from shadow.errors import UserError, first_line
from shadow.executors.gathered import Gathered
from shadow.executors.masked import Masked
from shadow.executors.options import KVPolicy, Storage
from shadow.executors.run import Executor
from shadow.front import Named, sparse
from shadow.measures.hf_arguments import check_arguments, merged
from shadow.measures.kept_answers import answers_key, keep_apart
from shadow.measures.sparse_hf import SparseHFLM
from shadow.models.layouts import require_layout
from shadow.models.sites import Kind
from shadow.models.tokenizers import no_tokenizer, require_tokens
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import HeadUnit, Scope, SparsityPolicy, Tokens
from shadow.scorers.fixed import Fixed
from shadow.scorers.protocol import Scorer

log = logging.getLogger(__name__)


@register_model("shadow")
class ShadowLM(SparseHFLM):
    """`--model shadow`: takes what `hf` takes, and says which predictor makes it how sparse.

    `import shadow.measures.harness` makes it known to lm-eval; so does `python -m shadow.measures.lm_eval`.
    """

    def __init__(
        self,
        pretrained: str,
        predictor: str | None = None,
        predictor_revision: str | None = None,
        level: float | None = None,
        decided_at: DecidedAt = "token",
        scope: Scope = "layer",
        min_units: int = 1,
        dense_layers: str | int | Sequence[int] | None = None,
        kinds: str | Sequence[Kind] | None = None,
        head_unit: HeadUnit = "query",
        stand_in: Named = "auto",
        tokens: Tokens = "all",
        executor: Literal["masked", "gathered"] = "masked",
        storage: Storage | None = None,
        kv_policy: KVPolicy = "write_all",
        compact: bool = False,
        **hf: Any,
    ) -> None:
        """predictor: a folder or a hub id, and level: the share of units that goes by it; neither: the dense
        model. hf: the arguments of lm-eval's `hf` model; what a sparse model cannot follow of them
        `hf_arguments` refuses.

        scope: `layer`, `global`, or `threshold` for those that lie beside the predictor.
        stand_in: `auto`, `mean` (the predictor's own) or `zero`. dense_layers: `0+1+2`, by default those that
        the predictor does not score. kinds: `head`, `neuron` or `head+neuron`, by default all that it scores.
        tokens: as `SparsityPolicy` has them. The rest: see `shadow.sparse` and `Gathered`.
        """
        scorer: Scorer = Fixed({})
        dense, learnt = range(1), None
        if (level is None) != (predictor is None) and level != 0:
            raise UserError(
                "model_args: predictor= (a folder that train.py has finished, or its id on the hub) and "
                f"level= belong together, got predictor={predictor} and level={level}"
            )
        given = (min_units, dense_layers, kinds, head_unit, stand_in)
        if scope == "threshold" and level and given != (1, None, None, "query", "auto"):
            raise UserError(
                "model_args: with scope=threshold min_units, dense_layers, kinds, head_unit and stand_in are "
                f"as thresholds were learnt, and are not to be given, got {given}"
            )
        runs = executor_of(executor, storage, kv_policy, compact)
        check_arguments(pretrained, executor, hf)
        checksum = None
        if predictor is not None:
            folder = find_folder(predictor, predictor_revision)
            checksum = read_config(folder)["sha256"]
            scorer = found = load_predictor(folder)
            dense = found.dense_layers
            if scope == "threshold" and level:
                learnt = found.policy(level, decided_at)
        policy = learnt or SparsityPolicy(
            level or 0.0,
            scope,
            min_units,
            dense if dense_layers is None else parts("dense_layers", dense_layers, int),
            None if kinds is None else cast(tuple[Kind, ...], parts("kinds", kinds, str)),
            head_unit=head_unit,
            tokens=tokens,
        )
        HFLM.__init__(self, pretrained, **hf)
        self.model.requires_grad_(False)
        self.answers_key = answers_key(self, hf, checksum, policy, decided_at, stand_in, runs)
        self._hooks = ExitStack()
        run = sparse(self.model, scorer, policy, decided_at, stand_in=stand_in, executor=runs)
        self._go_through(self._hooks.enter_context(run))

    def _get_config(self, pretrained: str, **where: Any) -> None:
        try:
            super()._get_config(pretrained, **where)
        except (OSError, ValueError) as error:
            reason = first_line(error).rstrip(".:")
            raise UserError(
                f"model_args: pretrained={pretrained} must be a model's folder, or its id on the hub "
                f"({reason}): check the name and the network"
            ) from error
        require_layout(self.config.model_type)  # before gigabytes are read

    def _create_tokenizer(self, *args: Any, **kwargs: Any) -> None:
        name = str(kwargs.get("tokenizer") or args[0])
        try:
            super()._create_tokenizer(*args, **kwargs)
        except (OSError, ValueError) as error:
            raise no_tokenizer(name, error) from error
        require_tokens(self.tokenizer, name)

    def _create_model(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._create_model(*args, **kwargs)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise UserError(
                "model_args: neither --model shadow, nor hf, nor the model knows an argument of that name "
                f"({error}): leave it out"
            ) from error
        except UserError:
            raise
        except (OSError, ValueError, ImportError) as error:
            reason = first_line(error).rstrip(".:")
            raise UserError(
                f"model_args: the model cannot be loaded so ({reason}): leave out or mend the argument that "
                "this is about"
            ) from error
        if kwargs.get("peft"):
            self._model: Any = merged(self.model)

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Of --use_cache, which knows the requests alone: answers of other settings lie apart."""
        keep_apart(cache_hook, self.answers_key)
        super().set_cache_hook(cache_hook)

    def close(self) -> None:
        """Take the hooks from the model, which is dense again."""
        self._hooks.close()

    def get_model_info(self) -> dict[str, Any]:
        """lm-eval's, which goes into its results, and the share of units that was really skipped so far; of
        answers that were all in the cache there is none."""
        kinds = dict.fromkeys(site.kind for site in self.run.planner.sites.values())
        skipped = {"bytes_skipped": self.run.bytes()["skipped"]}
        if not self.run.planner.counts.tokens:
            return super().get_model_info()
        achieved = {f"achieved_{kind}": self.run.achieved(kind) for kind in kinds}
        log.info("skipped of all units: %s; of weight bytes a token: %s", achieved, skipped)
        return super().get_model_info() | achieved | skipped


def parts(setting: str, given: Any, kind: type) -> tuple:
    """`0+1` -> (0, 1): lm-eval parts its arguments at commas."""
    found = given.split("+") if isinstance(given, str) else [given] if isinstance(given, int) else list(given)
    try:
        return tuple(kind(one) for one in found)
    except ValueError as error:
        raise UserError(f"model_args: {setting} must be joined by +, as in 0+1, got {given!r}") from error


def executor_of(name: str, storage: Storage | None, kv_policy: KVPolicy, compact: bool) -> Executor:
    if name == "gathered":
        return Gathered(storage, kv_policy, compact)
    if name != "masked" or storage is not None or kv_policy != "write_all" or compact:
        raise UserError(
            "model_args: executor must be masked, or gathered with storage, kv_policy and compact, got "
            f"{name!r}, {storage!r}, {kv_policy!r}, {compact!r}"
        )
    return Masked()

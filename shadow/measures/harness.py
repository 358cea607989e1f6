"""The models of lm-eval: its own `hf` one, made sparse, for a run that there is or by name, `shadow`."""

import logging
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal, cast

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from shadow.artifacts.hub import load_predictor
from shadow.criteria import needs_gradient
from shadow.data.batches import IGNORED, Batch, Example, collate
from shadow.errors import UserError
from shadow.executors.gathered import Gathered
from shadow.executors.masked import Masked
from shadow.executors.options import KVPolicy, Storage
from shadow.executors.run import Executor, Run
from shadow.front import Named, sparse
from shadow.models.layouts import require_layout
from shadow.models.load import LM
from shadow.models.sites import Kind
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import HeadUnit, Scope, SparsityPolicy, Tokens
from shadow.scorers.fixed import Fixed
from shadow.scorers.oracle import Oracle
from shadow.scorers.prompt import PromptActivation
from shadow.scorers.protocol import Looks, Scorer

log = logging.getLogger(__name__)

BatchSize = int | Literal["auto"]
AUTO_TOKENS = 2048  # of a batch on a CPU, padding included


class SparseHFLM(HFLM):
    """lm-eval's own `hf` model; its forward passes go through a `Run` that knows where prompts end."""

    bos = False  # as `LM` has it

    def __init__(self, run: Run, lm: LM, batch_size: BatchSize) -> None:
        # one-token answers share a forward pass; a gradient oracle needs to see each answer by itself
        shared = not (isinstance(run.scorer, Oracle) and needs_gradient(run.scorer.criterion))
        super().__init__(
            pretrained=lm.model,
            tokenizer=lm.tokenizer,
            batch_size=batch_size,
            logits_cache=shared,
        )
        self.bos = lm.bos
        self._go_through(run)

    def _go_through(self, run: Run) -> None:
        self.run = run
        self._requests: dict[tuple[int, ...], deque[tuple[int, list[int]]]] = {}
        self._longest = 1  # tokens of a request that batch_size=auto is to fit

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        found = defaultdict(list)
        for _, context, continuation in requests:
            ids = (context + continuation)[-(self.max_length + 1) :]
            found[tuple(ids[:-1])].append((ids[-1], len(ids) - len(continuation), continuation))
        # lm-eval runs requests that share an input by their last token
        self._requests = {ids: deque((p, c) for _, p, c in sorted(same)) for ids, same in found.items()}
        return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)

    def _model_call(
        self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        lengths, prompts = [], []
        targets = torch.full_like(inps, IGNORED)
        if not self._requests:  # a trial of _detect_batch_size, whose rows are no one's
            return HFLM._model_call(self, inps)
        for row, ids in enumerate(inps.tolist()):
            length = self._unpadded(ids)
            waiting = self._requests[tuple(ids[:length])]
            prompt, answer = waiting.popleft() if len(waiting) > 1 else waiting[0]
            targets[row, length - len(answer) : length] = torch.tensor(answer, device=inps.device)
            lengths.append(length)
            prompts.append(prompt)
        batch = Batch(inps, torch.tensor(lengths), torch.tensor(prompts), targets)
        return self.run.logits(batch)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation: Any) -> Tensor:
        """Through `generate`, whose calls the run sees: each token decides anew, or the prompt once."""
        run, scorer = self.run, self.run.scorer
        if isinstance(scorer, Looks) and run.planner.policy.level > 0:
            if not isinstance(scorer, PromptActivation):
                raise UserError(
                    "tasks that generate have no answer that an oracle, or a dense-fed predictor, could see "
                    "first: use a predictor, static, random or prompt_activation"
                )
            real = generation["attention_mask"].bool()
            run.planner.look(
                collate([Example(ids[here].tolist(), int(here.sum())) for ids, here in zip(context, real)])
            )
        return super()._model_generate(context, max_length, stop, **generation)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        check_rolling(self.run)
        self._longest = max(len(self.scored(one.args[0])) for one in requests)
        asked: bool | None = self.add_bos_token  # type: ignore[has-type]  # of HFLM's __init__
        self.add_bos_token = False if self.bos else asked  # of `tok_encode`: see `scored`
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self.add_bos_token = asked

    def scored(self, text: str) -> list[int]:
        """The tokens of a text that is scored as a whole. lm-eval puts BOS before them itself, so that one
        which the tokenizer begins with comes second, and is scored; not where BOS is context (`LM.bos`)."""
        return self.tok_encode(text, add_special_tokens=False if self.bos else None)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self._longest = max(len(self.tok_encode(one.args[0])) for one in requests)
        return super().generate_until(requests, disable_tqdm)

    def _detect_batch_size(self, requests: Sequence | None = None, pos: int = 0) -> int:
        """For batch_size=auto. On a CPU, lm-eval's trials until memory is full end with all of it, and
        larger batches are no faster: there, as many rows as hold AUTO_TOKENS at the longest request."""
        if requests:
            _, context, continuation = requests[pos]
            self._longest = len(context) + len(continuation) - 1
        if self.device.type == "cpu":
            return rows_of(min(self._longest, self.max_length), self.max_batch_size)
        waiting, self._requests = self._requests, {}
        try:
            with self.run.planner.looking():
                return super()._detect_batch_size(requests, pos)
        finally:
            self._requests = waiting

    def _unpadded(self, ids: list[int]) -> int:
        """Length of the request in these ids: lm-eval pads with zeros and does not say how many."""
        length = len(ids)
        while tuple(ids[:length]) not in self._requests:
            assert length > 1
            assert ids[length - 1] == 0
            length -= 1
        return length


def rows_of(tokens: int, most: int = 64) -> int:
    """Rows of so many tokens that make a batch of about AUTO_TOKENS."""
    return max(1, min(most, AUTO_TOKENS // max(tokens, 1)))


def check_rolling(run: Run) -> None:
    """Text that is scored as a whole has no prompt that could decide."""
    if run.planner.decided_at == "prompt" and run.planner.signals:
        raise UserError(
            "sparsity.decided_at must be token or sequence for tasks that score whole documents, such as "
            "wikitext, which have no prompt; got prompt"
        )


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
        model. hf: all arguments of lm-eval's `hf` model.

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
        if predictor is not None:
            scorer = found = load_predictor(predictor, predictor_revision)
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
        runs = executor_of(executor, storage, kv_policy, compact)
        HFLM.__init__(self, pretrained, **hf)
        self.model.requires_grad_(False)
        self._hooks = ExitStack()
        run = sparse(self.model, scorer, policy, decided_at, stand_in=stand_in, executor=runs)
        self._go_through(self._hooks.enter_context(run))

    def _create_model(self, *args: Any, **kwargs: Any) -> None:
        require_layout(self.config.model_type)  # before gigabytes are read
        super()._create_model(*args, **kwargs)

    def close(self) -> None:
        """Take the hooks from the model, which is dense again."""
        self._hooks.close()

    def get_model_info(self) -> dict[str, Any]:
        """lm-eval's, which goes into its results, and the share of units that was really skipped so far."""
        kinds = dict.fromkeys(site.kind for site in self.run.planner.sites.values())
        achieved = {f"achieved_{kind}": self.run.achieved(kind) for kind in kinds}
        skipped = {"bytes_skipped": self.run.bytes()["skipped"]}
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

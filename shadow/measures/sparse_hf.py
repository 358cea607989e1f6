"""lm-eval's own `hf` model, whose passes go through a run."""

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from shadow.criteria import needs_gradient
from shadow.data.batches import IGNORED, Batch, Example, collate
from shadow.errors import UserError
from shadow.executors.run import Run
from shadow.models.load import LM
from shadow.models.tokenizers import require_open_end
from shadow.scorers.oracle import Oracle
from shadow.scorers.prompt import PromptActivation
from shadow.scorers.protocol import Looks
from shadow.terminal.lines import CONSOLE

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
        require_open_end(self.tokenizer)
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
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise UserError(
                f"max_length must be at least the {longest} tokens of the longest answer that is scored, got "
                f"{self.max_length}: give a larger one, or leave it out"
            )
        for _, context, continuation in requests:
            ids = (context + continuation)[-(self.max_length + 1) :]
            found[tuple(ids[:-1])].append((ids[-1], len(ids) - len(continuation), continuation))
        # lm-eval runs requests that share an input by their last token
        self._requests = {ids: deque((p, c) for _, p, c in sorted(same)) for ids, same in found.items()}
        return super()._loglikelihood_tokens(requests, barless(disable_tqdm), override_bs)

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
        mixed = self.mixed_precision_dtype
        with torch.autocast(self.device.type, mixed, enabled=mixed is not None):
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

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, barless(disable_tqdm))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        check_rolling(self.run)
        self._longest = max(len(self.scored(one.args[0])) for one in requests)
        asked: bool | None = self.add_bos_token  # type: ignore[has-type]  # of HFLM's __init__
        self.add_bos_token = False if self.bos else asked  # of `tok_encode`: see `scored`
        try:
            return super().loglikelihood_rolling(requests, barless(disable_tqdm))
        finally:
            self.add_bos_token = asked

    def scored(self, text: str) -> list[int]:
        """The tokens of a text that is scored as a whole. lm-eval puts BOS before them itself, so that one
        which the tokenizer begins with comes second, and is scored; not where BOS is context (`LM.bos`)."""
        return self.tok_encode(text, add_special_tokens=False if self.bos else None)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self._longest = max(len(self.tok_encode(one.args[0])) for one in requests)
        return super().generate_until(requests, barless(disable_tqdm))

    def _batch_scheduler(self, pos: int, n_reordered_requests: Sequence) -> int:
        """As often as auto:N says; of fewer requests lm-eval would divide by none."""
        asked: float = self.batch_schedule  # type: ignore[has-type]  # of HFLM's __init__
        self.batch_schedule = min(asked, len(n_reordered_requests))
        try:
            return super()._batch_scheduler(pos, n_reordered_requests)
        finally:
            self.batch_schedule = asked

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


def barless(asked: bool) -> bool:
    """lm-eval's `disable_tqdm`: no bars in files."""
    return asked or not CONSOLE.is_terminal


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

"""What every run does, whatever carries its plans out: plan a call, and count what stays."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from uuid import uuid4

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from shadow.data.batches import Batch
from shadow.errors import UserError
from shadow.executors.cached_plan import CachedPlan, keep_in, plan_of
from shadow.executors.call import Call
from shadow.executors.costs import added_by, cost_of, kinds_of
from shadow.executors.counts import Counts
from shadow.executors.given import Given
from shadow.executors.here import Here
from shadow.executors.positions import Positions, prompt_of, whole_positions
from shadow.models.kinds import find_sites
from shadow.models.sites import Kind, Site, SiteKey
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import SparsityPolicy
from shadow.plans.rules import Plan
from shadow.plans.stand_ins import Corrects, Guesses, Learnt, Mean, StandIn
from shadow.scorers.protocol import ONCE, Looks, Scorer
from shadow.signals import Signal

OnScores = Callable[[Signal, Mapping[SiteKey, Tensor]], None]


class Planner:
    """Plans calls, and counts what was really kept of all of them.

    The scorer sees its signals inside the same forward pass that it makes sparse. Decided at the `prompt`,
    the plan of a row comes from its prompt and holds for all its positions; it lies with the key-value cache
    that the prompt has filled, and holds for the calls that go on from this cache. Threads may call at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        scorer: Scorer,
        policy: SparsityPolicy,
        decided_at: DecidedAt,
        stand_in: StandIn,
    ) -> None:
        self.model, self.scorer, self.policy, self.decided_at = model, scorer, policy, decided_at
        self.stand_in = stand_in
        self.sites: dict[SiteKey, Site] = {
            site.key: site
            for site in find_sites(model, kinds_of(scorer, policy))
            if not site.behind or policy.prunes(site.key)
        }
        pruned = [site for site in self.sites.values() if policy.prunes(site.key)]
        for site in pruned:
            if policy.scope == "threshold":
                policy.threshold_of(site.key)
            if isinstance(stand_in, Mean):
                stand_in.require(site)
            if site.kind == "row" and not isinstance(stand_in, Guesses):
                raise UserError(
                    "rows of the lm_head that are not read need a stand-in that says what they would write: "
                    "leave sparsity.stand_in=auto with a predictor that brings one, got "
                    f"{type(stand_in).__name__}"
                )
        self.signals = tuple(scorer.signals(pruned)) if policy.level > 0 else ()
        self.on_scores: OnScores | None = None  # is told what the scorer says at each signal
        self.name = uuid4().hex  # of this run: plans that lie with caches bear it
        self.lock = Lock()
        self.counts = Counts(self.sites)
        self.kept, self.total, self.whole = self.counts.kept, self.counts.total, self.counts.whole
        self.standing: Plan = {}  # what every call begins with
        self.here = Here()
        self._staying: dict[SiteKey, int] = {}  # of those that are as many at all positions of all calls
        if not self.signals and policy.level > 0:
            self.standing = policy.plan(scorer.scores(ONCE, torch.zeros(0), None), self.sites)
            for site in pruned:
                if site.key not in self.standing:
                    raise self.silence(site.key)

    @property
    def decides_each_token(self) -> bool:
        """Whether plans change from one token to the next."""
        return self.decided_at == "token" and bool(self.signals)

    @property
    def decides_once(self) -> bool:
        """Whether the plan of a call holds for all calls that go on from it."""
        return self.decided_at != "token" and bool(self.signals)

    @property
    def constants(self) -> dict[SiteKey, Tensor]:
        """What stands in dropped units' places, [U, D] of the sites that are pruned; none where it is 0."""
        one = self.stand_in.within if isinstance(self.stand_in, Learnt) else self.stand_in
        values = one.values if isinstance(one, Mean) else {}
        return {key: constant for key, constant in values.items() if self.policy.prunes(key)}

    def look(self, batch: Batch) -> None:
        """Show the sample to a scorer that must see it first; nothing is dropped or counted."""
        if isinstance(self.scorer, Looks) and self.policy.level > 0:
            with self.looking():
                self.scorer.look(self.model, batch.for_model(self.model))

    def looking(self) -> AbstractContextManager[None]:
        """Inside the block this thread's calls of the model are dense, and nothing is counted."""
        return self.here.looking()

    @property
    def plan(self) -> Plan:
        """Of this thread's call that is under way, or else of its last one."""
        if self.here.call is not None:
            return self.here.call.plan
        return self.standing if self.here.plan is None else self.here.plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self.standing, self.here.plan = plan, None

    @contextmanager
    def calling(
        self,
        real: Tensor,
        prompt: Tensor,
        given: Given | None = None,
        before: Tensor | None = None,
    ) -> Iterator[Call]:
        """A call of these positions, bool [B, T] each; counted when it has ended well.

        given: what else is known of it, where it may go on from a cache; None: it begins, and what it reads
        is a sample with its answer. before: [B], real positions of each row in the cache, if the policy asks.
        """
        if self.here.dense:
            yield Call(Positions(real, None), None, {}, decided=True)
            return
        start, ends = (0, real) if given is None else (given.start, prompt)
        whole = whole_positions(self.policy.tokens, real, prompt, ends, start, before)
        pool = {"token": None, "prompt": prompt, "sequence": real}[self.decided_at]
        plan = None if given is None else self.plan_before(given)
        shown = None if given is None else given.shown()
        call = Call(Positions(real, whole), pool, self.standing | (plan or {}), plan is not None, shown)
        with self.here.within(call):
            yield call
        self.here.plan = call.plan
        with self.lock:
            self.counts.add(call)

    def plan_before(self, given: Given) -> Plan | None:
        """That of an earlier call, if this one is to follow it."""
        if not self.decides_once:
            return None
        if given.start > 0:
            return plan_of(given.cache, given.start, given.read, self.name, self.decided_at)
        columns, tokens = self.here.columns, given.read.shape[1]
        if columns is not None and tokens < columns:
            raise UserError(
                f"sparsity.decided_at={self.decided_at} makes its plan of the whole prompt, and generate "
                f"brings {tokens} of its {columns} positions first: leave prefill_chunk_size and "
                "guidance_scale out, or use sparsity.decided_at=token"
            )
        return None

    def remember(self, call: Call, read: Tensor, cache: Cache | None) -> None:
        """Leave the plan of a prompt with the cache that its call has filled. read: as `Given` has it."""
        if self.decides_once and not call.decided and cache is not None:
            prompt = read[:, : self.here.columns].detach()
            keep_in(cache, CachedPlan(self.name, prompt, dict(call.plan)))

    def prompt_of(self, real: Tensor, start: int) -> Tensor:
        """real: bool [B, T], behind `start` positions in the cache -> bool [B, T], those of the prompt."""
        return prompt_of(real, start, self.here.columns)

    def require_behind_prompt(self, start: int) -> None:
        """For executors that take what follows a cache for sparse."""
        columns = self.here.columns
        if self.policy.tokens == "decode" and columns is not None and start < columns:
            raise UserError(
                f"sparsity.tokens=decode leaves the {columns} positions whole that generate was given, and "
                f"executor=gathered would read those behind {start} as sparse ones: leave prefill_chunk_size "
                "and past_key_values out, or use executor=masked"
            )

    def decide(self, signal: Signal, x: Tensor) -> None:
        """Plan what this signal decides by x: [B, T, N]."""
        if self.here.dense:
            return
        call = self.under_way()
        if call.decided:
            return
        if call.positions.untouched and self.decided_at == "token" and self.on_scores is None:
            return  # nobody would use it
        scores = self.scorer.scores(signal, x, call.pool)
        if self.on_scores is not None:
            self.on_scores(signal, scores)
        call.plan |= self.policy.plan(scores, self.sites)

    def under_way(self) -> Call:
        call = self.here.call
        if call is None:
            raise UserError(
                "layers of the model were run without a call of the model, which says where prompts and "
                "padding are: inside the block call model(...) or model.generate(...)"
            )
        return call

    def require_call(self) -> None:
        """Refuse layers that a part of the model runs, or a `forward` that was taken before the block."""
        if not self.here.dense:
            self.under_way()

    def keep(self, key: SiteKey, sent: Tensor | None = None) -> Tensor | None:
        """What stays at a site: bool [U] or [B, 1 or T, U], or None: all. Counted.

        sent: bool [B, T, U], the units that a token can read at all; None: all of them.
        """
        if self.here.dense:
            return None
        call, site, prunes = self.under_way(), self.sites[key], self.policy.prunes(key)
        here = call.at(site)
        if here.untouched or (key not in call.plan and not prunes):
            call.kept[key] += here.n_real * site.active
            return None
        if key not in call.plan:
            raise self.silence(key)
        keep = call.keep_of(site)
        if here.whole is not None:
            keep = keep | here.whole[..., None].to(keep.device)
        if here.whole is None and self.policy.scope == "layer" and prunes:
            if key not in self._staying:
                one = keep.view(-1, keep.shape[-1])[0]
                self._staying[key] = int(one.count_nonzero()) * site.active // len(one)
            call.kept[key] += here.n_real * self._staying[key]
        else:
            read = here.real[..., None].to(keep.device)
            read = read if sent is None else read & sent
            call.kept[key] += int((keep & read).count_nonzero())  # of bools faster than their sum
        return keep

    def silence(self, key: SiteKey) -> UserError:
        """Of a scorer that leaves out a site."""
        return UserError(
            f"the scorer {type(self.scorer).__name__} says nothing of the {key[1]}s of layer {key[0]}, "
            f"and sparsity.level={self.policy.level_of(key):g} of them is to go: score them, or leave "
            "them out by sparsity.dense_layers or sparsity.kinds"
        )

    def drop(self, site: Site, x: Tensor) -> Tensor | None:
        """x: [B, T, U, D] -> without what the plan drops."""
        sent = None
        if self.here.dense:
            return None
        if site.experts > 1:
            by_expert = x[..., 0].unflatten(-1, (site.experts, -1)).detach()
            sent = (by_expert != 0).any(-1, keepdim=True).expand_as(by_expert).flatten(-2)
        keep = self.keep(site.key, sent)
        if keep is None:
            return None
        keep = keep.to(x.device)
        if keep.dim() == 3 and (keep.shape[0] not in (1, len(x)) or keep.shape[1] not in (1, x.shape[1])):
            raise UserError(
                f"a plan of {list(keep.shape)} meets {list(x.shape[:2])} positions at the {site.slot}s of "
                f"layer {site.layer}: inside the block call the whole model, and no part of it"
            )
        return self.stand_in(site, x, keep)

    @property
    def corrected_sites(self) -> list[Site]:
        """Those after which the stand-in changes what is written."""
        if not isinstance(self.stand_in, Corrects):
            return []
        return [site for site in self.sites.values() if self.policy.corrects(site)]

    def correct(self, site: Site, reader: int, x: Tensor, y: Tensor) -> Tensor | None:
        """y: [B, T, N], what this reader of a pruned site has written of x -> what it becomes where tokens
        are sparse."""
        if self.here.dense:
            return None
        here = self.under_way().at(site)
        if here.untouched:
            return None
        assert isinstance(self.stand_in, Corrects)
        found = self.stand_in.corrected(site, reader, y)
        return found if here.whole is None else torch.where(here.whole[..., None].to(y.device), y, found)

    def guess(self, site: Site, reader: int, x: Tensor, y: Tensor) -> Tensor | None:
        """y: [B, T, V], what the lm_head has written of x, [B, T, E] -> with guesses in place of the rows
        that the plan drops."""
        keep = None if self.here.dense else self.keep(site.key)
        if keep is None:
            return None
        assert isinstance(self.stand_in, Guesses)
        return torch.where(keep.to(y.device), y, self.stand_in.guesses(site, x).to(y))

    def achieved(self, kind: Kind) -> float:
        """Share of this kind's units that was skipped, over all layers and the real tokens run so far."""
        return self.counts.achieved(kind)

    def bytes(self) -> dict[str, float | dict[str, float]]:
        """Shares of the weight bytes that a dense token reads, as `Counts.bytes` has them."""
        asked = (self.scorer, self.stand_in) if self.decides_each_token else (self.stand_in,)
        pruned = [site for site in self.sites.values() if self.policy.prunes(site.key)]
        signals = self.signals if self.decides_each_token else ()
        return self.counts.bytes(self.model, added_by(asked, pruned), lambda site: cost_of(site, signals))

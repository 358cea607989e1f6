"""What every run does, whatever carries its plans out: plan a call, and count what stays."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.batches import Batch
from shadow.errors import UserError
from shadow.models.kinds import find_sites, weights_of
from shadow.models.sites import KINDS, Kind, Site, SiteKey
from shadow.plans.facts import DecidedAt
from shadow.plans.policy import SparsityPolicy
from shadow.plans.rules import Plan
from shadow.plans.stand_ins import Mean, StandIn
from shadow.scorers.protocol import ONCE, Looks, Scorer
from shadow.signals import Signal

OnScores = Callable[[Signal, Mapping[SiteKey, Tensor]], None]


class Planner:
    """The plan of the call under way, and what was really kept of all calls.

    The scorer sees its signals inside the same forward pass that it makes sparse. Decided at the `prompt`,
    the plan of a row comes from its prompt and holds for all its positions; a call that goes on from a
    key-value cache keeps the plan that was made when the cache was empty.
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
        kinds: tuple[Kind, ...] = ("channel",) if policy.level > 0 and "channel" in scorer.kinds else KINDS
        self.sites: dict[SiteKey, Site] = {
            site.key: site
            for site in find_sites(model, kinds)
            if site.slot != "lm_head" or policy.prunes(site.key)
        }
        pruned = [site for site in self.sites.values() if policy.prunes(site.key)]
        for site in pruned:
            if policy.scope == "threshold":
                policy.threshold_of(site.key)
            if isinstance(stand_in, Mean):
                stand_in.require(site)
        self.signals = tuple(scorer.signals(pruned)) if policy.level > 0 else ()
        self.on_scores: OnScores | None = None  # is told what the scorer says at each signal
        self.plan: Plan = {}
        self.kept: Counter[SiteKey] = Counter()
        self.total: Counter[SiteKey] = Counter()
        self.whole: Counter[SiteKey] = Counter()  # of `total`, at positions that are not sparse
        self._real = torch.zeros(0)  # bool [B, T] of the call under way
        self._n_real = self._n_whole = 0
        self._staying: dict[SiteKey, int] = {}  # of those that are as many at all positions of all calls
        self._whole: Tensor | None = None  # bool [B, T], positions at which every unit stays
        self._pool: Tensor | None = None
        self._looking = self._going_on = self._untouched = False
        if not self.signals and policy.level > 0:
            self.plan = policy.plan(scorer.scores(ONCE, torch.zeros(0), None), self.sites)

    @property
    def decides_each_token(self) -> bool:
        """Whether plans change from one token to the next."""
        return self.decided_at == "token" and bool(self.signals)

    @property
    def constants(self) -> dict[SiteKey, Tensor]:
        """What stands in dropped units' places, [U, D] of the sites that are pruned; none where it is 0."""
        values = self.stand_in.values if isinstance(self.stand_in, Mean) else {}
        return {key: constant for key, constant in values.items() if self.policy.prunes(key)}

    def look(self, batch: Batch) -> None:
        """Show the sample to a scorer that must see it first; nothing is dropped or counted."""
        if isinstance(self.scorer, Looks) and self.policy.level > 0:
            with self.looking():
                self.scorer.look(self.model, batch.for_model(self.model))

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Inside the block calls of the model are dense, and nothing is counted."""
        self._looking = True
        try:
            yield
        finally:
            self._looking = False

    def begin(self, real: Tensor, prompt: Tensor, before: Tensor | None = None) -> None:
        """A call of these positions, bool [B, T] each.

        before: [B], real tokens of each row in the key-value cache that it goes on from; None if from none.
        """
        if self._looking:
            return
        self._real, self._going_on = real, before is not None
        self._n_real = int(real.count_nonzero())
        self._whole = self.whole_positions(real, prompt, before)
        self._n_whole = 0 if self._whole is None else int((self._whole & real).count_nonzero())
        self._untouched = self._whole is not None and self._n_whole == self._n_real
        self._pool = {"token": None, "prompt": prompt, "sequence": real}[self.decided_at]

    def whole_positions(self, real: Tensor, prompt: Tensor, before: Tensor | None) -> Tensor | None:
        """-> bool [B, T], True where policy.tokens leaves all units; None: nowhere."""
        tokens = self.policy.tokens
        if tokens == "all":
            return None
        if tokens == "decode":
            return prompt if before is None else None
        place = real.long().cumsum(1)  # from 1 on
        if isinstance(tokens, int):
            return place + (0 if before is None else before[:, None]) <= tokens
        if before is not None:
            return None
        assert isinstance(tokens, float)
        length = place[:, -1:]
        return place <= length - (length * tokens).ceil().long()

    def decide(self, signal: Signal, x: Tensor) -> None:
        """Plan what this signal decides by x: [B, T, N]."""
        if self._looking or (self._going_on and self.decided_at != "token"):
            return
        if self._untouched and self.decided_at == "token" and self.on_scores is None:
            return  # nobody would use it
        scores = self.scorer.scores(signal, x, self._pool)
        if self.on_scores is not None:
            self.on_scores(signal, scores)
        self.plan |= self.policy.plan(scores, self.sites)

    def keep(self, key: SiteKey, sent: Tensor | None = None) -> Tensor | None:
        """What stays at a site: bool [U] or [B, 1 or T, U], or None: all. Counted.

        sent: bool [B, T, U], the units that a token can read at all; None: all of them.
        """
        if self._looking:
            return None
        units = self.sites[key].active
        total = self._n_real * units
        self.total[key] += total
        self.whole[key] += self._n_whole * units
        prunes = self.policy.prunes(key)
        if self._untouched or (key not in self.plan and not prunes):
            self.kept[key] += total
            return None
        if key not in self.plan:
            raise UserError(
                f"the scorer {type(self.scorer).__name__} says nothing of the {key[1]}s of layer {key[0]}, "
                f"and sparsity.level={self.policy.level_of(key):g} of them is to go: score them, or leave "
                "them out by sparsity.dense_layers or sparsity.kinds"
            )
        keep = self.plan[key]  # [U], [B, U] or [B, T, U]
        if keep.dim() == 2:
            keep = keep[:, None]
        if self._whole is not None:
            keep = keep | self._whole[..., None].to(keep.device)
        if self._whole is None and self.policy.scope == "layer" and prunes:
            if key not in self._staying:
                one = keep.view(-1, keep.shape[-1])[0]
                self._staying[key] = int(one.count_nonzero()) * units // len(one)
            self.kept[key] += self._n_real * self._staying[key]
        else:
            read = self._real[..., None].to(keep.device)
            read = read if sent is None else read & sent
            self.kept[key] += int((keep & read).count_nonzero())  # of bools faster than their sum
        return keep

    def drop(self, site: Site, x: Tensor) -> Tensor | None:
        """x: [B, T, U, D] -> without what the plan drops."""
        sent = None
        if site.experts > 1 and not self._looking:
            by_expert = x[..., 0].unflatten(-1, (site.experts, -1)).detach()
            sent = (by_expert != 0).any(-1, keepdim=True).expand_as(by_expert).flatten(-2)
        keep = self.keep(site.key, sent)
        if keep is None:
            return None
        keep = keep.to(x.device)
        if keep.dim() == 3 and keep.shape[1] > x.shape[1]:  # of the last projection, logits of the last alone
            keep = keep[:, -x.shape[1] :]
        return self.stand_in(site, x, keep)

    def achieved(self, kind: Kind) -> float:
        """Share of this kind's units that was skipped, over all layers and the real tokens run so far."""
        keys = [key for key in self.total if self.sites[key].kind == kind]
        total = sum(self.total[key] for key in keys)
        return 1 - sum(self.kept[key] for key in keys) / total if total else 0.0

    def bytes(self) -> dict[str, float | dict[str, float]]:
        """Shares of the weight bytes that a dense token reads, which a token at a sparse position does not.

        skipped: of all projections and the lm_head; skipped_of_layers: of the layers' alone; by_kind: what
        each kind of unit leaves unread, of all; added: what the scorer reads instead. In one storage type.
        """
        weights = weights_of(self.model)
        unread: Counter[str] = Counter()
        for key, total in self.total.items():
            site, whole = self.sites[key], self.whole[key]
            if total > whole:
                absent = 1 - (self.kept[key] - whole) / (total - whole)
                unread[site.slot] += absent * site.active * self.cost_of(site)  # type: ignore[assignment]
        added = getattr(self.scorer, "weights", 0) if self.decides_each_token else 0
        by_kind: Counter[str] = Counter()
        for slot, count in unread.items():
            by_kind["channel" if slot not in KINDS else slot] += count
        skipped = sum(unread.values()) - added
        return {
            "skipped": skipped / weights.all,
            "skipped_of_layers": (skipped - unread["lm_head"]) / weights.layers,
            "by_kind": {kind: count / weights.all for kind, count in by_kind.items()},
            "added": added / weights.all,
        }

    def cost_of(self, site: Site) -> int:
        """Weights that an absent unit leaves unread, where the scorer has seen some of its point already."""
        if not self.decides_each_token:
            return site.cost
        here = [signal for signal in self.signals if signal.layer == site.layer]
        points = {signal.point for signal in here if signal.point != "site" or signal.slot == site.slot}
        if "site" in points:
            return site.cost - site.seen_cost.get("site", 0)
        return site.cost - sum(site.seen_cost.get(point, 0) for point in points)

"""The masked executor: a stock model that runs without the units a plan drops."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadow.data.batches import Batch, logits_of
from shadow.errors import UserError
from shadow.models.sites import (
    Kind,
    Site,
    count_units,
    find_layers,
    find_sites,
    listen,
    structure_of,
    visit,
    width_of,
)
from shadow.plans.facts import DecidedAt, Facts
from shadow.plans.policy import Plan, SparsityPolicy, Unit
from shadow.scorers.nets import DenseFed, Looks, Predicted, Scorer, Shape

Fill = Mapping[Unit, Tensor]  # [U, D] of each layer and kind: what stands in a dropped unit's place
Executor = Literal["masked", "gathered"]
Storage = Literal["float32", "bfloat16", "int8"]
KVPolicy = Literal["write_all", "recompute"]
Prefill = Literal["sparse", "dense"]
FillName = Literal["auto", "mean", "zero"]
# is told a tap and its scores, as they come: [B, T, U], or where positions decide together [B, U]
Hear = Callable[[int, Mapping[Unit, Tensor]], None]


class Run(Protocol):
    """What `sparse` yields, whatever the executor.

    plan: which units stay, as last decided; a gathered run that decides at each token keeps that of its
    prompts alone.
    """

    @property
    def scorer(self) -> Scorer: ...

    @property
    def plan(self) -> Plan: ...

    def logits(self, batch: Batch) -> Tensor:
        """-> [B, T, V]; the batch says where its rows and their prompts end."""
        ...

    def achieved(self, kind: Kind) -> float:
        """Share of this kind's units that was skipped, over all layers and the real tokens run so far."""
        ...


class SparseRun:
    """What `sparse` yields: runs batches, and counts what was really kept.

    The predictor reads its tap inside the same forward pass that it makes sparse. Decided at the `prompt`,
    the plan of a row comes from its prompt and holds for all its positions; a call that goes on from a
    key-value cache keeps the plan that was made when the cache was empty.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        scorer: Scorer,
        policy: SparsityPolicy,
        decided_at: DecidedAt,
        fill: Fill | None = None,
        hear: Hear | None = None,
        prefill: Prefill = "sparse",
    ) -> None:
        check(model, scorer, policy, decided_at)
        if prefill not in get_args(Prefill):
            raise UserError(f"prefill must be one of {list(get_args(Prefill))}, got {prefill!r}")
        if policy.scope == "threshold":
            check_thresholds(model, policy)
        if fill is not None:
            check_fill(model, policy, fill)
        self.model, self.scorer, self.policy, self.decided_at = model, scorer, policy, decided_at
        self.fill, self.hear, self.prefill = fill, hear, prefill
        self.structure = structure_of(model)
        self.plan: Plan = {}
        self.kept: Counter[Unit] = Counter()
        self.total: Counter[Unit] = Counter()
        self._batch: Batch | None = None
        self._real = torch.zeros(0)  # bool [B, T] of the call under way
        self._n_real = 0
        self._staying: dict[Unit, int] = {}  # of those that are the same number at all positions of all calls
        self._whole: Tensor | None = None  # bool [B, T], positions at which every unit stays
        self._pool: Tensor | None = None
        self._looking = self._going_on = self._untouched = False
        self._signature = inspect.signature(model.forward)
        if not scorer.taps:
            self.plan = policy.plan(scorer.at(0, torch.zeros(0), None), self.structure)

    @property
    def decides_each_token(self) -> bool:
        """Whether plans change from one token to the next."""
        return self.decided_at == "token" and bool(self.scorer.taps) and self.policy.level > 0

    @property
    def pruned_fill(self) -> dict[Unit, Tensor]:
        """What stands in dropped units' places, of what is pruned at all."""
        return {unit: values for unit, values in (self.fill or {}).items() if self.policy.prunes(unit)}

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """-> [B, T, V]; the batch says where its rows and their prompts end."""
        batch = batch.to(self.model.device)
        self.look(batch)
        self._batch = batch
        try:
            return logits_of(self.model, batch)
        finally:
            self._batch = None

    def look(self, batch: Batch) -> None:
        """Show the sample to a scorer that must see it first; nothing is dropped or counted."""
        if isinstance(self.scorer, Looks) and self.policy.level > 0:
            with self.looking():
                self.scorer.look(self.model, batch.to(self.model.device))

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Inside the block calls of the model are dense, and nothing is counted."""
        self._looking = True
        try:
            yield
        finally:
            self._looking = False

    def achieved(self, kind: Kind) -> float:
        """Share of this kind's units that was skipped, over all layers and the real tokens run so far."""
        total = sum(count for (_, k), count in self.total.items() if k == kind)
        kept = sum(count for (_, k), count in self.kept.items() if k == kind)
        return 1 - kept / total if total else 0.0

    def begin(self, real: Tensor, prompt: Tensor, going_on: bool) -> None:
        """A call of these positions, bool [B, T] each, which goes on from a key-value cache or does not."""
        self._real, self._going_on = real, going_on
        self._n_real = int(real.count_nonzero())
        self._whole = prompt if self.prefill == "dense" and not going_on else None
        self._untouched = self._whole is not None and bool((self._whole | ~real).all())
        self._pool = {"token": None, "prompt": prompt, "sequence": real}[self.decided_at]

    def _begin(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if self._looking:
            return
        if self._batch is not None:
            self.begin(self._batch.real(), self._batch.in_prompt(), False)
            return
        given = self._signature.bind(*args, **kwargs).arguments
        shown = given.get("input_ids")
        if shown is None:  # [B, T, E] instead of [B, T]
            shown = given["inputs_embeds"][..., 0]
        cache = given.get("past_key_values")
        real = real_positions(shown, given.get("attention_mask"))
        self.begin(real, real, cache is not None and cache.get_seq_length() > 0)

    def decide(self, tap: int, state: Tensor) -> None:
        """Plan the layers of this tap by its state [B, T, E]."""
        if self._looking or self.policy.level == 0 or (self._going_on and self.decided_at != "token"):
            return
        if self._untouched and self.decided_at == "token" and self.hear is None:
            return  # nobody would use it
        scores = self.scorer.at(tap, state, self._pool)
        if self.hear is not None:
            self.hear(tap, scores)
        self.plan |= self.policy.plan(scores, self.structure)

    def keep(self, unit: Unit, units: int) -> Tensor | None:
        """What stays of so many units of a kind: bool [U] or [B, 1 or T, U], or None: all. Counted."""
        if self._looking:
            return None
        self.total[unit] += self._n_real * units
        if unit not in self.plan or self._untouched:
            self.kept[unit] += self._n_real * units
            return None
        keep = self.plan[unit]  # [U], [B, U] or [B, T, U]
        if keep.dim() == 2:
            keep = keep[:, None]
        if self._whole is not None:
            keep = keep | self._whole[..., None].to(keep.device)
        if self._whole is None and self.policy.scope == "layer" and self.policy.prunes(unit):
            if unit not in self._staying:
                self._staying[unit] = int(keep.view(-1, units)[0].count_nonzero())
            self.kept[unit] += self._n_real * self._staying[unit]
        else:
            real = self._real[..., None].to(keep.device)
            self.kept[unit] += int((keep & real).count_nonzero())  # of bools faster than their sum
        return keep

    def _drop(self, site: Site, x: Tensor) -> Tensor | None:
        unit = (site.layer, site.kind)
        keep = self.keep(unit, site.units)
        if keep is None:
            return None
        fill = x.new_zeros(x.shape[-2:]) if self.fill is None else self.fill[unit].to(x)
        return drop(x, keep.to(x.device), fill)


def drop(x: Tensor, keep: Tensor, fill: Tensor) -> Tensor:
    """x: [B, T, U, D] with fill [U, D] where keep, bool [U] or [B, T or 1, U], is False; x itself is changed,
    unless gradients are asked for: fresh memory costs as much as the choice."""
    if torch.is_grad_enabled():
        return torch.where(keep[..., None], x, fill)
    if not x.is_cpu:
        return torch.where(keep[..., None], x, fill, out=x)
    from shadow.plans.selection import fill_rows  # numba takes a second to import

    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]  # NumPy has no bfloat16
    rows = keep.reshape(-1, keep.shape[-1]).contiguous()  # of each position, or of each row's, or of them all
    fill_rows(x.view(bits).numpy(), rows.numpy(), fill.contiguous().view(bits).numpy())
    return x


def real_positions(ids: Tensor, mask: Tensor | None) -> Tensor:
    """-> bool [B, T] of a call's ids [B, T]; mask: transformers' attention mask, [B, all positions]."""
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[:, -ids.shape[1] :].bool()


@contextmanager
def sparse(
    model: PreTrainedModel,
    scorer: Scorer,
    policy: SparsityPolicy | None = None,
    decided_at: DecidedAt = "token",
    *,
    level: float | None = None,
    fill: Fill | FillName | None = "auto",
    hear: Hear | None = None,
    executor: Executor = "masked",
    storage: Storage | None = None,
    kv_policy: KVPolicy = "write_all",
    compact: bool = False,
    prefill: Prefill = "sparse",
) -> Iterator[Run]:
    """Inside the block the model skips what the scorer ranks low; afterwards nothing is left on it.

    scorer: a predictor of `load_predictor`, or anything with `taps` and `at`.
    policy: how many units go, and where; or level, the share of them, for a policy that is otherwise the
    default.
    decided_at: `token`, each position by its own state; `prompt`, once for all that follows, from the prompt;
    `sequence`, from prompt and answer, which is not to be had in use.
    executor: `masked` computes everything and drops what goes; `gathered` reads the weights of kept units
    alone, and generates faster; on a GPU by Triton. For `gathered` on the CPU only, storage: float32,
    bfloat16 or int8 weights instead of the model's own; kv_policy: whether each token computes the keys and
    values of all heads that may be needed (`write_all`), or of a head when it is first needed (`recompute`);
    compact: where a prompt's plan stays, the rows of the neurons that it keeps are copied one behind the
    other for all that follows: faster per token, and these rows are held twice.
    fill: what a dropped unit says: `zero` or None, nothing; `mean`, its calibration mean, which a predictor
    brings; `auto`, that mean if the scorer is a predictor that ranks units by their distance from it, else
    nothing; or values of one's own, [U, D] of every (layer, kind).
    An executor that reads the weights of kept units alone can do it: W a with dropped parts of a replaced by
    m is W m, a constant vector for each layer, plus the sum over the kept units u of W_u (a_u - m_u).
    hear: is told what the scorer says at each tap.
    prefill: whether a prompt is read without the dropped units, or `dense`, by all of them, so that only what
    comes behind it is sparse. The plan is decided from it either way. Prompts are a batch's, or a call that
    goes on from no key-value cache.
    """
    if policy is None and level is not None:
        policy = SparsityPolicy(level)
    elif policy is None or level is not None:
        raise UserError(
            "sparse needs exactly one of level and policy, as in level=0.5, got "
            f"level={level!r} and policy={policy!r}"
        )
    if not isinstance(policy, SparsityPolicy):
        raise UserError(f"policy must be a SparsityPolicy, got {policy!r}: a level is given as level=0.5")
    run = SparseRun(model, scorer, policy, decided_at, values_of(fill, scorer), hear, prefill)
    if executor == "gathered":
        from shadow.executors.cpu.gathered import gathered  # numba takes a second to import

        with gathered(model, run, storage, kv_policy, compact) as fast:
            yield fast
        return
    if executor != "masked" or storage is not None or kv_policy != "write_all" or compact:
        raise UserError(
            "sparse needs executor=masked, or executor=gathered with storage, kv_policy and compact, got "
            f"{executor!r}, {storage!r}, {kv_policy!r}, {compact!r}"
        )
    handle = model.register_forward_pre_hook(run._begin, with_kwargs=True)
    try:
        with dropping(model, run):
            yield run
    finally:
        handle.remove()


def values_of(fill: Fill | FillName | None, scorer: Scorer) -> Fill | None:
    """[U, D] of every (layer, kind), or None for zeros."""
    if not isinstance(fill, str):
        return fill
    net = net_of(scorer)
    if fill not in get_args(FillName):
        raise UserError(
            f"fill must be one of {list(get_args(FillName))}, or values of each layer and kind, got {fill!r}"
        )
    if fill == "mean" and (net is None or not net.means):
        raise UserError("fill=mean needs a predictor that brings means, and this scorer has none: give zero")
    if net is None or fill == "zero" or (fill == "auto" and not net.deviates):
        return None
    return net.means


@contextmanager
def dropping(model: PreTrainedModel, run: SparseRun) -> Iterator[None]:
    """Inside the block each call of the model is planned at the scorer's taps, and goes without what its plan
    drops; `run.begin` must have been told of the call."""
    net = net_of(run.scorer)
    source = "state" if net is None else net.source
    with listen(model, run.scorer.taps, source, run.decide), visit(find_sites(model), run._drop):
        yield


def check(model: PreTrainedModel, scorer: Scorer, policy: SparsityPolicy, decided_at: DecidedAt) -> None:
    """Refuse what cannot work, before anything runs."""
    layers, experts = len(find_layers(model)), structure_of(model).experts
    if decided_at not in ("token", "prompt", "sequence"):
        raise UserError(f"sparsity.decided_at must be token, prompt or sequence, got {decided_at!r}")
    net = net_of(scorer)
    if net is not None:
        check_fit(model, net)
        if decided_at == "token" and policy.level > 0 and net.pooling != "scores":
            raise UserError(
                f"this predictor reads a whole prompt (pooling={net.pooling}) and scores no single token: "
                "give sparsity.decided_at=prompt or sequence, got token"
            )
    if any(not 0 <= layer < layers for layer in policy.dense_layers):
        raise UserError(
            f"sparsity.dense_layers must be in [0, {layers}) for this model, got {list(policy.dense_layers)}"
        )
    if policy.level > 0 and "neuron" in policy.kinds and policy.scope != "layer" and experts > 1:
        raise UserError(
            "neurons of experts are ranked within their expert, of which each loses the same share, and "
            f"need sparsity.scope=layer, got {policy.scope}: use that, or sparsity.kinds=[head]"
        )
    if policy.scope == "threshold" and policy.level > 0 and not scorer.taps:
        raise UserError(
            "sparsity.scope=threshold needs scores that differ between tokens, or prompts, and this scorer's "
            "are the same for all: use sparsity.scope=layer or global"
        )
    if policy.level == 0 or not scorer.taps:
        return
    if net is not None and not set(policy.kinds) <= set(net.kinds):
        raise UserError(
            f"sparsity.kinds must be among {net.kinds}, which are all that this predictor scores, got "
            f"{list(policy.kinds)}"
        )
    first = scorer.taps[0] if net is None else net.first
    if not set(range(first)) <= set(policy.dense_layers):
        raise UserError(
            "sparsity.dense_layers must hold every layer before the first that the predictor scores "
            f"({first}), got {list(policy.dense_layers)}"
        )
    if policy.scope == "global" and len(scorer.taps) > 1:
        raise UserError(
            f"sparsity.scope=global ranks over layers that a predictor with {len(scorer.taps)} taps has not "
            "scored yet: use sparsity.scope=layer, or a predictor with one tap"
        )


def net_of(scorer: Scorer) -> Predicted | None:
    """The trained net behind a scorer, if there is one."""
    scorer = scorer.predicted if isinstance(scorer, DenseFed) else scorer
    return scorer if isinstance(scorer, Predicted) else None


def check_thresholds(model: PreTrainedModel, policy: SparsityPolicy) -> None:
    for site in find_sites(model):
        unit = (site.layer, site.kind)
        if policy.prunes(unit):
            policy.threshold_of(unit)


def check_fill(model: PreTrainedModel, policy: SparsityPolicy, fill: Fill) -> None:
    for site in find_sites(model):
        unit = (site.layer, site.kind)
        if not policy.prunes(unit):
            continue
        if site.experts > 1:
            raise UserError(
                "the neurons of experts have no mean to stand in for them, as calibration counts tokens that "
                "were sent elsewhere: use sparsity.fill=zero, or sparsity.kinds=[head]"
            )
        asked, found = (site.units, site.width), fill.get(unit)
        if found is None or tuple(found.shape) != asked:
            has = "nothing" if found is None else f"values of shape {tuple(found.shape)}"
            raise UserError(
                f"fill must hold [units, width] = {asked} for the {site.kind}s of layer {site.layer}, and "
                f"has {has} there: fit the predictor again, or leave fill out"
            )


def check_fit(model: PreTrainedModel, predictor: Predicted) -> None:
    asked = predictor.shape
    counts = count_units(find_sites(model))
    units = {kind: counts[kind] for kind in predictor.kinds}
    found = Shape(len(find_layers(model)), width_of(model, predictor.source), units)
    if asked != found:
        raise UserError(
            f"the predictor is for a model of {asked.told()}, and this one has {found.told()}: "
            "load the model that it was trained for, or train one for this model"
        )


class Masked:
    """The masked executor's settings. A stand-in until the class that opens a run takes its place."""

    def refuses(self, facts: Facts) -> str | None:
        return None

    def options(self) -> dict[str, Any]:
        """As today's `sparse` takes them."""
        return {"executor": "masked"}

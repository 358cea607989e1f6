"""All criteria of a batch, from one forward and at most one backward; curvature takes one more."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from shadow import criteria as known
from shadow.criteria.activation import DEVIATIONS, SUMMABLE, Need, Summed
from shadow.criteria.statistics import STATISTICS, Shown
from shadow.criteria.weight import WEIGHT_FORMS, Weighed, WeightRead
from shadow.data.batches import IGNORED, Batch, Loss, logits_of
from shadow.errors import UserError
from shadow.models.kinds import find_sites
from shadow.models.sharded import anywhere
from shadow.models.sites import Site, SiteKey, values_of
from shadow.signals import Signal, differentiable_embeddings, hook_projections, hook_signals, hook_sites

Receive = Callable[[str, Site, known.Seen | Shown], None]

ADDED_UP = SUMMABLE | DEVIATIONS

LOSS_SCALES = (2.0**16, 2.0**11, 2.0**6, 2.0)  # float16 gradients vanish below 2**-24 and overflow at 2**16


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """logits: [B, T, V], labels: [B, T] -> [B, T]: cross-entropy in nats, 0 where the label is IGNORED."""
    return F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """-> [B]: the mean over each row's own loss tokens."""
    return token_losses(logits, labels).sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


def score(
    model: PreTrainedModel,
    batch: Batch,
    criteria: Sequence[str],
    receive: Receive,
    taps: Sequence[int] = (),
    loss: Loss = "answer",
    means: Mapping[SiteKey, Tensor] | None = None,
) -> dict[int, Tensor]:
    """Call receive(criterion, site, seen) for every criterion and site; a statistic's `seen` is `Shown`.

    means: [U, D] of every site's activation over the calibration, for `l2_deviation`.

    Returns the input states [B, T, E] of the layers `taps`. The loss back-propagated is the sum over rows of
    each row's own mean, so a row's scores do not depend on what else is in its batch. Only gradients of
    activations are computed, and a site's activation is let go as soon as its gradient has been reduced.
    Values at padding are meaningless. With a float16 model the loss is scaled up, and the pass made again
    with a smaller scale if that overflows: `receive` is then called again. Processes that share the model
    make it again together; of theirs `seen` must be used as it is received, for weights in it go away.
    """
    if "grasp" in criteria and model.dtype == torch.float16:
        raise UserError("criterion=grasp needs model.dtype=float32 or bfloat16, got float16")
    if means is None and set(criteria) & set(DEVIATIONS):
        raise UserError(f"criterion={next(iter(DEVIATIONS))} needs the calibration's means of activations")
    scaled = model.dtype == torch.float16 and any(map(known.needs_gradient, criteria))
    for scale in LOSS_SCALES if scaled else (1.0,):
        one = _Pass(model, batch, criteria, receive, loss, scale, means or {})
        states = one.run(taps)
        if not anywhere(model, one.overflowed):
            return states
    raise UserError(
        f"activations or gradients of this model are not finite in model.dtype={str(model.dtype)[6:]}: "
        "try bfloat16 or float32"
    )


class _Pass:
    """One forward with its backward. What waits for a gradient is held until then, in the model's dtype.

    Nobody receives what overflowed, nor what comes after it; the pass goes on to its end all the same, for
    processes that share the model make each step of it together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batch: Batch,
        criteria: Sequence[str],
        receive: Receive,
        loss: Loss,
        scale: float,
        means: Mapping[SiteKey, Tensor],
    ) -> None:
        self.model, self.batch, self.receive, self.loss, self.scale = model, batch, receive, loss, scale
        self.means, self.overflowed = means, False
        self.sites = find_sites(model)
        if any(site.experts > 1 for site in self.sites):
            require_seen(criteria)
        self.random = known.RANDOM in criteria
        self.weight_forms = [name for name in criteria if name in WEIGHT_FORMS]
        self.by_need: dict[Need, list[str]] = defaultdict(list)
        for name in criteria:
            found = ADDED_UP.get(name) or STATISTICS.get(name)
            if found is not None:
                self.by_need[found.needs].append(name)
        self.curved = bool(self.by_need["curvature"])
        self.backward = any(map(known.needs_gradient, criteria))
        self.waiting: dict[Site, Tensor] = {}
        self.weighed: set[Site] = set()
        self.seen: list[tuple[Site, Tensor]] = []  # in the graph, for the second backward

    def run(self, taps: Sequence[int]) -> dict[int, Tensor]:
        states: dict[int, Tensor] = {}

        def keep(signal: Signal, state: Tensor) -> None:
            states[signal.layer] = state.detach()

        with ExitStack() as stack:
            stack.callback(self.seen.clear)  # or the graph's hooks would hold the graph
            embedded = stack.enter_context(differentiable_embeddings(self.model)) if self.backward else []
            stack.enter_context(hook_sites(self.model, self.sites, self.see))
            for site in self.sites:
                self.listen(stack, site)
            stack.enter_context(hook_signals(self.model, [Signal(tap, "layer_input") for tap in taps], keep))
            # only this attention has a second derivative
            stack.enter_context(sdpa_kernel(SDPBackend.MATH) if self.curved else nullcontext())
            with torch.set_grad_enabled(self.backward):
                logits = logits_of(self.model, self.batch)
                if self.backward:
                    loss = row_losses(logits, self.batch.targets(self.loss)).sum() * self.scale
                    self.derive(loss, embedded)
        return states

    def derive(self, loss: Tensor, embedded: list[Tensor]) -> None:
        """The hooks that `see` and `listen` left reduce each gradient as it comes."""
        if not self.curved:
            torch.autograd.grad(loss, embedded)
            return
        tensors = [x for _, x in self.seen]
        grads = torch.autograd.grad(loss, tensors, create_graph=True)
        first = grads[0].device  # layers may lie on several
        norms = [(grad.detach().float() * grad.float()).sum().to(first) for grad in grads]
        squares = torch.stack(norms).sum()
        for (site, x), product in zip(self.seen, torch.autograd.grad(squares, tensors)):
            self.deliver("curvature", site, x.detach(), product)

    def see(self, site: Site, x: Tensor) -> None:
        act = x.detach()
        if self.random:
            self.receive(known.RANDOM, site, known.random_seen(site, act))
        self.deliver("activation", site, act, None)
        if self.by_need["deviation"]:
            mean = self.means[site.layer, site.kind].to(act.device)
            self.deliver("deviation", site, act.float() - mean, None)
        if site.kind == "head":
            self.deliver("pre-activation", site, act, None)
        if self.curved:
            self.seen.append((site, x))
        if self.by_need["gradient"]:
            self.waiting[site] = act

            def hook(grad: Tensor) -> None:
                if site in self.waiting:  # not in the second backward
                    self.deliver("gradient", site, self.waiting.pop(site), grad.detach())

            x.register_hook(hook)

    def deliver(self, need: Need, site: Site, act: Tensor, slope: Tensor | None) -> None:
        """act, slope: [B, T, U, D]. What is computed from them is float32."""
        names = self.by_need[need]
        if not names:
            return
        act = act.float()
        slope = None if slope is None else slope.float() / self.scale
        self.look(act if slope is None else slope)
        if self.overflowed:
            return
        for name in names:
            if name in STATISTICS:
                self.receive(name, site, Shown(act if slope is None else slope))
            else:
                criterion = ADDED_UP[name]
                self.receive(name, site, Summed(criterion.part(act, slope), criterion.finish))

    def listen(self, stack: ExitStack, site: Site) -> None:
        """To the projections around a site, for what is not seen at the site itself."""
        if self.by_need["pre-activation"] and site.kind == "neuron":

            def before(projection: nn.Linear, x: Tensor, y: Tensor) -> None:
                first = self.unflatten(y.detach())[..., : site.units]  # of a gate and more in one, the gate
                self.deliver("pre-activation", site, first[..., None], None)

            stack.enter_context(hook_projections(site.writers[:1], before))
        if self.weight_forms:
            reads: dict[nn.Linear, WeightRead] = {}
            projections = site.writers if site.kind == "neuron" else (site.module,)

            def weigh(projection: nn.Linear, x: Tensor, y: Tensor) -> None:
                given = x.detach()

                def hook(grad: Tensor) -> None:
                    if site in self.weighed:
                        return  # the second backward
                    reads[projection] = self.read(site, projection, given, grad.detach())
                    if len(reads) == len(projections):
                        self.weighed.add(site)
                        for name in [] if self.overflowed else self.weight_forms:
                            self.receive(name, site, Weighed(WEIGHT_FORMS[name], list(reads.values())))
                        reads.clear()

                y.register_hook(hook)

            stack.enter_context(hook_projections(projections, weigh))

    def read(self, site: Site, projection: nn.Linear, x: Tensor, grad: Tensor) -> WeightRead:
        given, wanted = self.unflatten(x).float(), self.unflatten(grad).float() / self.scale
        self.look(wanted)
        weight = values_of(projection).float()
        if site.kind == "neuron":  # a row each, or two where a gate and more are written in one
            own = torch.stack(wanted.split(site.units, -1), -1)  # [B, T, U, D], laid out as it reads
            return WeightRead(own, given, weight.unflatten(0, (-1, site.units)).transpose(0, 1))
        return WeightRead(
            given.unflatten(-1, (site.units, -1)), wanted, weight.T.unflatten(0, (site.units, -1))
        )

    def look(self, values: Tensor) -> None:
        self.overflowed |= not math.isfinite(values.sum())  # the sum is finite only if all that it sums is

    def unflatten(self, values: Tensor) -> Tensor:
        """[..., E] -> [B, T, E]: OPT flattens [B, T] before its FFN."""
        return values.view(*self.batch.ids.shape, values.shape[-1])


def require_seen(criteria: Sequence[str]) -> None:
    """Refuse, of a model with experts, what is not seen of their neurons."""
    unseen = {*WEIGHT_FORMS, *DEVIATIONS, "l2_norm_pre"} & set(criteria)
    if unseen:
        raise UserError(
            f"criterion={', '.join(sorted(unseen))} is not known of the neurons of experts, which are seen "
            "where they are read, at the tokens that were sent there: use l2_norm, griffin, plainact, "
            "snip, grad_norm or fisher"
        )

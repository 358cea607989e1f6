"""A model's calls on a GPU: prompts by the masked executor, later tokens from the weights of kept units."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from shadow.data.batches import Batch
from shadow.errors import UserError
from shadow.executors.calls import answering, begun, check_positions, counted_on, ids_of, require_left_padding
from shadow.executors.cpu.scoring import TOP, Rule, rule_of
from shadow.executors.gpu.cache import DeviceCache, taken_from
from shadow.executors.gpu.choice import Choice
from shadow.executors.gpu.decode import step
from shadow.executors.gpu.tuning import INTERPRETED
from shadow.executors.gpu.weights import place
from shadow.executors.masked import dropping
from shadow.executors.planner import Planner
from shadow.executors.run import real_positions
from shadow.models.cache_name import cache_of, named_cache
from shadow.models.sites import KINDS, Kind, SiteKey
from shadow.scorers.protocol import Scorer
from shadow.signals import Signal


class DeviceRule(NamedTuple):
    """Of one kind, int32 or float32 [L] each: see `shadow.executors.cpu.scoring.Rule`."""

    way: Tensor
    least: Tensor
    above: Tensor


class DeviceRun:
    """What `sparse(..., executor=Gathered())` yields for a model on a GPU, for generation."""

    def __init__(self, model: PreTrainedModel, planner: Planner) -> None:
        """planner: makes the plans of prompts, and counts."""
        self.model, self.planner, self.weights = model, planner, place(model, planner.constants)
        self.own_forward = model.forward
        self.each_token = planner.decides_each_token
        self.rule: Rule | None = rule_of(model, planner.policy) if self.each_token else None
        sizes, device = self.weights.sizes, model.device
        self.units: dict[Kind, tuple[int, int]] = {
            "head": (sizes.heads, sizes.head_width),
            "neuron": (sizes.neurons, 1),
        }
        self.rules: dict[Kind, DeviceRule] = {}
        if self.rule is not None:
            for index, kind in enumerate(KINDS):
                way, least, above = (torch.from_numpy(part[:, index]).to(device) for part in self.rule)
                self.rules[kind] = DeviceRule(way.int(), least.int(), above.contiguous())
        # of new tokens, counted on the device until somebody asks: rows, and units kept of each layer
        self.rows = torch.zeros((), dtype=torch.int64, device=device)
        self.kept = {kind: torch.zeros(sizes.layers, dtype=torch.int64, device=device) for kind in KINDS}

    @property
    def scorer(self) -> Scorer:
        return self.planner.scorer

    @property
    def plan(self) -> dict[SiteKey, Tensor]:
        return self.planner.plan

    def count(self) -> None:
        """Tell the planner of the tokens since it was told last."""
        rows = int(self.rows)
        for counted, (units, _) in self.units.items():
            for layer, kept in enumerate(self.kept[counted].tolist()):
                self.planner.total[layer, counted] += rows * units
                self.planner.kept[layer, counted] += kept
            self.kept[counted].zero_()
        self.rows.zero_()

    def achieved(self, kind: Kind) -> float:
        """Share of this kind's units that was skipped, over all layers and the real tokens run so far."""
        self.count()
        return self.planner.achieved(kind)

    def bytes(self) -> dict[str, float | dict[str, float]]:
        self.count()
        return self.planner.bytes()

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """-> [B, T, V]; the batch says where its rows and their prompts end. As the masked executor's."""
        batch = batch.to(self.model.device)
        self.planner.begin(batch.real(), batch.in_prompt())
        found = self.masked(batch.ids, attention_mask=batch.real().long(), use_cache=False).logits
        assert found is not None
        return found

    def masked(self, ids: Tensor, **how: Any) -> CausalLMOutputWithPast:
        """The model's own forward, without the units that the planner drops."""
        with dropping(self.model, self.planner):
            return self.own_forward(input_ids=ids, **how)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """As the model's own. A key-value cache is made and handed back unless use_cache is false."""
        input_ids = ids_of(input_ids, others)
        real, given = real_positions(input_ids, attention_mask), others.get("position_ids")
        going_on = begun(cache_of(others), DeviceCache)
        if going_on is not None:
            check_positions(given, counted_on(going_on, input_ids.shape[1]), real)
            steps = [self.step(going_on, ids, here) for ids, here in zip(input_ids.T, real.T)]
            return CausalLMOutputWithPast(logits=torch.stack(steps, 1), **named_cache(going_on))
        require_left_padding(real)
        self.planner.begin(real, real)
        start = real.long().argmax(1)
        counted = (torch.arange(input_ids.shape[1], device=real.device) - start[:, None]).clamp(min=0)
        check_positions(given, counted, real)
        caching = others.get("use_cache") is not False
        found = self.masked(
            input_ids,
            attention_mask=real.long(),
            position_ids=counted,
            use_cache=caching,
            logits_to_keep=logits_to_keep,
        )
        assert found.logits is not None
        logits = found.logits.float()
        if not caching:
            return CausalLMOutputWithPast(logits=logits)
        left, choices = taken_from(cache_of(found)), self.first_choices(len(input_ids))
        cache = DeviceCache(self.weights.sizes, left, start, self.weights.turns, choices)
        return CausalLMOutputWithPast(logits=logits, **named_cache(cache))

    def first_choices(self, rows: int) -> dict[Kind, Choice]:
        """The plan that all tokens follow, or everything, of which tokens then choose."""
        layers = self.weights.sizes.layers
        choices = {}
        for index, kind in enumerate(KINDS):
            units, width = self.units[kind]
            choice = choices[kind] = Choice(rows, layers, units, width, self.model.device)
            if self.rule is None:
                for layer in range(layers):
                    if (layer, kind) in self.plan:
                        choice.keep[layer] = self.plan[layer, kind].to(choice.keep)
            choice.list(range(layers))
            if self.rule is None:
                choice.at_most(choice.count.tolist())
            else:
                way, least = self.rule.way[:, index], self.rule.keep[:, index]
                choice.at_most([int(n) * rows if how == TOP else units for how, n in zip(way, least)])
        return choices

    def step(self, cache: DeviceCache, ids: Tensor, real: Tensor) -> Tensor:
        """ids: [B], one token of each row; real: bool [B] -> logits [B, V]."""
        cache.make_room()
        taps = {signal.layer for signal in self.planner.signals} if self.each_token else set()

        def enter(layer: int, state: Tensor) -> None:
            if layer in taps:
                self.choose(cache.choices, layer, state)

        logits = step(self.weights, cache, enter, ids)
        cache.advance()
        self.rows += real.sum()
        for kind, choice in cache.choices.items():
            self.kept[kind] += (choice.kept * real).sum(1)
        return logits

    def choose(self, choices: Mapping[Kind, Choice], tap: int, state: Tensor) -> None:
        """state: [B, E] -> choices of the layers that this tap scores."""
        signal = Signal(tap, "layer_input")
        scores = self.scorer.scores(signal, state[:, None], None)
        if self.planner.on_scores is not None:
            self.planner.on_scores(signal, scores)
        for kind, choice in choices.items():
            layers = sorted(layer for layer, scored in scores if scored == kind)
            if layers:
                of_layers = torch.stack([scores[layer, kind][:, 0] for layer in layers], 1)
                choice.choose(of_layers, range(layers[0], layers[-1] + 1), *self.rules[kind])


@contextmanager
def on_device(model: PreTrainedModel, planner: Planner) -> Iterator[DeviceRun]:
    """Inside the block the model's forward is a DeviceRun's; afterwards it is its own again."""
    if model.device.type != "cuda" and not INTERPRETED:
        raise UserError(f"executor=gathered runs on the CPU and on CUDA, and this model is on {model.device}")
    run = DeviceRun(model, planner)
    with answering(model, run.forward):
        yield run

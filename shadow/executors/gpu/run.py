"""A model's calls on a GPU: prompts by the masked executor, later tokens from the weights of kept units."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from shadow.data.batches import Batch
from shadow.errors import UserError
from shadow.executors.cache_layer import HeldLayer, known_of, lay_in, lengthen, lying, memory_of
from shadow.executors.calls import (
    Answering,
    answering,
    places_of,
    require_fitting,
)
from shadow.executors.cpu.scoring import TOP, Rule, rule_of
from shadow.executors.given import Given
from shadow.executors.gpu.cache import DeviceKeyValues, taken_from
from shadow.executors.gpu.channel_layers import ChannelLayers
from shadow.executors.gpu.choice import Choice
from shadow.executors.gpu.decode import attention, neurons, step
from shadow.executors.gpu.tuning import INTERPRETED
from shadow.executors.gpu.weights import place
from shadow.executors.masked import dropping
from shadow.executors.planner import Planner
from shadow.executors.turning import Ended, saved_row_by_row, straighten
from shadow.models.cache_name import cache_of
from shadow.models.sites import KINDS, Kind, SiteKey
from shadow.plans.rules import Plan
from shadow.scorers.protocol import Scorer
from shadow.signals import Signal


class DeviceRule(NamedTuple):
    """Of one kind, int32 or float32 [L] each: see `shadow.executors.cpu.scoring.Rule`."""

    way: Tensor
    least: Tensor
    above: Tensor


class DeviceRun(Answering):
    """What `sparse(..., executor=Gathered())` yields for a model on a GPU, for generation."""

    def __init__(self, model: PreTrainedModel, planner: Planner) -> None:
        """planner: makes the plans of prompts, and counts."""
        by_channel = any(site.kind == "channel" for site in planner.sites.values())
        self.weights = place(model, None if by_channel else planner.constants)
        self.channels = ChannelLayers(model, planner) if by_channel else None
        super().__init__(model)  # once parameters lie as this run wants them: it notes where
        self.model, self.planner = model, planner
        self.own_forward = model.forward
        self.each_token = planner.decides_each_token and not by_channel
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
        self.counted: dict[str, int] = {slot: units for slot, (units, _) in self.units.items()}
        if self.channels is not None:
            self.counted = self.channels.units
        # of new tokens, counted on the device until somebody asks: rows, and units kept of each layer
        self.rows = torch.zeros((), dtype=torch.int64, device=device)
        self.kept = {
            slot: torch.zeros(sizes.layers, dtype=torch.int64, device=device) for slot in self.counted
        }

    @property
    def scorer(self) -> Scorer:
        return self.planner.scorer

    @property
    def plan(self) -> dict[SiteKey, Tensor]:
        return self.planner.plan

    def count(self) -> None:
        """Tell the planner of the tokens since it was told last."""
        rows = int(self.rows)
        self.planner.counts.tokens += rows
        for slot, units in self.counted.items():
            for layer, kept in enumerate(self.kept[slot].tolist()):
                self.planner.total[layer, slot] += rows * units
                self.planner.kept[layer, slot] += kept
            self.kept[slot].zero_()
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
        with self.lock, self.planner.calling(batch.real(), batch.in_prompt()):
            found = self.masked(batch.ids, attention_mask=batch.real().long(), use_cache=False).logits
        assert found is not None
        return found

    def masked(self, ids: Tensor, **how: Any) -> CausalLMOutputWithPast:
        """The model's own forward, without the units that the planner drops."""
        with dropping(self.model, self.planner):
            return self.own_forward(input_ids=ids, **how)

    def begin(self, cache: DynamicCache | None, given: Given, positions: Tensor | None) -> Tensor:
        """-> logits of the positions asked for; what is to be remembered is put in the cache."""
        ids, planner = given.read, self.planner
        places = places_of(ids, given.mask, positions, 0, None, True)
        require_begun(places.start, places.offset, ids.shape[1])
        known = places.known(ids.device)
        real, counted = (torch.from_numpy(part).to(ids.device) for part in (places.real, places.positions))
        with planner.calling(real, planner.prompt_of(real, 0), given) as call:
            found = self.masked(
                ids,
                attention_mask=real.long(),
                position_ids=counted.clamp(min=0),
                use_cache=cache is not None,
                logits_to_keep=given.logits_to_keep,
            )
        if cache is not None:
            choices = self.first_choices(len(ids), call.plan)
            lay_in(cache, self.memory(taken_from(cache_of(found)), known.start, choices, 0))
            planner.remember(call, ids, cache)
        assert found.logits is not None
        return found.logits.float()

    def go_on(self, cache: DynamicCache, given: Given, positions: Tensor | None) -> Tensor:
        """-> logits [B, T, V] of the tokens behind those that the cache holds, one after the other."""
        ids, before, memory, sizes = (
            given.read,
            given.start,
            lying(cache, DeviceKeyValues),
            self.weights.sizes,
        )
        rows, tokens = ids.shape
        lies = memory is not None and memory.owner is self and memory.rows == rows
        if not lies:
            require_fitting(cache, ids, sizes)
        places = places_of(ids, given.mask, positions, before, known_of(cache, rows), not sizes.rotary)
        require_begun(places.start, places.offset, before)
        self.planner.require_behind_prompt(before)
        plan = self.planner.standing | (self.planner.plan_before(given) or {})
        if memory is None or not lies or memory.room < before + tokens:
            memory = self.pack(cache, places.known(ids.device).start, plan, before + tokens)
        reals = torch.from_numpy(places.real).to(ids.device)
        logits = [self.step(memory, now, real) for now, real in zip(ids.T, reals.T)]
        lengthen(cache, memory)
        return torch.stack(logits, 1)

    def pack(self, cache: DynamicCache, start: Tensor, plan: Plan, columns: int) -> DeviceKeyValues:
        """Put what a cache holds in a memory of this run, with room for so many columns; plan: of its texts,
        where another reader has filled it."""
        first, held = cache.layers[0], memory_of(cache, DeviceKeyValues)
        own = held is not None and held.owner is self and known_of(cache, len(start)) is not None
        if held is not None and own:
            assert isinstance(first, HeldLayer)
            choices = {kind: choice.of_rows(first.order) for kind, choice in held.choices.items()}
        else:
            choices = self.first_choices(len(start), plan)
        room = max(columns, 2 * held.room) if held is not None and held.room < columns else columns
        memory = self.memory(taken_from(cache), start, choices, room)
        lay_in(cache, memory)
        return memory

    def memory(
        self, left: Sequence[tuple[Tensor, Tensor]], start: Tensor, choices: dict[Kind, Choice], room: int
    ) -> DeviceKeyValues:
        device, dtype = self.model.device, self.weights.embedding.dtype
        left = [(keys.to(device, dtype), values.to(device, dtype)) for keys, values in left]
        choices = self.choices_of(choices)
        return DeviceKeyValues(self.weights.sizes, left, start, self.weights.turns, choices, self, room)

    def first_choices(self, rows: int, plan: Plan) -> dict[Kind, Choice]:
        """The plan that all tokens follow, or everything, of which tokens then choose."""
        layers = self.weights.sizes.layers
        choices = {}
        for kind in KINDS:
            units, width = self.units[kind]
            choice = choices[kind] = Choice(rows, layers, units, width, self.model.device)
            if self.rule is None:
                for layer in range(layers):
                    if (layer, kind) in plan:
                        choice.keep[layer] = plan[layer, kind].to(choice.keep)
            choice.list(range(layers))
        return choices

    def choices_of(self, choices: dict[Kind, Choice]) -> dict[Kind, Choice]:
        """The same, which know how many units may stay of each layer."""
        for index, kind in enumerate(KINDS):
            choice, (units, _) = choices[kind], self.units[kind]
            if self.rule is None:
                choice.at_most(choice.count.tolist())
            else:
                way, least = self.rule.way[:, index], self.rule.keep[:, index]
                rows = choice.keep.shape[1]
                choice.at_most([int(n) * rows if how == TOP else units for how, n in zip(way, least)])
        return choices

    def step(self, memory: DeviceKeyValues, ids: Tensor, real: Tensor) -> Tensor:
        """ids: [B], one token of each row; real: bool [B] -> logits [B, V]."""
        taps = {signal.layer for signal in self.planner.signals} if self.each_token else set()
        weights, channels = self.weights, self.channels

        def through(index: int, h: Tensor) -> None:
            if channels is not None:
                channels.run(weights, memory, index, h)
                return
            if index in taps:
                self.choose(memory.choices, index, h)
            attention(weights, weights.layers[index], index, memory, h)
            neurons(weights, weights.layers[index], index, memory, h)

        logits = step(weights, memory, through, ids)
        memory.advance()
        self.rows += real.sum()
        if channels is not None:
            channels.add_kept(self.kept, real)
            return logits
        for kind, choice in memory.choices.items():
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


def require_begun(start: np.ndarray, offset: np.ndarray, columns: int) -> None:
    """What kernels read begins at each row's first real token, and so do its positions."""
    if ((start >= columns) | (start != offset)).any():
        raise UserError(
            "executor=gathered on a GPU needs a real token in each row of the first call, and positions that "
            "are counted from it: give position_ids of the attention_mask, or use executor=masked"
        )


@contextmanager
def on_device(model: PreTrainedModel, planner: Planner) -> Iterator[DeviceRun]:
    """Inside the block the model's forward is a DeviceRun's; afterwards it is its own again."""
    if model.device.type != "cuda" and not INTERPRETED:
        raise UserError(f"executor=gathered runs on the CPU and on CUDA, and this model is on {model.device}")
    run = DeviceRun(model, planner)
    try:
        with answering(model, run.forward, planner.require_call), saved_row_by_row(model):
            yield run
    finally:
        run.weights = run.unchanged = Ended()  # type: ignore[assignment]
        straighten(model)

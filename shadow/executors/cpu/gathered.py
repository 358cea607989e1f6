"""The gathered executor: a model's calls, answered from the weights of kept units."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from shadow.data.batches import Batch
from shadow.executors.cache_layer import (
    HeldLayer,
    Known,
    known_of,
    lay_in,
    layers_of,
    lengthen,
    lying,
    memory_of,
)
from shadow.executors.call import Call
from shadow.executors.calls import (
    Answering,
    Places,
    places_of,
    require_fitting,
    require_known,
    require_prompts,
)
from shadow.executors.cpu import products
from shadow.executors.cpu.bench import empty_bench
from shadow.executors.cpu.cache import (
    Decided,
    KeyValues,
    Remembered,
    nothing_yet,
    remembered,
    room_for,
)
from shadow.executors.cpu.channel_tokens import ChannelTokens
from shadow.executors.cpu.channels import ChannelWeights, units_of
from shadow.executors.cpu.compact import Plan, compact, of_rows, whole_plan
from shadow.executors.cpu.decode import Bench, step
from shadow.executors.cpu.decode_grouped import step_grouped
from shadow.executors.cpu.in_blocks import Blocks
from shadow.executors.cpu.new_tokens import NewTokens
from shadow.executors.cpu.prefill import Fills, Prompt, needed, prefill
from shadow.executors.cpu.products import Products
from shadow.executors.cpu.row_blocks import RowBlocks
from shadow.executors.cpu.scoring import NEURONS, Choice, Nets, kept_by, no_nets, no_rule, pack_nets, rule_of
from shadow.executors.cpu.team import Team
from shadow.executors.cpu.weights import Weights, storage_of
from shadow.executors.families import describe
from shadow.executors.given import Given
from shadow.executors.options import BITS, OWN
from shadow.executors.planner import Planner
from shadow.models.sites import Kind, SiteKey
from shadow.plans.rules import Plan as SitePlan
from shadow.scorers.predicted import Predicted
from shadow.scorers.protocol import Scorer

MANY, MANY_BY_CHANNELS = 4, 6  # positions that are faster together than one by one
Read = list[Remembered] | KeyValues  # what a prompt leaves


class GatheredRun(Answering):
    """What `sparse(..., executor=Gathered())` yields on the CPU, for generation.

    Prompts go through torch's products, or in blocks where states are rounded; each later token goes through
    one compiled call, while torch itself has one thread. Logits are float32, whatever the storage.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        planner: Planner,
        weights: Weights | ChannelWeights,
        late_keys: bool = False,
        compact: bool = False,
        exact: bool = False,
    ) -> None:
        """planner: makes the plans, and counts; late_keys: a token's keys and values are computed when they
        are first needed; compact: the rows of neurons that a prompt keeps are copied for what follows; exact:
        states are not rounded, where weights are in 8 or 4 bits."""
        super().__init__(model)
        self.planner, self.weights, self.late_keys, self.compact = planner, weights, late_keys, compact
        self.exact, self.team = exact, Team()
        self.turns = describe(model)[1].turns
        self.each_token = planner.decides_each_token
        self.channels: ChannelTokens | None = None
        if isinstance(weights, ChannelWeights):
            self.channels = ChannelTokens(model, planner, weights, self.team)
        self.fills = Fills(weights, planner.constants)
        self.storage = storage_of(weights.down)
        self.nets: Nets = no_nets(self.storage)
        self.rule = no_rule(weights.sizes.layers)
        if self.each_token and self.channels is None:
            assert isinstance(planner.scorer, Predicted)
            units: dict[Kind, int] = {"head": weights.sizes.heads, "neuron": weights.sizes.neurons}
            self.nets = pack_nets(planner.scorer, units, self.storage)
            self.nets = self.nets._replace(exact=exact)
            self.rule = rule_of(model, planner.policy)
        self.units = units_of(weights)
        self.new_tokens = NewTokens(self.units)
        self.products: Products = products
        self.in_blocks: ChannelTokens | RowBlocks | None = None  # reads many positions in one compiled call
        if self.storage in BITS and not exact:
            self.products = Blocks(self.team)
            self.in_blocks = self.channels
            if isinstance(weights, Weights):
                self.in_blocks = RowBlocks(planner, weights, self.fills, self.nets, self.rule, self.team)
        self.bench: Bench | None = None

    @property
    def scorer(self) -> Scorer:
        return self.planner.scorer

    @property
    def plan(self) -> dict[SiteKey, Tensor]:
        return self.planner.plan

    def achieved(self, kind: Kind) -> float:
        """Share of this kind's units that was skipped, over all layers and the real tokens run so far."""
        self.new_tokens.tell(self.planner)
        return self.planner.achieved(kind)

    def bytes(self) -> dict[str, float | dict[str, float]]:
        self.new_tokens.tell(self.planner)
        return self.planner.bytes()

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """-> [B, T, V]; the batch says where its rows and their prompts end."""
        start = torch.zeros_like(batch.ids[:, 0])
        with self.lock, self.planner.calling(batch.real(), batch.in_prompt()) as call:
            known = Known(start, start)
            return self.vocabulary(self.read(batch.ids, known, call, batch.ids.shape[1])[0])

    def read(self, ids: Tensor, known: Known, call: Call, room: int) -> tuple[Tensor, Read]:
        """-> the last norm's output [B, T, E], and what is left for the tokens to come, which may lie in a
        memory with so much room already."""
        torch.set_num_threads(self.team.members)
        nothing = nothing_yet(self.weights.sizes, len(ids))
        if isinstance(self.in_blocks, RowBlocks):
            memory = self.memory(nothing, known, {}, room)
            h = self.in_blocks.read(memory, ids)
            if self.each_token or not call.plan:
                return h, memory
            return h, needed(memory, call.plan)
        if self.in_blocks and self.planner.on_scores is None:
            memory = self.memory(nothing, known, call.plan, room)
            h, kept = self.in_blocks.pass_on(memory, ids, call.positions.real, call.positions.whole)
            for (key, _), stay in zip(self.units, kept.ravel().tolist()):
                call.kept[key] += stay
            return h, memory
        prompt = Prompt(ids, known.start, known.offset)
        if self.channels is not None:
            return self.channels.read(self.turns, prompt, self.products)
        assert isinstance(self.weights, Weights)
        return prefill(self.weights, self.turns, prompt, self.fills, self.planner)

    def vocabulary(self, h: Tensor) -> Tensor:
        """h: [..., E] -> logits [..., V]."""
        bias = torch.from_numpy(self.weights.vocabulary_bias[0])
        return self.products.across(h, self.weights.vocabulary, 0, bias=bias).contiguous()

    def begin(self, cache: DynamicCache | None, given: Given, positions: Tensor | None) -> Tensor:
        """-> logits [B, T', V] of the positions asked for; what is to be remembered is put in the cache."""
        ids, planner = given.read, self.planner
        places = places_of(ids, given.mask, positions, 0, None, not self.weights.sizes.rotary)
        self.require_known(ids, places)
        require_prompts(places.real, ids.shape[1], planner.here.columns)
        known, room = places.known(ids.device), room_for(ids.shape[1], None)
        real = torch.from_numpy(places.real)
        with planner.calling(real, planner.prompt_of(real, 0), given) as call:
            h, left = self.read(ids, known, call, room)
        if cache is not None:
            found = left if isinstance(left, KeyValues) else self.memory(left, known, call.plan, room)
            lay_in(cache, found)
            planner.remember(call, ids, cache)
        return self.vocabulary(h[:, given.last()])

    def go_on(self, cache: DynamicCache, given: Given, positions: Tensor | None) -> Tensor:
        """-> logits [B, T, V] of the tokens behind those that the cache holds, one after the other."""
        ids, before, memory, rotary = (
            given.read,
            given.start,
            lying(cache, KeyValues),
            self.weights.sizes.rotary,
        )
        rows, tokens = ids.shape
        lies = memory is not None and memory.decided.owner is self and memory.rows == rows
        if not lies:
            require_fitting(cache, ids, self.weights.sizes)
        places = places_of(ids, given.mask, positions, before, known_of(cache, rows), not rotary)
        self.require_known(ids, places)
        require_prompts(places.real, before + tokens, self.planner.here.columns)
        self.planner.require_behind_prompt(before)
        plan = self.planner.plan_before(given)
        if memory is None or not lies or memory.room < before + tokens:
            memory = self.pack(cache, places, self.planner.standing | (plan or {}), before + tokens)
        memory.stand(places.start, places.offset)
        many = MANY if self.channels is None else MANY_BY_CHANNELS
        if self.in_blocks and ids.numel() >= many and memory.decided.plan.weights is self.weights:
            torch.set_num_threads(self.team.members)
            h, kept = self.in_blocks.pass_on(memory, ids, torch.from_numpy(places.real))
            self.new_tokens.add(kept, int(places.real.sum()))
            lengthen(cache, memory)
            return self.vocabulary(h)
        logits = [self.step(memory, now, real) for now, real in zip(ids.numpy().T, places.real.T)]
        lengthen(cache, memory)
        return torch.stack(logits, 1)

    def pack(self, cache: DynamicCache, places: Places, plan: SitePlan, columns: int) -> KeyValues:
        """Put what a cache holds in a memory of this run, with room for so many columns; plan: of its texts,
        where another reader has filled it."""
        rows, first, held = len(places.start), cache.layers[0], memory_of(cache, KeyValues)
        known = places.known(torch.device("cpu"))
        own = held is not None and held.decided.owner is self and known_of(cache, rows) is not None
        if held is not None and own:
            assert isinstance(first, HeldLayer)
            followed: Plan | SitePlan = of_rows(held.decided.plan, first.order)
        else:
            followed = plan
        layers = [remembered(layer, own) for layer in layers_of(cache)]
        memory = self.memory(layers, known, followed, room_for(columns, held if own else None))
        lay_in(cache, memory)
        return memory

    def memory(
        self, layers: Sequence[Remembered], known: Known, plan: Plan | SitePlan, room: int
    ) -> KeyValues:
        """plan: what its texts follow, or what of it is decided."""
        if not isinstance(plan, Plan):
            plan = self.first_plan(layers[0].keys.shape[0], plan)
        decided = Decided(plan, self)
        return KeyValues(self.weights.sizes, layers, known, self.turns, self.late_keys, decided, room)

    def require_known(self, ids: Tensor, places: Places) -> None:
        sizes = self.weights.sizes
        learnt = None if sizes.rotary else len(self.weights.positions) - sizes.first
        require_known(ids.numpy(), places.positions, sizes.vocabulary, learnt)

    def step(self, memory: KeyValues, ids: np.ndarray, real: np.ndarray) -> Tensor:
        """ids: [B], one token of each row; real: bool [B] -> logits [B, V]."""
        # torch's own threads keep a core busy for a while after each small operation
        torch.set_num_threads(1)
        weights, choice, fill = memory.decided.plan
        bench, position = self.room_to_work(len(ids), memory.room, fill), memory.length
        if self.channels is not None:
            held = memory.up_to(position)
            kept = self.channels.run(self.team, choice, held, bench, ids, real, position)
            memory.length += 1
            self.new_tokens.add(kept, int(real.sum()))
            return torch.from_numpy(bench.logits.copy())
        before = choice.kept.copy()
        self.team.run(
            step if self.storage in OWN else step_grouped,
            weights,
            self.nets,
            self.rule,
            choice,
            memory.up_to(position),
            bench,
            ids,
            real,
            position,
        )
        memory.length += 1
        self.count(choice, choice.kept - before, real)
        return torch.from_numpy(bench.logits.copy())

    def count(self, choice: Choice, kept: np.ndarray, real: np.ndarray) -> None:
        """kept: [L, 2], of the layers that this token chose; of the others the choice has not changed."""
        rows = int(real.sum())
        chosen = self.nets.taps[0, 1] if len(self.nets.taps) else self.weights.sizes.layers
        if len(real) == 1:
            kept[:chosen] = choice.counts[:chosen] * rows
        else:
            kept = kept_by(choice, kept, chosen, torch.from_numpy(real))
        self.new_tokens.add(kept, rows)

    def first_plan(self, rows: int, decided: SitePlan) -> Plan:
        fill = self.fills.of["neuron"].flatten(1).numpy()
        plan = whole_plan(self.weights, rows, {} if self.each_token else decided, fill)
        drops = bool((plan.choice.counts[:, NEURONS] < self.weights.sizes.neurons).any())
        return compact(plan) if self.compact and drops else plan

    def room_to_work(self, rows: int, room: int, fill: np.ndarray) -> Bench:
        """fill: [L, F], what dropped neurons say in the plan that is followed."""
        bench, members = self.bench, self.team.members
        if bench is None or bench.h.shape[0] != rows or bench.weights.shape[1] < room:
            bench = empty_bench(self.weights, self.nets, self.fills, members, rows, room, self.exact)
        if bench.fill_neurons is not fill:
            bench = bench._replace(fill_neurons=fill)
        self.bench = bench
        return bench

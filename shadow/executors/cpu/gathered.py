"""The gathered executor: a model's calls, answered from the weights of kept units."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from shadow.data.batches import Batch
from shadow.executors.calls import (
    answering,
    begun,
    check_positions,
    counted_on,
    ids_of,
    require_known,
    require_left_padding,
)
from shadow.executors.cpu.cache import GatheredCache
from shadow.executors.cpu.compact import Plan, compact
from shadow.executors.cpu.decode import Bench, step
from shadow.executors.cpu.prefill import Fills, Prompt, prefill
from shadow.executors.cpu.products import across
from shadow.executors.cpu.scoring import NEURONS, Choice, Nets, no_nets, no_rule, pack_nets, rule_of
from shadow.executors.cpu.scoring import list_layer as list_choice
from shadow.executors.cpu.storage import CHUNK, lined_up
from shadow.executors.cpu.team import Team
from shadow.executors.cpu.weights import Weights, pack
from shadow.executors.families import describe
from shadow.executors.options import KVPolicy, Storage
from shadow.executors.planner import Planner
from shadow.executors.run import real_positions
from shadow.models.cache_name import cache_of, named_cache
from shadow.models.sites import KINDS, Kind, SiteKey
from shadow.scorers.predicted import Predicted
from shadow.scorers.protocol import Scorer


class GatheredRun:
    """What `sparse(..., executor=Gathered())` yields on the CPU, for generation.

    Prompts go through torch's products, and each later token through one compiled call, while torch itself
    has one thread. The logits are float32, whatever the storage.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        planner: Planner,
        weights: Weights,
        late_keys: bool = False,
        compact: bool = False,
    ) -> None:
        """planner: makes the plans, and counts; late_keys: a token's keys and values are computed when they
        are first needed; compact: the rows of neurons that a prompt keeps are copied for what follows."""
        self.planner, self.weights, self.late_keys, self.compact = planner, weights, late_keys, compact
        self.turns = describe(model)[1].turns
        self.fills = Fills(weights, planner.constants)
        self.each_token = planner.decides_each_token
        self.nets: Nets = no_nets()
        self.rule = no_rule(weights.sizes.layers)
        if self.each_token:
            assert isinstance(planner.scorer, Predicted)
            units: dict[Kind, int] = {"head": weights.sizes.heads, "neuron": weights.sizes.neurons}
            exact = weights.up.values.dtype == np.float32
            self.nets = pack_nets(planner.scorer, units, "float32" if exact else "bfloat16")
            self.rule = rule_of(model, planner.policy)
        self.total: Counter[SiteKey] = Counter()  # of new tokens alone, where the planner counts prompts too
        self.kept: Counter[SiteKey] = Counter()
        self.team = Team()
        self.bench: Bench | None = None

    @property
    def scorer(self) -> Scorer:
        return self.planner.scorer

    @property
    def plan(self) -> dict[SiteKey, Tensor]:
        return self.planner.plan

    def achieved(self, kind: Kind) -> float:
        """Share of this kind's units that was skipped, over all layers and the real tokens run so far."""
        return self.planner.achieved(kind)

    def bytes(self) -> dict[str, float | dict[str, float]]:
        return self.planner.bytes()

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """-> [B, T, V]; the batch says where its rows and their prompts end."""
        self.planner.begin(batch.real(), batch.in_prompt())
        prompt = Prompt(batch.ids, torch.ones_like(batch.ids, dtype=torch.bool))
        h, _ = self.read(prompt)
        return self.vocabulary(h)

    def read(self, prompt: Prompt) -> tuple[Tensor, list]:
        torch.set_num_threads(self.team.members)
        signals = {signal.layer: signal for signal in self.planner.signals}

        def enter(layer: int, state: Tensor) -> None:
            if layer in signals:
                self.planner.decide(signals[layer], state)

        return prefill(
            self.weights,
            self.turns,
            prompt,
            self.fills,
            self.planner.keep,
            enter,
            lambda layer: None if self.each_token else self.planner.plan.get((layer, "head")),
        )

    def vocabulary(self, h: Tensor) -> Tensor:
        """h: [..., E] -> logits [..., V]."""
        bias = torch.from_numpy(self.weights.vocabulary_bias[0])
        return across(h, self.weights.vocabulary, 0, bias=bias)

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
        going_on = begun(cache_of(others), GatheredCache)
        if going_on is not None:
            counted = counted_on(going_on, input_ids.shape[1])
            check_positions(given, counted, real)
            self.require_known(input_ids, counted)
            steps = [self.step(going_on, ids, here) for ids, here in zip(input_ids.T, real.T)]
            return CausalLMOutputWithPast(logits=torch.stack(steps, 1), **named_cache(going_on))
        require_left_padding(real)
        self.planner.begin(real, real)
        prompt = Prompt(input_ids, real)
        check_positions(given, prompt.positions, real)
        self.require_known(input_ids, prompt.positions)
        h, left = self.read(prompt)
        logits = self.vocabulary(h[:, -logits_to_keep:])
        if others.get("use_cache") is False:
            return CausalLMOutputWithPast(logits=logits)
        plan = self.first_plan(len(input_ids))
        cache = GatheredCache(self.weights.sizes, left, prompt.start, self.turns, self.late_keys, plan)
        return CausalLMOutputWithPast(logits=logits, **named_cache(cache))

    def require_known(self, ids: Tensor, counted: Tensor) -> None:
        sizes = self.weights.sizes
        learnt = None if sizes.rotary else len(self.weights.positions) - sizes.first
        require_known(ids, counted, sizes.vocabulary, learnt)

    def step(self, cache: GatheredCache, ids: Tensor, real: Tensor) -> Tensor:
        """ids: [B], one token of each row; real: bool [B] -> logits [B, V]."""
        torch.set_num_threads(
            1
        )  # torch's own threads keep a core busy for a while after each small operation
        cache.make_room()
        bench, (weights, choice, fill) = self.room_to_work(len(ids), cache.room), cache.plan
        before = choice.kept.copy()
        self.team.run(
            step,
            weights,
            self.nets,
            self.rule,
            choice,
            cache.memory,
            bench._replace(fill_neurons=fill),
            ids.numpy(),
            real.numpy(),
            cache.length,
        )
        cache.length += 1
        self.count(choice, choice.kept - before, real.numpy())
        return torch.from_numpy(bench.logits.copy())

    def count(self, choice: Choice, kept: np.ndarray, real: np.ndarray) -> None:
        """kept: [L, 2], of the layers that this token chose; of the others the choice has not changed."""
        sizes, planner, rows = self.weights.sizes, self.planner, int(real.sum())
        chosen = self.nets.taps[0, 1] if len(self.nets.taps) else sizes.layers
        whole = ((choice.heads, sizes.heads), (choice.neurons, sizes.neurons))
        for layer in range(sizes.layers):
            for index, kind in enumerate(KINDS):
                keep, units = whole[index]
                stay = kept[layer, index] if layer >= chosen else keep[real, layer].sum()
                for counts in (planner, self):
                    counts.total[layer, kind] += rows * units
                    counts.kept[layer, kind] += int(stay)

    def first_plan(self, rows: int) -> Plan:
        """What all tokens follow, or everything, of which tokens then choose."""
        sizes = self.weights.sizes
        choice = Choice(
            heads=np.ones((rows, sizes.layers, sizes.heads), np.bool_),
            neurons=np.ones((rows, sizes.layers, sizes.neurons), np.bool_),
            head_list=np.zeros((sizes.layers, sizes.heads), np.int32),
            neuron_list=np.zeros((sizes.layers, sizes.neurons), np.int32),
            counts=np.zeros((sizes.layers, 2), np.int64),
            kept=np.zeros((sizes.layers, 2), np.int64),
        )
        for layer in range(sizes.layers):
            for index, kind in enumerate(KINDS):
                keep = None if self.each_token else self.planner.plan.get((layer, kind))
                if keep is not None:
                    (choice.heads, choice.neurons)[index][:, layer] = keep.numpy()
                list_choice(choice, layer, index)
        plan = Plan(self.weights, choice, self.fills.of["neuron"].flatten(1).numpy())
        drops = bool((choice.counts[:, NEURONS] < sizes.neurons).any())
        return compact(plan) if self.compact and drops else plan

    def room_to_work(self, rows: int, room: int) -> Bench:
        sizes, members = self.weights.sizes, self.team.members
        if self.bench is not None and self.bench.h.shape[0] == rows and self.bench.weights.shape[1] >= room:
            return self.bench
        # a line more than is used where a member's own begins, or two threads would write to one cache line
        inner = sizes.heads * sizes.head_width
        stored = sizes.kv_heads * sizes.head_width

        def empty(*shape: int) -> np.ndarray:
            return lined_up(shape, np.dtype(np.float32))

        self.bench = Bench(
            h=empty(rows, sizes.width),
            x=empty(members, rows + 1, sizes.width),
            query=empty(rows, inner),
            key=empty(rows, stored),
            value=empty(rows, stored),
            context=empty(rows, inner),
            sums=empty(members, rows + 1, sizes.width),
            up=empty(rows, sizes.neurons),
            gate=empty(rows, sizes.neurons),
            lines=np.empty((members, CHUNK + 16), np.int32),
            factors=empty(members, CHUNK + 16),
            weights=empty(members, room + 32),
            turned=empty(members, 3, sizes.head_width),
            scaled=empty(members, rows, sizes.width),
            hidden=empty(max(1, int(self.nets.depth[0])), rows, self.nets.bend.values.shape[2]),
            told=empty(rows, self.nets.bend.values.shape[1]),
            head_scores=empty(rows, sizes.layers * sizes.heads),
            neuron_scores=empty(rows, sizes.layers * sizes.neurons),
            ranked=np.empty((members, max(sizes.heads, sizes.neurons)), np.int32),
            logits=empty(rows, sizes.vocabulary),
            fill_heads=self.fills.of["head"].flatten(1).numpy(),
            fill_neurons=self.fills.of["neuron"].flatten(1).numpy(),
            fill_bases=self.fills.bases.numpy(),
        )
        return self.bench


@contextmanager
def gathered(
    model: PreTrainedModel, planner: Planner, storage: Storage | None, kv_policy: KVPolicy, compact: bool
) -> Iterator[GatheredRun]:
    """Inside the block the model's forward is a GatheredRun's; afterwards it is its own again."""
    run = GatheredRun(model, planner, pack(model, storage), kv_policy == "recompute", compact)

    try:
        with answering(model, run.forward):
            yield run
    finally:
        torch.set_num_threads(run.team.members)
        run.team.close()

"""stage=estimate: what a run of these settings will take, said without loading a model."""

from typing import Any

from omegaconf import DictConfig

from shadow.errors import UserError
from shadow.jobs import resources
from shadow.jobs.calibration import asked_parts, asked_size, reads_store, trace_taps
from shadow.jobs.config import model_label, shape_of
from shadow.jobs.method import is_trained, learns_budgets, learns_stand_in, needs_of, net_of
from shadow.models.kinds import find_sites, width_of
from shadow.models.layouts import find_layers
from shadow.models.sites import count_units
from shadow.terminal.digits import digits
from shadow.traces.shards import MEANS


def check_context(cfg: DictConfig) -> None:
    """Refuse windows longer than what the model was made to read; prompts of tasks are cut to it."""
    room = shape_of(cfg).get_text_config().max_position_embeddings
    asked = {"data.tokens": cfg.data.get("tokens") or 0}
    # an experiment may give train.py some keys of measures, which it does not read
    if cfg.task_name == "evaluate":
        measure = cfg.measure
        if measure.perplexity or measure.quality or measure.context:
            asked["measure.tokens"] = measure.tokens
        if measure.latency:
            asked["measure.prompt_tokens + measure.new_tokens"] = measure.prompt_tokens + measure.new_tokens
        if measure.choices:
            both = measure.context_tokens + measure.continuation_tokens
            asked["measure.context_tokens + measure.continuation_tokens"] = both
    for setting, tokens in asked.items():
        if tokens > room:
            raise UserError(
                f"{setting} must be at most the {room} positions of {cfg.model.path or cfg.model.name}, got "
                f"{tokens}"
            )


def windows_of(cfg: DictConfig) -> tuple[int, int]:
    """-> how many windows these data give, and of how many tokens; of tasks the most there can be."""
    if "tasks" in cfg.data:
        return len(cfg.data.tasks) * cfg.data.examples_per_task, cfg.data.max_tokens
    return int(asked_size(cfg)), cfg.data.tokens


def estimate_of(cfg: DictConfig) -> dict[str, Any]:
    """Counts, bytes and operations of collecting and of the predictor, by name."""
    model = resources.weightless(shape_of(cfg))
    layers, units = len(find_layers(model)), count_units(find_sites(model))
    windows, tokens = windows_of(cfg)
    settings = cfg.traces
    sampled = windows * min(settings.tokens_per_window, tokens)
    shards = -(-windows // settings.shard_windows)
    taps = trace_taps(cfg, layers)
    stored = {
        part: resources.part_bytes(model, part, len(taps), tokens, settings.dtype, settings.top)
        for part in asked_parts(cfg)
    }
    stored_bytes = {
        part: size.of(windows, sampled, 1 if part == MEANS else shards) for part, size in stored.items()
    }
    forward, backward = resources.forward_flops(model, tokens), resources.backward_flops(model, tokens)
    found: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "layers": layers,
        "units": units,
        "windows": windows,
        "tokens": windows * tokens,
        "token_rows": sampled,
        "row_bytes": {part: max(size.window, size.token) for part, size in stored.items() if part != MEANS},
        "bytes": stored_bytes,
        "forward_flops": windows * forward,
        "backward_flops": windows * backward,
    }
    if learns_stand_in(cfg):
        learnt = cfg.sparsity.learnt
        found["learnt_windows"] = min(learnt.windows, windows)
        found["learnt_flops"] = learnt.epochs * found["learnt_windows"] * (2 * forward + backward)
    if is_trained(cfg):
        net = net_of(cfg)
        read = net.taps_in(layers)
        found["predictor_parameters"] = resources.predictor_parameters(
            model, read, net.source, net.shape(), net.ahead, net.scored
        )
        passes = net.rounds * len(net.levels)
        states = resources.feature_bytes(len(read), width_of(model, "state"))
        found["pruned_passes"] = passes
        found["pruned_bytes"] = passes * states.of(windows, sampled, shards)
    return found


def in_lines(cfg: DictConfig, found: dict[str, Any]) -> str:
    """The estimate for people."""
    at_most = "at most " if "tasks" in cfg.data else ""
    units = " and ".join(f"{count} {kind}s" for kind, count in found["units"].items())
    lines = [
        f"{model_label(cfg)}: {found['parameters'] / 1e6:,.1f} M parameters; {found['layers']} layers: "
        f"{units}",
    ]
    if cfg.stage == "traces" or reads_store(cfg):
        lines += collecting_in_lines(found, at_most)
    if "learnt_flops" in found:
        lines.append(
            f"stand-ins: {cfg.sparsity.learnt.epochs} epochs over {at_most}{found['learnt_windows']} "
            f"windows, dense and sparse: {found['learnt_flops']:.3g} FLOPs"
        )
    if needs_of(cfg).router:
        lines.append(f"predictor={cfg.predictor.name}: a fit on windows, each run dense and gated")
    if learns_budgets(cfg):
        lines.append(f"budgets and thresholds: forward passes over {cfg.sparsity.budget_windows} windows")
    if "predictor_parameters" in found:
        count = found["predictor_parameters"]
        share = 100 * count / found["parameters"]
        lines.append(
            f"predictor={cfg.predictor.name}: {count / 1e6:.4g} M parameters, {digits(share)} % of the model"
        )
        if found["pruned_passes"]:
            lines.append(
                f"later rounds: {cfg.predictor.rounds}, a fit each; {found['pruned_passes']} sparse passes "
                f"over the windows, {found['pruned_bytes'] / 1e9:.4g} GB of states"
            )
    return "\n".join(lines)


def collecting_in_lines(found: dict[str, Any], at_most: str) -> list[str]:
    lines = [
        f"collecting: {at_most}{found['windows']} windows, {found['tokens']:,} tokens",
        f"  forward  {found['forward_flops']:.3g} FLOPs",
        f"  backward {found['backward_flops']:.3g} FLOPs, to activations, where a criterion needs gradients",
        f"store: {at_most}{sum(found['bytes'].values()) / 1e9:.4g} GB",
    ]
    lines += [
        f"  {part:<17} {found['bytes'][part] / 1e9:10.4g} GB, {size / 1e6:.4g} MB for each of "
        f"{found['windows']} windows and {found['token_rows']:,} tokens"
        for part, size in found["row_bytes"].items()
    ]
    return lines

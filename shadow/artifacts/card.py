"""The model card of a predictor: from its config.json and the rows of its curve.csv to README.md."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TAGS = ("contextual-sparsity", "pruning", "shadowllm")
# of a row of the curve, and what the card calls them; every other column but NAMES is a metric's
COLUMNS = {
    "level": "level",
    "decided_at": "decided at",
    "scope": "scope",
    "tokens": "sparse tokens",
    "scored": "scored",
    "stand_in": "stand-in",
    "data": "data",
    "other": "other settings",
    "bytes_skipped": "weight bytes skipped",
    "bytes_skipped_of_layers": "of the layers",
}
ACHIEVED = "achieved_"  # and the kind
READ = {"state": "the state before", "context": "what the heads give out in"}
NAMES = ("point", "commit", "format")  # which settings and commit measured it, and how the row is written
STDERR = "_stderr"


def card(
    config: Mapping[str, Any], rows: Sequence[Mapping[str, str]], learnt: Sequence[tuple[str, float]] = ()
) -> str:
    """config: the predictor's config.json; rows: of curve.csv, every value as text; learnt: of each policy
    with thresholds `decided_at` and the level."""
    settings = config["settings"]
    first = config["taps"][0] + config["ahead"]  # layer that is scored
    units = " and ".join({"head": "attention head", "neuron": "FFN neuron"}[kind] for kind in config["kinds"])
    head, neuron = config["units"]["head"], config["units"]["neuron"]
    facts = {
        "model": f"{config['model']}: {config['layers']} layers of width {config['width']}, "
        f"{head} heads and {neuron} neurons each",
        "taps": listed(config["taps"]) + (f", {config['ahead']} ahead" if config["ahead"] else ""),
        "net": pairs(config["net"]),
        "parameters": f"{config['parameters']:,} ({100 * config['share_of_model']:.2f} % of the model)",
        "means": f"{config['means']:,} numbers of the calibration's activations, beside the net",
        "rows": f"{config['rows']['train']} to train, {config['rows']['val']} to validate",
        "predictor": pairs(settings["predictor"]),
        "training": pairs(settings["trainer"]),
        "data": f"{pairs(settings['traces']['data'])}, {settings['size']} examples",
        "traces": f"{pairs(settings['traces']['traces'])}, seed {settings['traces']['seed']}",
        "versions": pairs(config["versions"]),
    }
    parts = [
        front_matter(config),
        f"# Which units of {config['model']} a prompt needs",
        f"Reads {READ[config['source']]} layer {listed(config['taps'])} of {config['model']} and scores each "
        f"{units} from layer {first} on by the criterion `{settings['criterion']}`, "
        "so that those which this prompt does not need can be left out "
        "([ShadowLLM](https://arxiv.org/abs/2406.16635)). It is no language model, and works with no other "
        "weights than those that it was trained for.",
        *terms(config),
        "## Use it",
        usage(config),
        *thresholds(learnt),
        "## Settings",
        table(["what", "value"], facts.items()),
        "## Validation",
        table(
            ["metric", "value"], ((name, f"{value:.4g}") for name, value in sorted(config["metrics"].items()))
        ),
    ]
    if rows:
        parts += ["## Curve", curve(rows)]
    return "\n\n".join(parts) + "\n"


def front_matter(config: Mapping[str, Any]) -> str:
    # of models that are not the hub's, it knows no name
    base = config["settings"]["traces"]["model"]["source"].get("hub_id")
    lines = ["---", "library_name: shadow-llm"]
    lines += [f"base_model: {json.dumps(base)}"] if base else []  # JSON's strings are YAML's
    if config.get("terms"):
        name = json.dumps(f"{config['model']} terms of use")
        lines += ["license: other", f"license_name: {name}", f"license_link: {config['terms']}"]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in TAGS), "---"])


def terms(config: Mapping[str, Any]) -> list[str]:
    """Of use of the base model, where they bind what is made of it; predictors of before name none."""
    if not config.get("terms"):
        return []
    return [f"{config['model']} is used under its [terms of use]({config['terms']}), and so is this."]


def usage(config: Mapping[str, Any]) -> str:
    source = config["settings"]["traces"]["model"]["source"]
    state = config["settings"]["reads"][1]  # `state` of each token, or `prompt/mean` and the like
    decided_at = f', decided_at="{state.split("/")[0]}"' if "/" in state else ""
    first = config["taps"][0] + config["ahead"]
    others = [f"dense_layers=range({first})"] if first > 1 else []
    others += [f"kinds={config['kinds']}"] if len(config["kinds"]) < len(config["units"]) else []
    policy = f"SparsityPolicy({', '.join(['0.5', *others])})" if others else "level=0.5"
    names = "SparsityPolicy, load_predictor, sparse" if others else "load_predictor, sparse"
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from shadow import {names}

name = {json.dumps(source.get("hub_id") or f"path/to/{config['model']}")}
model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
predictor = load_predictor("path/to/this/folder")  # or its id on the hub
with sparse(model, predictor, {policy}{decided_at}):
    ids = model.generate(tokenizer.encode("The", return_tensors="pt"), max_new_tokens=20)
print(tokenizer.decode(ids[0]))
```"""


def thresholds(learnt: Sequence[tuple[str, float]]) -> list[str]:
    if not learnt:
        return []
    calls = []
    for at, level in learnt:
        where = "" if at == "token" else f", {json.dumps(at)}"
        calls.append(f"`sparse(model, predictor, predictor.policy({level:g}{where}){where})`")
    return [f"With thresholds, which let tokens keep more or fewer units: {', '.join(calls)}."]


def curve(rows: Sequence[Mapping[str, str]]) -> str:
    """Columns that no row has are left out."""
    there = {name for row in rows for name, value in row.items() if value and not name.endswith(STDERR)}
    columns = {name: heading for name, heading in COLUMNS.items() if name in there}
    others = sorted(there - {*COLUMNS, *NAMES})
    columns |= {n: f"{n.removeprefix(ACHIEVED)}s skipped" for n in others if n.startswith(ACHIEVED)}
    metrics = [name for name in others if name not in columns]
    cells = (
        [shown(row.get(name, "")) for name in columns] + [measured(row, metric) for metric in metrics]
        for row in rows
    )
    return table([*columns.values(), *metrics], cells)


def measured(row: Mapping[str, str], metric: str) -> str:
    value, stderr = row.get(metric, ""), row.get(metric + STDERR, "")
    return shown(value) + (f" ± {shown(stderr)}" if stderr else "")


def shown(value: str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:  # a word, or nothing
        return value


def table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def pairs(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))

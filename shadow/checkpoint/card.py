"""The model card of such a folder."""

from collections.abc import Mapping, Sequence

from shadow.artifacts.card import curve as curve_table
from shadow.artifacts.card import table
from shadow.checkpoint.folder import INSTALL, TENSORS
from shadow.checkpoint.method import Method

TAGS = ("contextual-sparsity", "shadow-llm", "text-generation")
AT_PROMPT = (
    "Plans are made once, of the prompt that `generate` is given. lm-eval's `hf` scores texts by calling the "
    "model, which shows it prompt and answer as one: score by `shadow lm-eval --model shadow` instead."
)


def card(
    name: str,
    method: Method,
    pruned: Sequence[str],
    about: Mapping[str, str],
    curve: Sequence[Mapping[str, str]],
) -> str:
    """pruned: slots that lose units; about: what else to say of it, by headings of a table."""
    policy = method.policy
    facts = {
        "method": type(method.scorer).__name__,
        "level": f"{policy.level:g} of the units go",
        "scope": policy.scope,
        "units": ", ".join(pruned) or "none: level 0 is the dense model",
        "decided at": method.decided_at,
        "sparse tokens": str(policy.tokens),
        "in place of what goes": type(method.stand_in).__name__,
    }
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    parts = [
        "\n".join([*front, "tags:", *(f"- {tag}" for tag in TAGS), "---"]),
        f"# {name}: sparse when it is loaded",
        "The weights are the dense model's. For each token a method chooses which of them are left out. The "
        f"method stands in `config.json`, and its numbers in `{TENSORS}`.",
        "## Use it",
        f"""```bash
{INSTALL}
```

```python
import shadow  # before from_pretrained; it tells transformers of this kind of checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")  # or its id on the hub
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
ids = model.generate(**tokenizer("The", return_tensors="pt"), max_new_tokens=20)
print(tokenizer.decode(ids[0]), model.hf_quantizer.opened.run.bytes()["skipped"])
```""",
        f"Without `shadow` transformers stops with an error that names `{INSTALL}`. "
        "`model.dequantize()` makes the loaded model dense. `shadow serve path/to/this/folder` serves it.",
        *([AT_PROMPT] if method.decided_at == "prompt" else []),
        "## Method",
        table(["what", "value"], (facts | dict(about)).items()),
    ]
    if curve:
        parts += ["## Figures", curve_table(curve)]
    return "\n\n".join(parts) + "\n"

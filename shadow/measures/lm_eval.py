"""lm-eval's own command line with `--model shadow`: `shadow lm-eval`."""

import sys
from collections.abc import Sequence


def main(words: Sequence[str]) -> None:
    """lm-eval 0.4 looks for models in its own package alone, so its stock command cannot know this one."""
    sys.argv = ["shadow lm-eval", *words]  # lm-eval reads them there
    if sys.path[0] in ("", "."):  # of `python -m`, where a script evaluate.py hides Hugging Face's evaluate
        sys.path.append(sys.path.pop(0))
    from lm_eval.__main__ import cli_evaluate

    import shadow.measures.harness  # noqa: F401  registers it
    from shadow.errors import UserError

    try:
        cli_evaluate()
    except UserError as error:
        sys.exit(f"{error}")

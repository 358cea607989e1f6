"""`shadow NAME ...`: one command for all that the framework does."""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from shadow.errors import UserError, meant

Words = Sequence[str]


class Command(NamedTuple):
    about: str
    run: Callable[[Words], None]


def train(words: Words) -> None:
    from shadow.commands.scripts import run

    run("train.py", words)


def evaluate(words: Words) -> None:
    from shadow.commands.scripts import run

    run("evaluate.py", words)


def sweep(words: Words) -> None:
    from shadow.commands.sweep import sweep as chosen

    chosen(words)


def lm_eval(words: Words) -> None:
    from shadow.measures.lm_eval import main as run

    sys.argv = ["shadow lm-eval", *words]
    run()


def compare(words: Words) -> None:
    from shadow.jobs.compare import main as run

    run(words)


def export(words: Words) -> None:
    from shadow.jobs.export import main as run

    run(words)


def recommend(words: Words) -> None:
    from shadow.jobs.recommend import main as run

    run(words)


def serve(words: Words) -> None:
    from shadow.serving.command import main as run

    run(words)


def ls(words: Words) -> None:
    from shadow.commands.ls import ls as tell

    tell(words)


def rm(words: Words) -> None:
    from shadow.commands.rm import rm as remove

    remove(words)


COMMANDS = {
    "train": Command("collect a model's traces and fit a predictor", train),
    "evaluate": Command("make a model sparse and measure it", evaluate),
    "sweep": Command("measure many settings, and draw the curve", sweep),
    "compare": Command("put dense and sparse text side by side, and which units stayed", compare),
    "recommend": Command("find the method that skips most within a budget", recommend),
    "export": Command("write a checkpoint that is sparse when it is loaded", export),
    "serve": Command("serve such a checkpoint by an OpenAI-compatible API", serve),
    "ls": Command("tell what was made and run", ls),
    "rm": Command("take artifacts away", rm),
    "lm-eval": Command("lm-eval's own command, with --model shadow", lm_eval),
}


def main() -> None:
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name not in COMMANDS:
        near = meant(name, COMMANDS) or f": give one of {', '.join(COMMANDS)}"
        sys.exit(f"there is no command shadow {name}{near}")
    try:
        COMMANDS[name].run(words)
    except UserError as error:
        sys.exit(str(error))


def usage() -> str:
    lines = [f"  {name:<11} {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Which weights need a language model not read, and what does leaving them cost?",
            "",
            "  shadow COMMAND ...",
            "",
            *lines,
            "",
            "`shadow COMMAND --help` tells of each.",
        ]
    )

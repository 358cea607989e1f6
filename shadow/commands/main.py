"""`shadow NAME ...`: one command for all that the framework does."""

import pkgutil
import sys
from typing import NamedTuple

from shadow.errors import UserError, meant


class Command(NamedTuple):
    """function: takes the words behind the command; sought when it is asked for, as torch takes seconds."""

    about: str
    function: str


COMMANDS = {
    "train": Command("make all that a method learns of a model", "shadow.commands.scripts:train"),
    "evaluate": Command("make a model sparse and measure it", "shadow.commands.scripts:evaluate"),
    "sweep": Command("measure many settings, and draw the curve", "shadow.commands.sweep:sweep"),
    "report": Command("draw anew what sweeps have measured", "shadow.sweeps.__main__:main"),
    "compare": Command(
        "put dense and sparse text side by side, and which units stayed", "shadow.jobs.compare:main"
    ),
    "recommend": Command("find the method that skips most within a budget", "shadow.jobs.recommend:main"),
    "export": Command("write a checkpoint that is sparse when it is loaded", "shadow.jobs.export:main"),
    "serve": Command("serve such a checkpoint by an OpenAI-compatible API", "shadow.serving.command:main"),
    "ls": Command("tell what was made and run", "shadow.commands.ls:ls"),
    "rm": Command("take artifacts away", "shadow.commands.rm:rm"),
    "lm-eval": Command("lm-eval's own command, with --model shadow", "shadow.measures.lm_eval:main"),
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
        pkgutil.resolve_name(COMMANDS[name].function)(words)
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

"""`shadow sweep NAME ...`: evaluate.py with sweep=NAME."""

from collections.abc import Sequence
from importlib.resources import files

from shadow.commands import describe
from shadow.commands.comments import options_of
from shadow.commands.scripts import run
from shadow.errors import UserError, meant


def sweep(words: Sequence[str]) -> None:
    name, others = (words[0], list(words[1:])) if words else ("--help", [])
    if name in ("-h", "--help"):
        print(help_text())
        return
    known = options_of("sweep")
    if name not in known:
        near = meant(name, known) or f": give one of {', '.join(known)}"
        raise UserError(f"the first word after `shadow sweep` names the sweep, got {name!r}{near}")
    run("evaluate.py", [f"sweep={name}", *others])


def help_text() -> str:
    told = [describe.hanging(f"  {name}", about(name), 20) for name in options_of("sweep")]
    parts = [
        describe.paragraph(
            "Measure many settings, a job each, and draw what came out. Run again, it goes on from what is "
            "measured."
        ),
        "  shadow sweep NAME [GROUP=OPTION] [SETTING=VALUE] ...   or python evaluate.py sweep=NAME ...",
        "",
        *told,
        "",
        describe.paragraph(
            "Options and settings are those of `shadow evaluate --help`. A list in place of a sweep's own: "
            "sparsity.level=0,0.5."
        ),
        "",
        "Examples:",
        "  shadow sweep accuracy_curve model=opt-mini\n      every scorer at five levels, in a minute",
        "  shadow sweep methods sparsity.level=0,0.5 contender='[teal,block],[few_taps,threshold]'",
        "      two methods at one level",
        "  shadow sweep accuracy_curve launch=joblib\n      several jobs at once",
    ]
    return "\n".join(parts)


def about(name: str) -> str:
    """The first comment of its YAML, without the command that stands there."""
    lines = (files("shadow.conf") / "sweep" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    first = next(line for line in lines if "@package" not in line)
    return first.removeprefix("# ").partition(" python ")[0].rstrip(":")

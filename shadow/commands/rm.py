"""`shadow rm NAME...`: takes artifacts away that nothing else needs."""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from shadow.artifacts.files import lock_of
from shadow.commands.ls import in_words
from shadow.commands.root import root
from shadow.commands.shelves import Artifact, artifacts_in, dependents
from shadow.errors import UserError, meant

EPILOG = """examples:
  shadow rm opt-mini-few_taps-9d80720a37     a name that `shadow ls` tells
  shadow rm 9d80720a37 --yes                 its key alone, and no question
"""


def rm(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="shadow rm",
        description="Remove artifacts: traces, predictors, budgets, stand-ins. What others came of stays, "
        "unless they are named too.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a name, or the key that ends it")
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    asked = parser.parse_args(list(words))
    there = artifacts_in(root() / "artifacts")
    chosen = [found(name, there) for name in dict.fromkeys(asked.names)]
    refuse_needed(chosen, there)
    with ExitStack() as stack:
        for artifact in chosen:
            stack.enter_context(held(artifact))
        print("\n".join(f"{one.name}  {in_words(one.size)}" for one in chosen))
        if not (
            asked.yes or agreed(f"remove {'it' if len(chosen) == 1 else f'these {len(chosen)}'}? [y/N] ")
        ):
            sys.exit("nothing was removed")
        for artifact in chosen:
            remove(artifact.path)


def found(name: str, there: Sequence[Artifact]) -> Artifact:
    matching = [artifact for artifact in there if name in (artifact.name, artifact.key, str(artifact.path))]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UserError(
            f"{name} names {len(matching)} artifacts: give {' or '.join(str(a.path) for a in matching)}"
        )
    near = meant(name, [artifact.name for artifact in there])
    raise UserError(f"there is no artifact {name}{near or ': `shadow ls` tells what there is'}")


def refuse_needed(chosen: Sequence[Artifact], there: list[Artifact]) -> None:
    for artifact in chosen:
        needing = [other.name for other in dependents(artifact, there) if other not in chosen]
        if needing:
            more = f" and {len(needing) - 1} more" if len(needing) > 1 else ""
            raise UserError(
                f"{artifact.name} stays, for {needing[0]}{more} came of it: name that too, or keep both"
            )


@contextmanager
def held(artifact: Artifact) -> Iterator[None]:
    """A job that makes it, or adds to it, holds its lock: nobody begins while it is taken away."""
    file = lock_of(artifact.path)
    file.parent.mkdir(exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{artifact.name} is in use, for a job holds {file}: wait until it ends") from error
    try:
        yield
    finally:
        lock.release()


def agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError("there is no terminal to ask in: give --yes to remove without a question")
    try:
        return input(question).strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        print()
        return False


def remove(path: Path) -> None:
    """Out of sight first: a kill leaves nothing that looks whole."""
    hidden = path.with_name(f".{path.name}.removed")
    path.rename(hidden)
    if hidden.is_dir():
        shutil.rmtree(hidden)
    else:
        hidden.unlink()

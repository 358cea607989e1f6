"""Files of weights in installed Python packages, none of whose code is run."""

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from shadow.errors import UserError

BLOCK = 1 << 20  # bytes that are copied at a time


def require_package(package: str, install: str) -> Path:
    """The folder of a package; install: the command that is told where it is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the model's weights come in the Python package {package!r}, which is missing: {install}"
        )
    return Path(spec.submodule_search_locations[0])


def assemble(parts: Sequence[Path], target: Path, sha256: str, install: str) -> None:
    """One after the other into `target`, refused unless the whole has this checksum."""
    found = hashlib.sha256()
    with target.open("wb") as whole:
        for part in parts:
            if not part.is_file():
                raise UserError(f"a part of {target.name} is missing, {part}: {again(install)}")
            with part.open("rb") as stream:
                while block := stream.read(BLOCK):
                    found.update(block)
                    whole.write(block)
    if found.hexdigest() != sha256:
        raise UserError(
            f"the {len(parts)} parts of {target.name} must have the SHA-256 {sha256} together, got "
            f"{found.hexdigest()}: {again(install)}"
        )


def again(install: str) -> str:
    """The command that replaces what is installed."""
    return install.replace("pip install", "pip install --force-reinstall", 1)

"""From settings to a name; writing so that a reader never sees half a result, and no two write at once."""

import errno
import glob
import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from shadow.errors import UserError

log = logging.getLogger(__name__)

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def key_of(settings: dict) -> str:
    """Ten hex digits that name these settings: plain values, and lists and dicts of them."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A fresh folder to fill; it takes its name when the block ends well and vanishes when it does not."""
    with telling(folder):
        unfinished = _beside(folder)
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def writing(file: Path) -> Iterator[Path]:
    """A path to write; it takes the name `file` when the block ends well and vanishes when it does not."""
    with telling(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = _beside(file)
        try:
            yield unfinished
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)


def write_json(file: Path, content: dict) -> None:
    with writing(file) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _beside(target: Path) -> Path:
    """A name beside `target` that is this process's own; what killed ones left in its folder goes.

    Only those of this machine are known to be dead: another's leftovers stay until a job runs there.
    """
    host = socket.gethostname()
    for left in target.parent.glob(f".*.{glob.escape(host)}-*.part"):
        process = left.name.removesuffix(".part").rpartition("-")[2]
        if process.isdigit() and not _runs(int(process)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return target.with_name(f".{target.name}.{host}-{os.getpid()}.part")


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextmanager
def telling(target: Path) -> Iterator[None]:
    """A disk that is full, or a folder that may not be written, becomes one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL | REFUSED:
            raise
        raise cannot_write(target, error) from error


def cannot_write(target: Path, error: OSError) -> UserError:
    cure = "make room there" if error.errno in FULL else "let this user write there"
    return UserError(
        f"{target} could not be written ({error.strerror}): {cure}, or choose another folder with "
        "SHADOW_ROOT=/some/folder; the same command then goes on from what is finished"
    )


def require_room(target: Path, needed: float, otherwise: str) -> None:
    """Refuse what its disk has no room for. needed: bytes; otherwise: what else would help."""
    there = next(place for place in (target, *target.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"{target} needs another {needed / 1e9:.4g} GB, and its disk has {free / 1e9:.4g} GB left: make "
            f"room there, choose another folder with SHADOW_ROOT=/some/folder, or {otherwise}"
        )


def points_in(artifacts: Path) -> list[Path]:
    """What measured points found; their samples lie beside them under longer names."""
    return sorted((artifacts / "points").glob("??????????.json"))


def lock_of(target: Path) -> Path:
    return target.parent.parent / "locks" / f"{target.name}.lock"


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Inside the block no other process makes the artifact `target`; one that tries waits for its turn.

    The system takes the lock from a process that is killed. On a file system without locks, filelock falls
    back to a file that a kill leaves behind.
    """
    file = lock_of(target)
    with telling(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another process is making %s: waiting for it (%s)", target, file)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()

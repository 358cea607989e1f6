"""Scripts in processes of their own, forked from one that has imported what they do: seconds less each."""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["preloaded"])


class Script:
    """A script that runs, talking to the file `log`; `kill` is `kill -9`."""

    def __init__(self, words: Sequence[str], folder: Path, env: dict[str, str], log: Path) -> None:
        """words: the script and its arguments; folder: where it runs; env: all that it sees."""
        self.log = log
        self.process: BaseProcess = FORKS.Process(target=run, args=(list(words), str(folder), env, str(log)))
        with pytest.MonkeyPatch.context() as patch:  # the process that is forked finds `preloaded` there
            patch.setenv("PYTHONPATH", str(Path(__file__).parent))
            self.process.start()

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        code = self.process.exitcode
        assert code is not None
        return code

    def kill(self) -> None:
        self.process.kill()

    @property
    def seconds(self) -> float:
        """Of a processor, those of its own children too; known when it has ended by itself."""
        return float(seconds_file(self.log).read_text())


def run(words: list[str], folder: str, env: dict[str, str], log: str) -> None:
    """What the forked process does, and then is gone, as if Python had been started with these words."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).absolute().parent))  # as Python does
    try:
        runpy.run_path(words[0], run_name="__main__")
    except KeyboardInterrupt as error:  # outside a job; multiprocessing asks no hook
        sys.excepthook(KeyboardInterrupt, error, error.__traceback__)
    finally:  # multiprocessing leaves without them
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        seconds_file(log).write_text(str(sum(os.times()[:4])))


def seconds_file(log: str | Path) -> Path:
    return Path(f"{log}.seconds")

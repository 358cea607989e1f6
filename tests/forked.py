"""Scripts in processes of their own, forked from one that has imported what they do: seconds less each."""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["preloaded"])


class Script:
    """A script that runs, talking to the file `log`; `kill` is `kill -9`."""

    def __init__(
        self, words: Sequence[str], folder: Path, env: Mapping[str, str], log: Path, apart: bool = False
    ) -> None:
        """words: the script and its arguments; folder: where it runs; env: all that it sees; apart: processes
        that it starts beside itself are started as a user's are, not forked."""
        told = list(words), str(folder), dict(env), str(log)
        self.process: BaseProcess = FORKS.Process(target=run, args=(*told, apart))
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


class Beside:
    """A process of Lightning's, forked too: as much of subprocess.Popen as Lightning asks for."""

    def __init__(self, words: Sequence[str], folder: str, env: Mapping[str, str], log: str) -> None:
        self.process: BaseProcess = FORKS.Process(
            target=run, args=(list(words), folder, dict(env), log, True)
        )
        self.process.start()
        self.pid, self.returncode = self.process.pid, None

    def poll(self) -> int | None:
        self.returncode = self.process.exitcode
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)


def fork_beside(log: str) -> None:
    """From now on Lightning forks the processes that it starts, which saves the seconds of their imports."""
    from pytorch_lightning.strategies.launchers import subprocess_script

    def popen(command: Sequence[str], env: Mapping[str, str], cwd: str) -> Beside:
        return Beside(command[1:], cwd, env, log)

    subprocess_script.subprocess = SimpleNamespace(Popen=popen)  # type: ignore[assignment]
    # the server that this process comes from is there: multiprocessing would start another
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]


def run(words: list[str], folder: str, env: dict[str, str], log: str, apart: bool) -> None:
    """What the forked process does, and then is gone, as if Python had been started with these words."""
    beside = "LOCAL_RANK" in env
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if beside else os.O_TRUNC))
    for stream in (1, 2):
        os.dup2(out, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = words
    sys.path.insert(0, folder)  # as Python does with the script's own
    if not apart:
        fork_beside(log)
    try:
        runpy.run_path(words[0], run_name="__main__")
    except KeyboardInterrupt as error:  # outside a job; multiprocessing asks no hook
        sys.excepthook(KeyboardInterrupt, error, error.__traceback__)
    finally:  # multiprocessing leaves without them
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()

"""`shadow serve FOLDER`."""

import argparse
import logging
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import get_args

from shadow.errors import UserError
from shadow.terminal.stops import INTERRUPTED

log = logging.getLogger(__name__)

EXTRA = "`shadow serve` needs FastAPI, uvicorn and openai: pip install 'shadow-llm[serve]'"
HERE = "127.0.0.1"


def parser() -> argparse.ArgumentParser:
    from shadow.executors.options import Storage

    found = argparse.ArgumentParser(
        "shadow serve",
        description="Serve a folder of `shadow export` by an OpenAI-compatible API, one request at a time.",
        epilog="example: shadow serve artifacts/checkpoints/opt-mini-teal --storage int8",
    )
    found.add_argument("folder", metavar="FOLDER", help="a folder that `shadow export` has written")
    found.add_argument("--name", help="of the model, for clients; by default the folder's own")
    found.add_argument("--host", default=HERE, help=f"to listen at; by default {HERE}, this machine alone")
    found.add_argument("--port", type=int, default=8000, help="0: any that is free; by default 8000")
    found.add_argument(
        "--executor",
        choices=("auto", "gathered", "masked"),
        default="auto",
        help="auto: gathered where it can run the method, else masked; by default auto",
    )
    found.add_argument(
        "--storage",
        choices=get_args(Storage),
        help="of the gathered executor's weights; by default their own",
    )
    found.add_argument("--dtype", help="of the model's weights; by default as they are saved")
    found.add_argument(
        "--max-waiting", type=int, default=64, help="requests at once, of which one runs; by default 64"
    )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    asked = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        serve(asked)
    except UserError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:  # while the model is loaded; afterwards uvicorn ends in its own way
        log.info("stopped before anything was served")
        sys.exit(INTERRUPTED)


def serve(asked: argparse.Namespace) -> None:
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise UserError(EXTRA)
    if asked.max_waiting < 1:
        raise UserError(f"--max-waiting must be at least 1, got {asked.max_waiting}")
    listening = listen(asked.host, asked.port)  # before the model is loaded
    with listening:
        import uvicorn

        from shadow.serving.app import build
        from shadow.serving.served import load

        served = load(asked.folder, asked.name, asked.executor, asked.storage, asked.dtype)
        config = uvicorn.Config(build(served, asked.max_waiting), log_level="warning", ws="none")
        server = uvicorn.Server(config)
        log.info("%s: %s", served.name, served.executor)
        if asked.host != HERE:
            log.warning("whoever reaches %s may ask: there is no key", asked.host)
        log.info("http://%s:%d/v1", *listening.getsockname()[:2])
        server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, None)[0][0]
        with ExitStack() as stack:
            found = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
            stack.pop_all()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host={host} --port={port} cannot be listened at ({error}): give another port, or 0 for any "
            "that is free"
        ) from error
    return found


if __name__ == "__main__":
    main()

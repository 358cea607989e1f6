"""Threads that run one compiled function together, and wait for each other inside it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic

from shadow.plans.compiled import compiled

LINE = 16  # int64s between what threads write and what they watch: two cache lines
PATIENCE = 2_000  # looks before a waiting thread lets others have its core: some microseconds

_yield = types.ExternalFunction("sched_yield", types.int32())


def _address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


@intrinsic
def _fetch_add(typing: Any, array: Any, index: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _address(context, builder, signature, args), args[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), generate


@intrinsic
def _look(typing: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_address(context, builder, signature, args), "seq_cst", 8)

    return types.int64(array, types.int64), generate


@intrinsic
def _put(typing: Any, array: Any, index: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[2], _address(context, builder, signature, args), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@compiled()
def meet(board: np.ndarray, members: int) -> None:
    """Wait until every member of the team is here. board: int64, zeros before the first meeting."""
    if members == 1:
        return
    meeting = _look(board, LINE)
    if _fetch_add(board, 0, 1) == members - 1:
        _put(board, 0, 0)
        _fetch_add(board, LINE, 1)
        return
    looks = 0
    while _look(board, LINE) == meeting:
        looks += 1
        if looks > PATIENCE:
            _yield()


@compiled()
def share(count: int, member: int, members: int) -> tuple[int, int]:
    """-> which of so many things, from and to, are this member's."""
    return count * member // members, count * (member + 1) // members


class Team:
    """As many threads as torch uses; the calling one is a member."""

    def __init__(self, members: int | None = None) -> None:
        self.members = members or torch.get_num_threads()
        self.board = np.zeros(2 * LINE, np.int64)
        self._others = ThreadPoolExecutor(self.members - 1) if self.members > 1 else None

    def run(self, compiled: Callable[..., None], *args: object) -> None:
        """compiled(*args, board, member, members) in every thread; it must let go of the interpreter."""
        others = [
            self._others.submit(compiled, *args, self.board, member, self.members)
            for member in range(1, self.members)
            if self._others is not None
        ]
        compiled(*args, self.board, 0, self.members)
        for other in others:
            other.result()

    def close(self) -> None:
        if self._others is not None:
            self._others.shutdown()

"""What a thread knows of its own in a run: the call under way, and what `generate` was given."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from shadow.executors.call import Call
from shadow.plans.rules import Plan


class Here(threading.local):
    """call: the one under way; plan: that of the last one; dense: calls drop nothing and are not counted."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.plan: Plan | None = None
        self.dense = False
        self.prompts: list[int] = []  # a logits processor, or a draft, may call `generate` within another

    @property
    def columns(self) -> int | None:
        """Positions of the prompt that `generate` was given; None: it does not run."""
        return self.prompts[-1] if self.prompts else None

    @contextmanager
    def generating(self, columns: int) -> Iterator[None]:
        """Inside the block calls go on from a prompt of so many positions."""
        self.prompts.append(columns)
        try:
            yield
        finally:
            self.prompts.pop()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Inside the block calls are dense, and nothing is counted."""
        before, self.dense = self.dense, True
        try:
            yield
        finally:
            self.dense = before

    @contextmanager
    def within(self, call: Call) -> Iterator[None]:
        self.call = call
        try:
            yield
        finally:
            self.call = None

"""The gathered executor's settings. A stand-in until the class that opens a run takes its place."""

from dataclasses import dataclass
from typing import Any

from shadow.executors.refusals import gathered_refuses
from shadow.plans.facts import Facts


@dataclass(frozen=True)
class Gathered:
    storage: str | None = None
    kv_policy: str = "write_all"
    compact: bool = False

    def refuses(self, facts: Facts) -> str | None:
        return gathered_refuses(facts, self.storage, self.kv_policy, self.compact)

    def options(self) -> dict[str, Any]:
        """As today's `sparse` takes them."""
        return {
            "executor": "gathered",
            "storage": self.storage,
            "kv_policy": self.kv_policy,
            "compact": self.compact,
        }

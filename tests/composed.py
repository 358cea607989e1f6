"""Hydra's compose, which keeps what a choice of options gives: tests differ in values more than in these."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import TypeVar

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

T = TypeVar("T")


def sources_of(repo: IConfigRepository) -> tuple[str, ...]:
    """Where options are looked for: `hydra.searchpath` adds places of a test's own."""
    return tuple(f"{source.scheme()} {source.path}" for source in repo.get_sources())


class Kept:
    """Files that were parsed, lists of options and the configs that they give, for one test run.

    Hydra's own code makes each of them, once, and puts the values that are overridden into a copy.
    """

    def __init__(self) -> None:
        self.found: dict[object, object] = {}

    def once(self, key: object, make: Callable[[], T]) -> T:
        if key not in self.found:
            self.found[key] = make()
        return self.found[key]  # type: ignore[return-value]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Whatever is composed in the block."""
        read = ConfigRepository.load_config
        merge = ConfigLoaderImpl._compose_config_from_defaults_list

        def load_config(repo: ConfigRepository, config_path: str) -> ConfigResult | None:
            key = ("file", sources_of(repo), config_path)
            return deepcopy(self.once(key, lambda: read(repo, config_path)))

        def options(
            repo: IConfigRepository,
            config_name: str | None,
            overrides_list: list[Override],
            prepend_hydra: bool,
            skip_missing: bool,
        ) -> DefaultsList:
            values = [
                one
                for one in overrides_list
                if isinstance(one.value(), dict) or not repo.group_exists(one.key_or_group)
            ]
            chosen = [one for one in overrides_list if one not in values]
            words = tuple(one.input_line for one in chosen)
            found = self.once(
                ("options", sources_of(repo), config_name, words, prepend_hydra, skip_missing),
                lambda: create_defaults_list(repo, config_name, chosen, prepend_hydra, skip_missing),
            )
            return replace(found, config_overrides=values)

        def merged(
            loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository
        ) -> DictConfig:
            key = ("config", sources_of(repo), repr(defaults))
            return deepcopy(self.once(key, lambda: merge(loader, defaults=defaults, repo=repo)))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ConfigRepository, "load_config", load_config)
            patch.setattr(config_loader_impl, "create_defaults_list", options)
            patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merged)
            yield

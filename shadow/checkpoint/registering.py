"""transformers learns of this quant_method: at once, or when it comes to import its own."""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

AUTO = "transformers.quantizers.auto"  # seconds to import, and `import shadow` is to take none


def register_with_transformers() -> None:
    if AUTO in sys.modules:
        register(sys.modules[AUTO])
    elif not any(isinstance(finder, Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, Waiting())


def register(auto: ModuleType) -> None:
    from shadow.checkpoint.quantizer import METHOD, ShadowConfig, ShadowQuantizer

    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantization_config(METHOD)(ShadowConfig)
        auto.register_quantizer(METHOD)(ShadowQuantizer)


class Waiting(MetaPathFinder):
    """Finds nothing itself, and goes when it has been asked for AUTO."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = Registering(spec.loader)
        return spec


class Registering(Loader):
    """The loader of AUTO, and then what it was waited for."""

    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.own.exec_module(module)
        register(module)

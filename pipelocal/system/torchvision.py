"""torchvision, imported late (it costs more than a second) and also beside a CPU-only torch."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# The wheels' compiled part needs a CUDA torch. Without it the package stops at the first operator
# for which it registers a Python kernel; with these two declared all but detection works.
_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A declaration lives as long as its Library: this list keeps it until the process ends.
_declarations: list["torch.library.Library"] = []


def import_torchvision() -> ModuleType:
    """torchvision with ``datasets``, ``models`` and ``transforms.v2``; see :func:`mend_torchvision`.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: torchvision does not fit a CUDA build of torch, as torchvision itself says.
    """
    mend_torchvision()
    for name in ("torchvision", "torchvision.transforms.v2"):
        importlib.import_module(name)
    return sys.modules["torchvision"]


def mend_torchvision() -> None:
    """Let every ``import torchvision`` from now on, also in a user's own file, work beside a CPU-only torch.

    If torch has no CUDA build and torchvision's compiled operators could not be loaded for that
    reason, the operators that its import asks for are declared, without an implementation; calling
    them (detection) still fails. Where the operators exist nothing is declared. Nothing is imported
    here.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds torchvision where it lies, and has it imported by :class:`_Loader`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Imports torchvision, and once more with the operators declared if that is what it lacks."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._loader.exec_module(module)
        except RuntimeError as error:
            import torch  # only now: importing pipelocal does not load it

            if torch.version.cuda is not None or _MISSING_OPERATOR not in str(error):
                raise
            _forget_parts()
            _declare_operators()
            self._loader.exec_module(module)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the package's own loader offers, such as its resources."""
        return getattr(self._loader, name)


def _forget_parts() -> None:
    """Drop the modules that the failed import left, so that the next one runs them again."""
    for name in [name for name in list(sys.modules) if name.startswith("torchvision.")]:
        del sys.modules[name]


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    _declarations.append(library)
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]

"""torchvision, imported late (it costs more than a second) and also beside a CPU-only torch."""

import importlib
import sys
from types import ModuleType

import torch

# The wheels' compiled part needs a CUDA torch. Without it the package stops at the first operator
# for which it registers a Python kernel; with these two declared all but detection works.
_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A declaration lives as long as its Library: this list keeps it until the process ends.
_declarations: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """torchvision with ``datasets``, ``models`` and ``transforms.v2``.

    If torch has no CUDA build and torchvision's compiled operators could not be loaded for that
    reason, the operators that its import asks for are declared, without an implementation; calling
    them (detection) still fails. Where the operators exist nothing is declared.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: torchvision does not fit a CUDA build of torch, as torchvision itself says.
    """
    try:
        _import_parts()
    except RuntimeError as error:
        if torch.version.cuda is not None or _MISSING_OPERATOR not in str(error):
            raise
        _forget_half_imported()
        _declare_operators()
        _import_parts()
    return sys.modules["torchvision"]


def _import_parts() -> None:
    for name in ("torchvision", "torchvision.transforms.v2"):
        importlib.import_module(name)


def _forget_half_imported() -> None:
    """Drop the modules that the failed import left, so that the next one runs them again."""
    for name in list(sys.modules):
        if name == "torchvision" or name.startswith("torchvision."):
            del sys.modules[name]


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    _declarations.append(library)
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]

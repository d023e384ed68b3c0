"""Pipeline-parallel training without a global backward pass.

From Python::

    pipe = pipelocal.Pipeline(net, stages=4, objective=pipelocal.SGR(every=8))
    pipe.fit(train_loader, test_loader, epochs=20)

The command line is in :mod:`pipelocal.cli`. Wherever it takes a name, it takes ``file.py:thing`` as well.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from pipelocal.system.torchvision import mend_torchvision as _mend_torchvision

__version__ = version("pipelocal")

_mend_torchvision()  # now, since the user's next line may import it

if TYPE_CHECKING:
    from pipelocal.public import *  # noqa: F403
else:

    def __getattr__(name):
        """Bring the public names, and with them PyTorch, only once they are wanted: loading takes seconds."""
        if name == "__all__" or not name.startswith("_"):
            public = import_module("pipelocal.public")
            if name in (
                "__all__",
                *getattr(public, "__all__", ()),
            ):  # none while it is being loaded
                return getattr(public, name)
        raise AttributeError(f"module 'pipelocal' has no attribute '{name}'")

    def __dir__():
        return [*globals(), *import_module("pipelocal.public").__all__]

"""For the site: references in docstrings, such as ``:class:`~pipelocal.tasks.Task```, become ``Task``."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`(?:~[\w.]*\.(\w+)|([^`]+))`")


class Roles(griffe.Extension):
    """Rewrites the references of every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one."""
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = ROLE.sub(lambda found: f"`{found[1] or found[2]}`", text)

"""Imports the packages that some loggers need."""

from __future__ import annotations

import importlib
from typing import Any

from pipelocal.errors import UserError


def load(module: str, package: str) -> Any:
    """Import a module.

    Args:
        module: its name.
        package: what is to be installed for it, which is also the logger's name.

    Raises:
        UserError: it cannot be imported, for example because it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise UserError(
                f"--log {package} needs the package {package}, which is not installed: "
                f"pip install {package}"
            ) from error
        raise _broken(package, error) from error
    except Exception as error:
        raise _broken(package, error) from error


def _broken(package: str, error: Exception) -> UserError:
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    return UserError(
        f"--log {package}: its package cannot be imported ({said}): mend it or leave it out"
    )

"""What a user names as ``file.py:thing`` or ``package.module:thing``: where it lies, and what it is.

Every registry takes such a reference in place of a name, see :class:`pipelocal.registry.Registry`.
"""

from pipelocal.references.importing import imported, returned, told, users_code, where
from pipelocal.references.source import Source, is_reference, located, plain_name

__all__ = [
    "Source",
    "imported",
    "is_reference",
    "located",
    "plain_name",
    "returned",
    "told",
    "users_code",
    "where",
]

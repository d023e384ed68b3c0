"""Registries of names that a user may give on the command line, and of what they refer to."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pipelocal.errors import UserError
from pipelocal.references import imported, is_reference, users_code
from pipelocal.system.names import did_you_mean

T = TypeVar("T")


class _Later:
    """A user's function that is not imported yet."""

    def __init__(self, get: Callable[[], Any], kind: str, name: str) -> None:
        self._get = get
        self._kind = kind
        self.__qualname__ = name

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._get())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        thing = self._get()
        with users_code(self._kind, self.__qualname__):
            return thing(*args, **kwargs)


class Registry(Generic[T]):
    """A named set of things of one kind, such as all models.

    In place of a name a user may give a reference, ``file.py:thing`` or ``package.module:thing``.

    Args:
        kind: the noun for error messages, such as ``"model"``.
        takes: what the things are called with, such as ``"input_shape, classes"``; a reference to what
            cannot be called so is refused. With ``=`` behind it, it is given by name, to what asks for it.
            None where they need not be called.
    """

    def __init__(self, kind: str, *, takes: str | None = "") -> None:
        self.kind = kind
        self._takes = takes
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers an object as ``name``."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return the entry called ``name``, or import what the reference ``name`` refers to.

        Raises:
            UserError: there is none, with the nearest name; or the reference cannot be imported, or is to
                something of another kind.
        """
        self.check(name)
        if name in self._entries:
            return self._entries[name]
        return self._fitting(name, imported(name, self.kind))

    def later(self, name: str) -> T:
        """As :meth:`get`, but a reference is imported when it is first called.

        What its call raises is told as an error of the user's own code.
        """
        if name in self._entries:
            return self._entries[name]
        self.check(name)
        return cast(T, _Later(lambda: self.get(name), self.kind, name))

    def check(self, name: str) -> None:
        """A :class:`UserError` if ``name`` can be neither; imports nothing and reads no file."""
        if name in self._entries or is_reference(name):
            return
        if name.endswith(".py"):
            raise UserError(
                f"{self.kind} '{name}': name the function too, as in {name}:{Path(name).stem}"
            )
        hint = did_you_mean(name, self._entries)
        raise UserError(
            f"unknown {self.kind} '{name}': choose one of {', '.join(self)}{hint}"
        ) from None

    def _fitting(self, name: str, thing: Any) -> T:
        """What a reference stands for, as an entry.

        Raises:
            UserError: it is of another kind.
        """
        if self._takes is None:
            return cast(T, thing)
        given = [each for each in self._takes.split(", ") if each]
        wanted = f"give one that takes ({', '.join(each for each in given if '=' not in each)})"
        if not callable(thing):
            raise UserError(
                f"{self.kind} '{name}' is no function but a {type(thing).__name__}: {wanted}"
            )
        try:
            signature = inspect.signature(thing)
        except (ValueError, TypeError):  # such as one written in C
            return cast(T, thing)
        by_name = {each[:-1] for each in given if "=" in each} & signature.parameters.keys()
        try:
            signature.bind(*(each for each in given if "=" not in each), **dict.fromkeys(by_name))
        except TypeError as error:
            taken = ", ".join(signature.parameters)
            raise UserError(f"{self.kind} '{name}' takes ({taken}): {wanted}") from error
        return cast(T, thing)

    def name_of(self, entry: object) -> str:
        """The name of an entry, or what something of a user's own calls itself."""
        own = (name for name, known in self._entries.items() if known is entry)
        return next(own, getattr(entry, "__qualname__", type(entry).__qualname__))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

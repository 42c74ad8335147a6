"""Rooms that are called by their verb's word: `aid.merge(settings, inputs, out)` merges.

A room and the verb that it is named after share one word, and `aid` has one attribute of that name:
the package, as soon as anything in it is imported. So that the word always means the same, the package
itself can be called.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class Room(ModuleType):
    """A module that is called like the function that it is named after."""

    verb_home: str

    def __call__(self, *given: Any, **named: Any) -> Any:
        verb = getattr(importlib.import_module(self.verb_home), self.__name__.rpartition(".")[2])
        return verb(*given, **named)


def callable_room(name: str, verb_home: str) -> None:
    """Let the module `name`, `aid.merge` say, be called: as the function `merge` of module `verb_home`."""
    room = sys.modules[name]
    room.__class__ = Room
    room.verb_home = verb_home  # type: ignore[attr-defined]

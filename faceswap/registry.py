"""A socket is a folder in which every file is a part, and the file's name is the part's name."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from faceswap.errors import UsageError


def suggest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: a likely meaning, or all that is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


class Socket:
    """The parts in the package folder `package`, each called a `noun` in messages.

    Each module offers `build`, whose arguments the folder defines.

    Dropping `NAME.py` into the folder is all it takes to add the part `NAME`; `TWO_WORDS.py` is `TWO-WORDS`.
    """

    def __init__(self, package: str, noun: str) -> None:
        self.package, self.noun = package, noun

    def names(self) -> list[str]:
        """The parts that are there, sorted; nothing is imported to find out."""
        path = importlib.import_module(self.package).__path__
        return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(path))

    def load(self, name: str) -> ModuleType:
        """The module of the part `name`; `UsageError` if there is none."""
        if name not in self.names():
            raise UsageError(f"no {self.noun} called {name!r}; {suggest(name, self.names())}")
        return importlib.import_module(f"{self.package}.{name.replace('-', '_')}")

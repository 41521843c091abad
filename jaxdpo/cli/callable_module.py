"""Commands that may be called from Python: `jaxdpo.convert(config)` beside `jaxdpo convert …`.

Importing a module sets it as an attribute of its package, where it hides a function of the same
name: once anything has imported the command `jaxdpo.convert`, that is what `jaxdpo.convert` means.
So that the function is not lost, the module passes calls on to it.
"""

import sys
from types import ModuleType
from typing import Any


def make_callable(name: str) -> None:
    """Lets a command's module be called as the public function of its name.

    Args:
      name: The module's `__name__`.
    """
    sys.modules[name].__class__ = _Callable


class _Callable(ModuleType):
    """A module that passes calls on to the package's function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        from jaxdpo import public

        return public(self.__name__.rpartition(".")[2])(*args, **kwargs)

"""The tools whose exports are read, by name."""

from collections.abc import Callable
from typing import Any, Literal

from jaxdpo.feedback.turns import Derived

ToolName = Literal["argilla"]
TOOLS: dict[str, Callable[[dict[str, Any], str], list[Derived]]] = {}

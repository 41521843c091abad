"""One run in several processes: they read the same configuration, or none of them starts."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from jaxdpo.config import RunConfig, flat
from jaxdpo.devices.joining import fail_before_joining, joined_processes
from jaxdpo.errors import UserError

# Each machine may have its own places and cores; what lies there is compared by content, in
# `set_up`.
_PLACES = (
    "model.path",
    "model.base",
    "reference.path",
    "data.path",
    "data.cache_dir",
    "data.processes",
    "data.chat_template",
    "training.folder",
)


@contextlib.contextmanager
def joined(
    load: Callable[[], RunConfig], beside: Mapping[str, Sequence[str]] | None = None
) -> Iterator[RunConfig]:
    """Loads the configuration of a run, and joins the processes that it is trained by.

    Args:
      load: Returns the configuration.
      beside: Further words of the command line that all processes must share, by what they are.

    Yields:
      The configuration.

    Raises:
      UserError: If it has a mistake, or the processes don't find each other or differ.
    """
    try:
        config = load()
    except UserError as error:
        # On one machine alone, perhaps, as where its copy of the file is an old one.
        fail_before_joining(error)
        raise
    settings = {name: repr(value) for name, value in flat(config).items() if _is_shared(name)}
    for name, words in (beside or {}).items():
        settings[name] = json.dumps(list(words))
    with joined_processes(config.distributed, settings):
        yield config


def _is_shared(name: str) -> bool:
    return name not in _PLACES and not name.startswith("distributed.")

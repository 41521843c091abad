"""The parts of a studio, put together for whatever answers a request."""

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request

from jaxdpo.annotation.access import Access, RefusedError
from jaxdpo.annotation.answering import Answering
from jaxdpo.annotation.config import StudioConfig
from jaxdpo.annotation.generating import Generating
from jaxdpo.annotation.matches import Matches
from jaxdpo.annotation.tasks import Queue, Task
from jaxdpo.feedback.store import FeedbackStore


@dataclass(frozen=True)
class Studio:
    """Everything that a request may need.

    Attributes:
      config: The settings.
      store: The folder's events.
      models: Name ↦ model.
      tasks: The rows to be judged.
    """

    config: StudioConfig
    store: FeedbackStore
    models: Mapping[str, Answering]
    tasks: dict[str, Task]
    access: Access
    generating: Generating
    queue: Queue
    matches: Matches


def make_studio(
    config: StudioConfig,
    store: FeedbackStore,
    models: Mapping[str, Answering],
    tasks: dict[str, Task],
) -> Studio:
    """Puts the parts of a studio together.

    Args:
      config: The settings.
      store: The folder's events.
      models: Name ↦ model.
      tasks: The rows to be judged.
    """
    return Studio(
        config,
        store,
        models,
        tasks,
        Access(config),
        Generating(store, models),
        Queue(tasks, store, config.overlap),
        Matches(tasks, list(models), store),
    )


def person(studio: Studio, request: Request) -> str:
    """Returns who asks.

    Raises:
      RefusedError: If that is nobody known.
    """
    name = studio.access.annotator(request)
    if name is None:
        raise RefusedError(401, "log in first")
    return name

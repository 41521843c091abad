"""Routes about the server itself: its models, whether it is well, and its numbers."""

from collections.abc import Mapping

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from jaxdpo.serving.answering import AnsweringModel
from jaxdpo.serving.metrics import Labels, Metrics
from jaxdpo.serving.requests import model_named


def status_routes(models: Mapping[str, AnsweringModel], metrics: Metrics) -> APIRouter:
    """Returns the routes that show models and numbers, which need the key.

    Args:
      models: Name ↦ model.
      metrics: The server's numbers.
    """
    routes = APIRouter()

    @routes.get("/v1/models")
    async def all_models() -> Response:
        return JSONResponse({"object": "list", "data": [_described(m) for m in models.values()]})

    # A name may hold slashes, as places do.
    @routes.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        return JSONResponse(_described(model_named(models, name)))

    @routes.get("/metrics")
    async def numbers() -> Response:
        gauges: dict[tuple[str, Labels], float] = {}
        for model in models.values():
            labels = (("model", model.name),)
            running, waiting = model.scheduler.counts
            gauges["rows_running", labels] = running
            gauges["rows_waiting", labels] = waiting
        return PlainTextResponse(metrics.text(gauges), media_type="text/plain; version=0.0.4")

    return routes


def health_route(models: Mapping[str, AnsweringModel]) -> APIRouter:
    """Returns the route that says whether the server is well, which needs no key."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> Response:
        # It asks nothing of the device: a probe must be answered while a long program compiles.
        dead = [model.name for model in models.values() if not model.scheduler.alive]
        if dead:
            said = {"status": "failed", "models": dead}
            return JSONResponse(said, 503)
        return JSONResponse({"status": "ok"})

    return routes


def _described(model: AnsweringModel) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "jaxdpo",
        "max_model_len": model.context,
    }

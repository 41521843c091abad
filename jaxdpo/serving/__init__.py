"""An OpenAI-compatible server on the sampling engine.

    models = load_models(ServeConfig(models={"base": "models/sft", "dpo": "runs/dpo"}))
    app = make_app(models, settings)      # a FastAPI application; add routes of your own to it

`make_app` is in `jaxdpo.serving.app`, which needs the extra `serve`; all else here does not. The
application starts the models' threads when it starts, and ends them when it ends. From any
coroutine in it, a model answers as

    settings = AnswerSettings(max_new_tokens=200, temperature=0.7, samples=2)
    async for piece in models["dpo"].answer(messages, settings):
        piece.index, piece.text, piece.finish_reason

Pieces of the answers come as they are drawn. Leaving the loop, by `break`, an exception or the
task's cancellation, gives the rest up and frees its rows. What cannot be answered raises
`RequestError`, with a status and a message for whoever asked, or `BadPair` for messages that the
chat template refuses.
"""

from jaxdpo.serving.answering import AnsweringModel, AnswerSettings, Piece
from jaxdpo.serving.config import LimitsConfig, ServeConfig
from jaxdpo.serving.errors import RequestError
from jaxdpo.serving.loading import answering_model, load_models

__all__ = [
    "AnswerSettings",
    "AnsweringModel",
    "LimitsConfig",
    "Piece",
    "RequestError",
    "ServeConfig",
    "answering_model",
    "load_models",
]

"""Routes about tokens, which lm-evaluation-harness asks for at the server's root, as vLLM has them.

With them the harness needs no tokenizer of its own.
"""

import asyncio
from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from jaxdpo.serving.answering import AnsweringModel
from jaxdpo.serving.bodies import DetokenizeBody, TokenizeBody, parsed
from jaxdpo.serving.completions import check_ids
from jaxdpo.serving.config import ServeConfig
from jaxdpo.serving.requests import body_of, model_named


def token_routes(models: Mapping[str, AnsweringModel], settings: ServeConfig) -> APIRouter:
    """Returns the routes; each is about the first model unless another is named.

    Args:
      models: Name ↦ model.
      settings: Bounds.
    """
    routes = APIRouter()

    @routes.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = parsed(TokenizeBody, await body_of(request, settings.limits))
        model = model_named(models, body.model)

        def encode() -> list[int]:
            encoded = model.chat.tokenizer(body.prompt, add_special_tokens=body.add_special_tokens)
            return list(encoded["input_ids"])

        tokens = await asyncio.to_thread(encode)
        return JSONResponse(
            {"tokens": tokens, "count": len(tokens), "max_model_len": model.context}
        )

    @routes.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        body = parsed(DetokenizeBody, await body_of(request, settings.limits))
        model = model_named(models, body.model)
        # The tokenizers' library reads ids as unsigned and fails on others with its own words.
        check_ids(model.chat, body.tokens, "tokens")
        text = await asyncio.to_thread(model.chat.tokenizer.decode, body.tokens)
        return JSONResponse({"prompt": text})

    @routes.get("/tokenizer_info")
    async def tokenizer_info(request: Request) -> Response:
        chat = model_named(models, request.query_params.get("model")).chat
        tokenizer = chat.tokenizer
        ends = tokenizer.convert_ids_to_tokens(chat.end_token_id)
        return JSONResponse(
            {
                "tokenizer_class": type(tokenizer).__name__,
                "bos_token": tokenizer.bos_token,
                # Clients end prompts and answers with it, so it must not be missing.
                "eos_token": tokenizer.eos_token or ends,
                "pad_token": tokenizer.pad_token,
                "chat_template": tokenizer.chat_template,
                "vocab_size": len(tokenizer),
            }
        )

    return routes

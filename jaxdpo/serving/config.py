"""The settings of a server."""

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from jaxdpo.errors import UserError
from jaxdpo.evaluation.criteria.spec import Criteria
from jaxdpo.storage.files import shipped

# Shorter keys can be guessed by asking; 16 characters are what `openssl rand -hex 8` makes.
_SHORTEST_KEY = 16


def _named(given: object) -> object:
    """Reads models as a list of places, or as names with places."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list | tuple):
        return given
    places = [str(each) for each in given]
    twice = next((each for each in places if places.count(each) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} stands twice")
    return {place: place for place in places}


Models = Annotated[dict[str, str], BeforeValidator(_named)]


class LimitsConfig(BaseModel):
    """Bounds on what one request, or all of them together, may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    waiting: int = Field(
        default=256, ge=0, description="most completions that wait for a row; 429 beyond"
    )
    samples: int = Field(default=128, ge=1, description="most completions of one request")
    timeout: float = Field(default=600.0, gt=0, description="seconds until an answer is given up")
    body_bytes: int = Field(
        default=4 * 2**20, gt=0, description="largest body of a request; 413 beyond"
    )
    receive_timeout: float = Field(
        default=30.0, gt=0, description="seconds until a request must have come whole"
    )
    connections: int = Field(default=1024, gt=0, description="most connections; 503 beyond")
    drain: float = Field(
        default=30.0, ge=0, description="seconds that answers under way get when it is to end"
    )


class ServeConfig(BaseModel):
    """The models that answer, where, and within what bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(default=None, description="the model that answers")
    models: Models = Field(default={}, description="several: a list of places, or {name: place, …}")
    host: str = Field(default="127.0.0.1", description="address to listen at; others need a key")
    port: int = Field(default=8000, ge=0, le=65535, description="0 for any that is free")
    api_key_env: str | None = Field(
        default=None, description="environment variable that holds the key of clients"
    )
    api_key_file: str | None = Field(default=None, description="file that holds it")
    batch_size: int = Field(
        default=16, gt=0, description="completions that each model decodes at a time"
    )
    context: int | None = Field(
        default=None, gt=1, description="most tokens of prompt and answer; default: the model's"
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None,
        description="of activations; default: float32 on CPU, bfloat16 elsewhere",
        json_schema_extra={"also": "model.compute_dtype"},
    )
    chat_template: str | None = Field(
        default=None,
        description="Jinja file to use in place of the models' chat templates",
        json_schema_extra={"also": "data.chat_template"},
    )
    criteria: Criteria = Field(
        default=(),
        validate_default=False,
        description="those that requests may name; names, functions, or a YAML file of them",
    )
    log: Literal["none", "requests", "texts"] = Field(
        default="requests",
        description="requests: a line each, without prompt, answer or key; texts: with prompt and "
        "answer",
    )
    limits: LimitsConfig = Field(default=LimitsConfig(), description="bounds")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.model is None) == (not self.models):
            raise ValueError("set model to one model, or models to several")
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file both name a key; set one")
        if not self.has_key and not _is_loopback(self.host):
            raise ValueError(
                f"host={self.host} is open to other machines, so clients need a key; set "
                "api_key_env or api_key_file, or leave host out"
            )
        return self

    @property
    def has_key(self) -> bool:
        """True if clients must send a key."""
        return self.api_key_env is not None or self.api_key_file is not None

    @property
    def places(self) -> dict[str, str]:
        """Name ↦ place of each model."""
        named = {self.model: self.model} if self.model is not None else self.models
        return {name: shipped(place) for name, place in named.items()}

    def key(self) -> str | None:
        """Returns the key that clients must send; None where none is asked for.

        Raises:
          UserError: If the key is not there, or too short.
        """
        if self.api_key_env is not None:
            where, key = f"${self.api_key_env}", os.environ.get(self.api_key_env, "")
        elif self.api_key_file is not None:
            where = self.api_key_file
            try:
                key = Path(where).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"api_key_file {where}: cannot be read: {error}") from None
        else:
            return None
        key = key.strip()
        if len(key) < _SHORTEST_KEY:
            raise UserError(
                f"{where}: holds a key of {len(key)} characters; use {_SHORTEST_KEY} or more, such "
                "as those of `openssl rand -hex 32`"
            )
        return key


def _is_loopback(host: str) -> bool:
    # Not resolved: what a name stands for may change once the server listens.
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

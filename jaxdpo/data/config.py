"""What a user may set about preference data."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from jaxdpo.files import shipped

Turns = Literal["last", "all"]


class DataConfig(BaseModel):
    """Where preference pairs come from and how they become tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, AfterValidator(shipped)] = Field(description="preference JSONL file")
    on_error: Literal["stop", "skip"] = Field(
        "stop",
        description="at bad lines: stop before training, or skip them and write them to a file",
    )
    test_fraction: float = Field(
        0.2,
        ge=0.0,
        lt=1.0,
        description="share of prompts, by hash, that go to TEST where a line names no split",
    )
    max_length: int = Field(
        1024, ge=32, description="most tokens of a prompt and one completion together"
    )
    chat_template: str | None = Field(
        None, description="Jinja file to use in place of the tokenizer's chat template"
    )
    turns: Turns = Field(
        "last",
        description="what supervised fine-tuning learns of a conversation: its last answer, or all",
    )
    cache_dir: str | None = Field(
        None,
        description="folder of tokenised data and reference log-probs, shared by all runs; "
        "default: $JAXDPO_CACHE, or ~/.cache/jaxdpo",
    )

    def cache_folder(self) -> Path:
        """The folder that holds tokenised data."""
        default = os.environ.get("JAXDPO_CACHE") or "~/.cache/jaxdpo"
        return Path(self.cache_dir or default).expanduser()

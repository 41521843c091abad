"""`python -m jaxdpo.sample model=… data=… out=…`: a model's answers to prompts."""

import sys
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jaxdpo.answering import Dtype, source_of
from jaxdpo.command import run_command
from jaxdpo.console import Reporter
from jaxdpo.data.generations import Generation
from jaxdpo.data.prompts import PromptsConfig, read_prompts, with_path
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.sampling.server import ServerConfig, is_server
from jaxdpo.sampling.to_file import sample_to_file
from jaxdpo.settings import load_settings, sections_text

USAGE = """usage: python -m jaxdpo.sample model=… data=PROMPTS out=ANSWERS.jsonl [field=value …]

Writes a model's answers to prompts, one a line. The same command again continues one that was cut
off. A model is a folder, an adapter folder, org/name, a run folder, one of a run's checkpoints, or
http://host:port/v1#name for an OpenAI-compatible server (key from OPENAI_API_KEY).
"""


class SampleConfig(BaseModel):
    """Who answers what, and where to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="what answers")
    data: PromptsConfig = Field(description="the prompts")
    out: str = Field(description="JSONL file of the answers")
    samples: int = Field(default=1, ge=1, description="answers to each prompt")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="how they are drawn")
    dtype: Dtype | None = Field(
        default=None, description="of activations; default: float32 on CPU, bfloat16 elsewhere"
    )
    chat_template: str | None = Field(
        default=None, description="Jinja file to use in place of the model's chat template"
    )
    server: ServerConfig | None = Field(default=None, description="how a server is asked")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"samples is {self.samples}, but all would be the same at temperature 0; set "
                "sampling.temperature=1"
            )
        if is_server(self.model):
            for name in ("dtype", "chat_template"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} would be ignored: {self.model} is a server")
        elif self.server is not None:
            raise ValueError(f"server would be ignored: {self.model} is no server's address")
        return self


def main(arguments: list[str]) -> None:
    """Samples as the arguments say; `--help` shows every field."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE + "\n" + sections_text(SampleConfig))
        return
    sample(load_settings(SampleConfig, None, with_path(arguments)))


def sample(config: SampleConfig) -> list[Generation]:
    """Answers the prompts, and returns what was written.

    Raises:
      UserError: For whatever the user can mend.
    """
    reporter, out = Reporter(), Path(config.out)
    read = read_prompts(config.data)
    reporter.say(f"{config.data.path}: {read.summary()}")
    source = source_of(
        config.model, config.sampling, config.server, config.dtype, config.chat_template
    )
    with reporter.bar("answers", len(read.prompts) * config.samples) as advance:
        answers = sample_to_file(out, source, read.prompts, config.samples, advance)
    cut = sum(not answer.finished for answer in answers)
    note = f", {cut} of them cut off at {config.sampling.max_new_tokens} tokens" if cut else ""
    reporter.say(f"{out}: {len(answers)} answers to {len(read.prompts)} prompts{note}")
    return answers


if __name__ == "__main__":
    sys.exit(run_command(main))

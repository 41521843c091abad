"""A studio whose models are functions: run as a process, so that it can be killed.

    python tests/annotation/fake_studio.py '{"folder": "feedback", "port": 8123, …}'
"""

import asyncio
import json
import sys

import uvicorn

from jaxdpo.annotation.app import make_app
from jaxdpo.annotation.config import StudioConfig
from jaxdpo.annotation.studio import make_studio
from jaxdpo.annotation.tasks import read_tasks
from jaxdpo.feedback.store import FeedbackStore


class Fake:
    """Answers with its name and a number that grows, in pieces."""

    def __init__(self, name):
        self.name, self.count = name, 0

    async def answer(self, messages, tools=()):
        self.count += 1
        asked = messages[-1]["content"]
        text = f"{self.name} says no. {self.count} to {asked!r}"
        if "hostile" in asked:
            text = f"</script><img src=x onerror=\"document.title='owned'\"> {self.count} **bold**"
        if "fail" in asked:
            raise RuntimeError("the model broke")
        for word in text.split(" "):
            yield word + " "
            await asyncio.sleep(0)

    def start(self):
        pass

    def stop(self):
        pass


def main(arguments):
    config = StudioConfig(**{"models": {"sft": "a", "dpo": "b"}, **json.loads(arguments)})
    models = {name: Fake(name) for name in config.models}
    studio = make_studio(config, FeedbackStore(config.folder), models, read_tasks(config.data))
    uvicorn.run(make_app(studio), host=config.host, port=config.port, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1])

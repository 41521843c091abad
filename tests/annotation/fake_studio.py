"""Studios whose models are functions, each in a process of its own, so that it can be killed.

Reads a configuration a line from its input, forks a server for it, and prints the server's process
id. Forking spares every server the seconds that importing takes.
"""

import asyncio
import json
import os
import signal
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
        text = f"{self.name} says no. {os.getpid()}-{self.count} to {asked!r}"
        if "hostile" in asked:
            text = f"</script><img src=x onerror=\"document.title='owned'\"> {self.name} **bold**"
        if "broken" in asked:
            raise RuntimeError("the model broke")
        for word in text.split(" "):
            yield word + " "
            await asyncio.sleep(0)

    def start(self):
        pass

    def stop(self):
        pass


def serve(arguments):
    config = StudioConfig(**{"models": {"sft": "a", "dpo": "b"}, **json.loads(arguments)})
    models = {name: Fake(name) for name in config.models}
    studio = make_studio(config, FeedbackStore(config.folder), models, read_tasks(config.data))
    uvicorn.run(make_app(studio), host=config.host, port=config.port, log_level="warning")


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            serve(line)
            os._exit(0)
        print(child, flush=True)

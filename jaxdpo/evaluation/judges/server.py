"""A judge at an OpenAI-compatible server; what it said is kept on disk and never paid for twice."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from jaxdpo.errors import UserError
from jaxdpo.evaluation.judges.client import ATTEMPTS, Asker, Conversation, JudgeConfig, Reply
from jaxdpo.storage.files import cache_folder

CACHE_FILE = "judge_replies.jsonl"


def server_asker(config: JudgeConfig) -> Asker:
    """A judge that a server answers for.

    Requests that time out, are turned away (429) or fail at the server (5xx) are sent again with
    back-off by the client, `config.retries` times. One that the server refuses (400, 413, 422)
    has no reply.

    Raises:
      UserError: Without the client or a key; and, while asking, when the server stops answering
        or refuses the key or the model. What it said before is kept.
    """
    server = _Server(config)
    return Asker(server.ask, lambda: dict(server.spent))


class _Server:
    """A client, its cache of replies, and its bill."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self.client = _client(config)
        self.cache = ReplyCache(cache_folder(config.cache) / CACHE_FILE)
        self.lock = threading.Lock()
        names = ("requests", "from_cache", "prompt_tokens", "completion_tokens", "cost")
        self.spent: dict[str, float] = {name: 0.0 for name in names}

    def ask(self, conversations: Sequence[Conversation]) -> Iterator[Reply]:
        """A reply to each conversation; equal ones are asked once."""
        keys = [self._key(conversation) for conversation in conversations]
        kept = {key: reply for key in keys if (reply := self.cache.get(key)) is not None}
        self.spent["from_cache"] += len(kept)
        pool = ThreadPoolExecutor(self.config.concurrency)
        try:
            asked = {
                key: pool.submit(self._reply, key, conversation)
                for key, conversation in dict(zip(keys, conversations, strict=True)).items()
                if key not in kept
            }
            for key in keys:
                yield kept[key] if key in kept else asked[key].result()
        finally:
            # What is under way will be paid for: it is waited for, and kept.
            pool.shutdown(cancel_futures=True)

    def _reply(self, key: str, conversation: Conversation) -> Reply:
        """Asks the server; what it says is kept before anything else is done with it."""
        try:
            completion = self._completion(conversation)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return Reply(None, f"the server refuses the request: {error.message}")
        except openai.APIStatusError as error:
            if error.status_code == 413:
                return Reply(None, f"the server refuses the request: {error.message}")
            raise self._stopped(error) from error
        except openai.APIConnectionError as error:
            raise self._stopped(error) from error
        if completion is None:
            return Reply(None, f"the server sent no chat completion, {ATTEMPTS} times")
        choice = completion.choices[0]
        text, problem = choice.message.content, None
        if choice.finish_reason == "length":
            text, problem = None, "its reply was cut off; raise max_tokens"
        elif not text:
            text, problem = None, f"its reply was empty ({choice.finish_reason})"
        self.cache.put(key, Reply(text, problem))
        return Reply(text, problem)

    def _completion(self, conversation: Conversation) -> ChatCompletion | None:
        """What the server says; None if that is no chat completion, however often it is asked."""
        for _ in range(ATTEMPTS):
            try:
                said: Any = self.client.chat.completions.create(**self._body(conversation))
            except (openai.APIResponseValidationError, json.JSONDecodeError, UnicodeDecodeError):
                continue
            if isinstance(said, ChatCompletion) and said.choices and said.choices[0].message:
                self._count(said)
                return said
        return None

    def _count(self, said: ChatCompletion) -> None:
        used = (said.usage.prompt_tokens, said.usage.completion_tokens) if said.usage else (0, 0)
        prices = self.config.prices or (0.0, 0.0)
        with self.lock:
            self.spent["requests"] += 1
            self.spent["prompt_tokens"] += used[0]
            self.spent["completion_tokens"] += used[1]
            self.spent["cost"] += (used[0] * prices[0] + used[1] * prices[1]) / 1e6

    def _stopped(self, error: openai.APIError) -> UserError:
        where = f"judge {self.config.model} at {self.client.base_url}"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            said = f"refuses the key ({error.message}); set it in the environment, see key_env"
        elif isinstance(error, openai.NotFoundError):
            said = f"is not there ({error.message}); set model or base_url"
        else:
            said = (
                f"did not answer, asked {self.config.retries + 1} times ({error.message}); what it "
                "said before is kept: the same command again goes on"
            )
        return UserError(f"{where} {said}")

    def _body(self, conversation: Conversation) -> dict[str, Any]:
        limit = {"max_tokens": self.config.max_tokens}
        heat = self.config.temperature
        sampling = {} if heat is None else {"temperature": heat}
        return {"model": self.config.model, "messages": list(conversation), **limit, **sampling}

    def _key(self, conversation: Conversation) -> str:
        asked = [str(self.client.base_url), self._body(conversation)]
        text = json.dumps(asked, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _client(config: JudgeConfig) -> openai.OpenAI:
    name = config.key_env or "OPENAI_API_KEY"
    key = os.environ.get(name)
    if not key and (config.key_env or not config.base_url):
        raise UserError(f"judge {config.model}: the environment has no {name}; set it to the key")
    return openai.OpenAI(
        api_key=key or "none",
        base_url=config.base_url,
        timeout=config.timeout,
        max_retries=config.retries,
    )


class ReplyCache:
    """An append-only file of replies by the content of what was asked.

    Each reply is on disk, whole, before it is used. A line that a killed process left unfinished is
    not a reply, and spoils no other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.replies: dict[str, Reply] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            written = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise UserError(f"{path}: cannot be used, set judge.cache: {error}") from error
        for line in written.splitlines():
            try:
                key, text, problem = json.loads(line)
            except ValueError:
                continue
            self.replies[key] = Reply(text, problem)
        self.start = b"" if written.endswith(b"\n") or not written else b"\n"

    def get(self, key: str) -> Reply | None:
        """The reply that is kept under a key."""
        return self.replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Keeps a reply."""
        with self.lock:
            with open(self.path, "ab") as file:
                file.write(self.start + json.dumps([key, *reply]).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self.start = b""
            self.replies[key] = reply

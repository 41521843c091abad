"""Judges at OpenAI-compatible servers; replies are kept on disk and never paid for twice."""

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdpo.errors import UserError
from jaxdpo.evaluation.judges.client import Conversation, JudgeClient, JudgeConfig, Reply
from jaxdpo.servers.chat_client import ChatClient, RequestRefused
from jaxdpo.storage.files import cache_folder

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

CACHE_FILE = "judge_replies.jsonl"


def server_client(config: JudgeConfig) -> JudgeClient:
    """Opens the client of a judge at a server.

    Requests that time out, are turned away (429) or fail at the server (5xx) are sent again with
    back-off, `config.retries` times. A request that the server refuses (400, 413, 422) has no
    reply.

    Raises:
      UserError: Without the openai package or a key; and, while asking, when the server stops
        answering or refuses the key or the model. Replies that came before are kept.
    """
    server = _Server(config)
    return JudgeClient(server.ask, lambda: dict(server.usage))


class _Server:
    """A client, its cache of replies, and its bill."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self.client = ChatClient(
            f"judge {config.model}",
            config.base_url,
            config.key_env,
            config.timeout,
            config.retries,
        )
        self.cache = ReplyCache(cache_folder(config.cache) / CACHE_FILE)
        self.lock = threading.Lock()
        names = ("requests", "from_cache", "prompt_tokens", "completion_tokens", "cost")
        self.usage: dict[str, float] = {name: 0.0 for name in names}

    def ask(self, conversations: Sequence[Conversation]) -> Iterator[Reply]:
        """Yields a reply to each conversation; equal ones are asked once."""
        keys = [self._key(conversation) for conversation in conversations]
        kept = {key: reply for key in keys if (reply := self.cache.get(key)) is not None}
        self.usage["from_cache"] += len(kept)
        # Threads and not asyncio: a notebook has an event loop of its own, and the time goes into
        # waiting for the server.
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
            # Requests that are under way will be paid for: they are waited for, and kept.
            pool.shutdown(cancel_futures=True)

    def _reply(self, key: str, conversation: Conversation) -> Reply:
        """Asks the server; its reply is kept before anything else is done with it."""
        try:
            completion = self.client.complete(self._body(conversation))
        except RequestRefused as refused:
            return Reply(None, str(refused))
        self._count(completion)
        choice = completion.choices[0]
        text, problem = choice.message.content, None
        if choice.finish_reason == "length":
            text, problem = None, "its reply was cut off; raise max_tokens"
        elif not text:
            text, problem = None, f"its reply was empty ({choice.finish_reason})"
        self.cache.put(key, Reply(text, problem))
        return Reply(text, problem)

    def _count(self, said: "ChatCompletion") -> None:
        used = (said.usage.prompt_tokens, said.usage.completion_tokens) if said.usage else (0, 0)
        prices = self.config.prices or (0.0, 0.0)
        # Replies come in several threads, and adding to a float is not one step.
        with self.lock:
            self.usage["requests"] += 1
            self.usage["prompt_tokens"] += used[0]
            self.usage["completion_tokens"] += used[1]
            # Prices are of a million tokens.
            self.usage["cost"] += (used[0] * prices[0] + used[1] * prices[1]) / 1e6

    def _body(self, conversation: Conversation) -> dict[str, Any]:
        limit = {"max_tokens": self.config.max_tokens}
        heat = self.config.temperature
        sampling = {} if heat is None else {"temperature": heat}
        return {"model": self.config.model, "messages": list(conversation), **limit, **sampling}

    def _key(self, conversation: Conversation) -> str:
        # Everything that the reply depends on, the server too: the same name elsewhere may be
        # another model.
        asked = [self.client.base_url, self._body(conversation)]
        text = json.dumps(asked, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """An append-only file of replies by the content of the request.

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
            if (found := _read_line(line)) is not None:
                self.replies[found[0]] = found[1]
        # After a line that was cut off, the next one begins on a line of its own.
        self.start = b"" if written.endswith(b"\n") or not written else b"\n"

    def get(self, key: str) -> Reply | None:
        """Returns the reply that is kept under a key."""
        return self.replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Keeps a reply."""
        with self.lock:
            with open(self.path, "ab") as file:
                file.write(self.start + _line(key, reply) + b"\n")
                file.flush()
                # To the disk itself: what a reply cost is more than what a power cut may take.
                os.fsync(file.fileno())
            self.start = b""
            self.replies[key] = reply


def _line(key: str, reply: Reply) -> bytes:
    """Returns a reply as a line with a checksum, since a flipped bit may make a PASS a FAIL."""
    kept = json.dumps([key, *reply])
    return json.dumps([key, *reply, zlib.crc32(kept.encode())]).encode()


def _read_line(line: bytes) -> tuple[str, Reply] | None:
    """Reads a line of a cache; None of one that is torn or damaged, so that the judge is asked."""
    try:
        # Earlier versions wrote no checksum.
        key, text, problem, *checksum = json.loads(line)
        if checksum not in ([], [zlib.crc32(json.dumps([key, text, problem]).encode())]):
            return None
        return str(key), Reply(text, problem)
    except (ValueError, TypeError):
        return None

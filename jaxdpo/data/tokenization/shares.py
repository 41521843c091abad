"""A large data set, tokenised by many processes, of one machine or of several.

A share is a file, or a part of a large one. Each is tokenised by itself, to a folder of its own,
and at the end all are put together in their order, as one process would have stored them, bit for
bit. What is done stays done: a start after an interruption, or after one file has changed,
tokenises the rest only.

Nobody hands the shares out: whoever has nothing to do claims the next. So machines that share a
cache folder share the work, though they know nothing of one another.
"""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from jaxdpo.data.config import DataConfig
from jaxdpo.data.pairs import Split
from jaxdpo.data.reading.bad_lines import BadLines, read_rejects
from jaxdpo.data.reading.reader import Reading, Weighted, recognise
from jaxdpo.data.reading.renaming import Renaming
from jaxdpo.data.reading.reports import ReadReport, TokenizeReport
from jaxdpo.data.reading.sources import digest_of, parts_of
from jaxdpo.data.reading.tally import Tally
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.pair_store import PairWriter
from jaxdpo.data.tokenization.storing import REJECTS, SPLITS, VERSIONS, store_pairs
from jaxdpo.devices.peers import processes_here
from jaxdpo.errors import UserError
from jaxdpo.storage.claims import Claims, touched
from jaxdpo.storage.files import json_digest, replacing
from jaxdpo.storage.sealed import read_sealed, write_sealed

# Files of this size together are worth the seconds that a process takes to start.
_LARGE = 2**26
# Bytes of a part of a file; the same everywhere, so that machines of any number of cores find the
# same parts.
_PART = 2**25
_DONE = "done.json"
_WAIT = 0.2


class Work(NamedTuple):
    """Settings and tokenizer that every process has to know."""

    config: DataConfig
    chat: Chat
    supervised: bool


@dataclass(frozen=True)
class Share:
    """One file or part of one, and where its tokens go.

    Attributes:
      work: How it is tokenised.
      weighted: The file or part, and how often its pairs come.
      folder: Where its tokens go.
      key: SHA-256 of all that they depend on.
    """

    work: Work
    weighted: Weighted
    folder: Path
    key: str

    @property
    def claim(self) -> Path:
        """The file whose time says that somebody is at work."""
        return self.folder.with_suffix(".claim")

    def rejected(self) -> Counter[str] | None:
        """Returns the bad lines by code, once the share is done; None before."""
        done = read_sealed(self.folder / _DONE)
        return Counter(done["rejected"]) if done and done["key"] == self.key else None


def find_shares(
    config: DataConfig, supervised: bool, sources: Sequence[Weighted]
) -> tuple[int, list[Weighted]]:
    """Returns by how many processes a data set is tokenised, and what each does at a time.

    Args:
      config: How it is read.
      supervised: Whether it holds examples.
      sources: Its sources.
    """
    wished = config.processes
    if wished is None:
        paths = [Path(each.source.name).expanduser() for each in sources if not each.source.hub]
        large = sum(path.stat().st_size for path in paths if path.exists()) >= _LARGE
        # A process for each device would otherwise start as many for each core.
        wished = max(1, _cores() // processes_here()) if large else 1
    if wished == 1:
        return 1, list(sources)
    found = [part for each in sources for part in _parts(config, supervised, each)]
    return min(wished, len(found)), found


def _parts(config: DataConfig, supervised: bool, weighted: Weighted) -> list[Weighted]:
    parts = parts_of(weighted.source, _PART)
    if len(parts) > 1:
        form = config.format or recognise(weighted.source, Renaming(config.columns), supervised)
        # Rows that follow one another are compared there, so none may be parted from the next.
        if form == "rated":
            return [weighted]
    return [weighted._replace(source=part) for part in parts]


def _cores() -> int:
    # A launcher may have given this process a part of the machine; only Linux tells.
    given = getattr(os, "sched_getaffinity", None)
    return len(given(0)) if given is not None else os.cpu_count() or 1


def make_shares(
    config: DataConfig, chat: Chat, supervised: bool, sources: Sequence[Weighted]
) -> list[Share]:
    """Plans the shares of a data set.

    Args:
      config: How it is read.
      chat: What encodes the pairs.
      supervised: Whether they are examples.
      sources: Its sources.
    """
    cache = config.cache_folder()
    # Bad lines are put together, too, before they stop the run.
    work = Work(config.model_copy(update={"on_error": "skip"}), chat, supervised)
    # Once a file, and not once for each of its parts.
    files = {each.source.name: each.source for each in sources}
    digests = {name: digest_of(file, cache / "digests") for name, file in files.items()}
    made = [*VERSIONS, chat.fingerprint, supervised, config.reading()]
    shares = []
    for each in sources:
        about = [*made, list(each), digests[each.source.name]]
        key = json_digest(about)
        shares.append(Share(work, each, cache / "shares" / key, key))
    return shares


def store_whole(
    shares: Sequence[Share],
    processes: int,
    config: DataConfig,
    folder: Path,
    key: str,
    is_whole: Callable[[], bool],
    finish: Callable[[ReadReport], None],
) -> None:
    """Tokenises all shares that nobody else does, waits for the rest, and puts them together.

    Args:
      shares: The shares.
      processes: How many work here.
      config: How the data set is read.
      folder: Where its tokens go.
      key: What they stand for.
      is_whole: Whether somebody else has put the shares together by now.
      finish: Makes what was put together count.

    Raises:
      UserError: If a file cannot be read, with `on_error="stop"` for bad lines, and if there are
        no TRAIN pairs.
    """
    shares[0].folder.parent.mkdir(parents=True, exist_ok=True)
    _tokenise(shares, processes, is_whole)
    claims, claim = Claims(), shares[0].folder.with_name(f"{key}.claim")
    while not is_whole():
        if claims.take(claim):
            with touched(claim):
                finish(_merge(shares, config, folder, key))
                for share in shares:
                    shutil.rmtree(share.folder, ignore_errors=True)
            return
        time.sleep(_WAIT)


def _tokenise(shares: Sequence[Share], processes: int, is_whole: Callable[[], bool]) -> None:
    """Tokenises shares in several processes until all are done, here or elsewhere."""
    started: list[subprocess.Popen] = []

    def run() -> None:
        claims = Claims()
        with _worker(shares[0].work) as worker:
            started.append(worker.process)
            while waiting := [share for share in shares if share.rejected() is None]:
                if is_whole():
                    return
                share = next((each for each in waiting if claims.take(each.claim)), None)
                if share is None:
                    time.sleep(_WAIT)
                    continue
                with touched(share.claim):
                    worker.store(share)

    todo = sum(share.rejected() is None for share in shares)
    with ThreadPoolExecutor(max(1, processes)) as pool:
        working = [pool.submit(run) for _ in range(min(processes, todo))]
        try:
            for each in as_completed(working):
                each.result()
        except BaseException:
            # Nobody waits for the other shares once one cannot be read, or at Ctrl-C.
            for process in started:
                process.kill()
            raise


def _merge(shares: Sequence[Share], config: DataConfig, folder: Path, key: str) -> ReadReport:
    """Puts the shares together, in their order, as one process would have stored them."""
    rejected, tally = Counter[str](), Tally()
    with contextlib.ExitStack() as stack:
        bad_lines = BadLines(stack.enter_context(replacing(folder / REJECTS)))
        writers: dict[Split, PairWriter] = {
            split: stack.enter_context(PairWriter(folder / split, key)) for split in SPLITS
        }
        reports: dict[Split, list[TokenizeReport]] = {split: [] for split in SPLITS}
        for share in shares:
            rejected += share.rejected() or Counter()
            tally.merge(Tally.load(share.folder))
            for bad in read_rejects(share.folder / REJECTS):
                bad_lines.add(bad)
            for split, writer in writers.items():
                reports[split].append(writer.append(share.folder / split, share.key))
        # In the order in which one process comes upon these.
        tally.check(config.name(), config.ranked_margin)
        bad_lines.stop(config)
        report = tally.report(config.name(), rejected)
        for split, writer in writers.items():
            writer.finish(_added(reports[split]))
    return report


def _added(reports: Sequence[TokenizeReport]) -> TokenizeReport:
    sums: dict[str, Any] = {}
    for field in fields(TokenizeReport):
        values = [getattr(report, field.name) for report in reports]
        sums[field.name] = sum(values, 0 if field.name == "pairs" else ())
    return TokenizeReport(**sums)


class _Worker:
    """A process that tokenises one share after the other.

    Attributes:
      process: It.
    """

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def store(self, share: Share) -> None:
        """Has a share tokenised.

        Raises:
          UserError: If it cannot be read, or the process died.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            pickle.dump((share.weighted, share.folder, share.key), self.process.stdin)
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise UserError(
                f"{share.weighted.source.name}: the process that tokenised it ended with status "
                f"{self.process.wait()}; if it was killed, for want of memory, set data.processes "
                "to fewer"
            )
        if (problem := json.loads(answer)) is not None:
            raise UserError(problem)


@contextlib.contextmanager
def _worker(work: Work) -> Iterator[_Worker]:
    # A command and not a fork or `multiprocessing`: threads of JAX do not survive the one, and the
    # other runs the main program of a user's script once more.
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxdpo.data.tokenization.share_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # The cores are shared out among the processes, so each tokenizer has one thread.
        env=os.environ | {"RAYON_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(work, process.stdin)
        yield _Worker(process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def store_share(work: Work, weighted: Weighted, folder: Path, key: str) -> None:
    """Tokenises one share, in the process that works on it.

    Args:
      work: How.
      weighted: The file.
      folder: Where its tokens go.
      key: What they stand for.

    Raises:
      UserError: If it cannot be read.
    """
    config, chat, supervised = work
    reading = Reading(config.weights(), config, supervised, [weighted])
    folder.mkdir(parents=True, exist_ok=True)
    rejected = store_pairs(reading, chat, config, folder, key, lambda _, rejected: rejected)
    reading.tally.save(folder)
    # Last, since a share without it counts as unfinished.
    write_sealed(folder / _DONE, {"key": key, "rejected": rejected})

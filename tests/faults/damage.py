"""Flips bits of all files that are read back, and changes model folders at random.

A flip must be noticed: the file is named, or what it holds is made anew, or it changed nothing that
counts. A flip that gives another value without a word is silent, and the worst; a traceback, a
crash and a hang are faults too.
"""

import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxdpo.errors import UserError

PACKAGE = Path(__file__).parents[2] / "jaxdpo"
_GOOD = ("same", "refused", "made anew")


def isolated(work: Callable[[], str], seconds: float = 60.0, gib: float = 0.0) -> str:
    """Returns what a function returns in a process of its own, or how that ended.

    Args:
      work: Returns a word.
      seconds: After which it hangs.
      gib: Memory that it may have beside what this process has; 0: any.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if gib:
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            limit = held + int(gib * 2**30)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            said = work()
        except UserError as error:
            said = f"refused: {error}"
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            said = f"TRACEBACK {type(error).__name__}: {error}"
        os.write(writing, said.encode(errors="replace")[:2000])
        os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], seconds)
    said = os.read(reading, 2000).decode(errors="replace") if ready else "HANG"
    os.close(reading)
    if not ready:
        os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return f"CRASH by signal {-status}" if ready and status < 0 else said


@dataclass(frozen=True)
class Kept:
    """Files of one kind, and how they are read.

    Attributes:
      kind: Name.
      files: The files.
      read: Returns all that is read from them as text, "made anew" where they do not count, or
        raises what the user gets to see.
    """

    kind: str
    files: list[Path]
    read: Callable[[], str]


def flip_bits(count: int, seed: int) -> int:
    """Flips bits, each in turn in a file of every kind, and shows what came of it.

    Args:
      count: How many.
      seed: Of what is drawn.
    """
    rng, counts = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory() as name:
        os.environ["JAXDPO_CACHE"] = f"{name}/cache"
        kinds = list(_kinds(Path(name)))
        for number in range(count):
            kept = kinds[number % len(kinds)]
            file = rng.choice([each for each in kept.files if each.stat().st_size])
            counts[kept.kind, _flipped(kept, file, rng)] += 1
    for (kind, came), many in sorted(counts.items()):
        print(f"{kind}: {came} {many}")
    bad = sum(many for (_, came), many in counts.items() if came not in _GOOD)
    print(f"{count} flips: {bad} bad")
    return 1 if bad else 0


def _flipped(kept: Kept, file: Path, rng: random.Random) -> str:
    expected = kept.read()
    whole = {each: (each.read_bytes(), each.stat()) for each in kept.files}
    damaged = bytearray(whole[file][0])
    at, bit = rng.randrange(len(damaged)), rng.randrange(8)
    damaged[at] ^= 1 << bit
    file.write_bytes(damaged)
    # As a disk does it: without a trace in the file's size and time.
    os.utime(file, ns=(whole[file][1].st_atime_ns, whole[file][1].st_mtime_ns))
    found = isolated(kept.read)
    # What is damaged may have been removed, to be made anew.
    for each, (content, before) in whole.items():
        if not each.exists() or each == file:
            each.write_bytes(content)
            os.utime(each, ns=(before.st_atime_ns, before.st_mtime_ns))
    if found == expected:
        return "same"
    for word in ("refused", "made anew", "TRACEBACK", "CRASH", "HANG"):
        if found.startswith(word):
            if word not in _GOOD:
                print(f"{kept.kind}: {file.name}, byte {at}, bit {bit}: {found[:300]}", flush=True)
            return word
    print(f"{kept.kind}: {file.name}, byte {at}, bit {bit}: SILENT {found[:200]}", flush=True)
    return "SILENT"


def _kinds(folder: Path) -> Iterator[Kept]:
    """Makes files of every kind, and yields them with how they are read."""
    import numpy as np

    from jaxdpo.config import load_config
    from jaxdpo.data.tokenization.chat import load_chat
    from jaxdpo.data.tokenization.load_pairs import load_pairs
    from tests.faults.commands import write_inputs

    inputs = write_inputs(folder / "inputs")
    chat = load_chat(str(PACKAGE / "quickstart/model"))
    words = [
        f"model.path={PACKAGE / 'quickstart/model'}",
        f"data.path={inputs}/pairs.jsonl",
        f"data.cache_dir={folder}/cache",
        f"training.folder={folder}/run",
    ]
    config = load_config(None, words)
    load_pairs(config.data, chat)
    stored = next((folder / "cache/pairs").iterdir())

    def read_pairs() -> str:
        from jaxdpo.data.tokenization.load_pairs import _open

        loaded = _open(stored, stored.name)
        if loaded is None:
            return "made anew"
        said = [str(loaded.report)]
        for pairs in loaded.splits.values():
            said += [pairs.fingerprint, str(pairs.lengths), str(pairs.scores), str(pairs.labels)]
            for index in range(len(pairs)):
                said.append(f"{[ids.tolist() for ids in pairs[index]]}{pairs.source(index)}")
                said.append(f"{pairs.metadata(index)}{pairs.prompt(index)}")
        return _digest("".join(said))

    yield Kept("tokenised pairs", _files(stored), read_pairs)
    yield _references(folder / "cache/reference", np.random.default_rng(0))
    yield from _run_files(folder)
    yield _checkpoint(folder / "checkpoints")
    yield _replies(folder / "replies.jsonl")
    yield _export(folder / "export")


def _references(folder: Path, rng) -> Kept:
    import numpy as np

    from jaxdpo.scoring.reference import ReferenceCache, compute_and_store, load_cached

    cache, values = ReferenceCache(folder, "k" * 64, 50), rng.normal(size=(50, 2))
    compute_and_store(cache, "p" * 64, lambda _: iter([(np.arange(50), values)]))

    def read() -> str:
        found = load_cached(cache)
        return "made anew" if found is None else _digest(str(found.tolist()))

    return Kept("reference log-probs", _files(folder), read)


def _run_files(folder: Path) -> Iterator[Kept]:
    from jaxdpo.runs.folder import RunFolder
    from jaxdpo.training.trackers.opening import Trackers
    from jaxdpo.training.trackers.tracker import TrackedRun
    from jaxdpo.training.writers import MetricWriter, read_metrics

    run = RunFolder(folder / "run", writes=True)
    run.path.mkdir()
    values = {
        "inputs.json": {"weights (model.path)": "a" * 64, "TRAIN pairs": "b" * 64},
        "completions_before.json": ["an answer", "another one"],
        "summary.json": {"steps": 9, "test": {"loss": 0.5}},
        "data.json": {"TRAIN": {"pairs": 9, "sha256": "c" * 64}},
    }
    for name, value in values.items():
        run.write_json(name, value)
    writer = MetricWriter(run.path, 0, Trackers((), TrackedRun(run.path, 0, {}, {}), print))
    for step in range(1, 9):
        writer.write(step, "TRAIN", {"loss": 0.6931 / step, "grad_norm": 1.5})
    writer.close()

    def read_small() -> str:
        return _digest(json.dumps([run.read_json(name) for name in values]))

    yield Kept("small files of a run", [run.path / name for name in values], read_small)
    hidden = [run.path / ".digests.json"]
    yield Kept("digests of a run", hidden, read_small)
    metrics = [run.path / "metrics.jsonl", run.path / ".metrics.crc32"]
    yield Kept("metrics", metrics, lambda: _digest(json.dumps(read_metrics(run.path))))


def _checkpoint(folder: Path) -> Kept:
    from jaxdpo.storage.manifest import whole_manifest, write_manifest

    # The arrays' own files are bytes like any: what counts is that the manifest is compared.
    (folder / "state/d").mkdir(parents=True)
    rng = random.Random(1)
    for name in ("state/manifest.ocdbt", "state/d/aa", "state/_METADATA"):
        (folder / name).write_bytes(rng.randbytes(3000))
    write_manifest(folder, {"step": 7, "run": {"seed": 0}})

    def read() -> str:
        found = whole_manifest(folder)
        return "made anew" if found is None else _digest(json.dumps(found, sort_keys=True))

    return Kept("checkpoints", _files(folder), read)


def _replies(path: Path) -> Kept:
    from jaxdpo.evaluation.judges.client import Reply
    from jaxdpo.evaluation.judges.server import ReplyCache

    cache = ReplyCache(path)
    for number in range(20):
        cache.put(f"{number:064x}", Reply(f"PASS: because {number}"))

    def read() -> str:
        found, wanted = ReplyCache(path).replies, cache.replies
        wrong = [key for key, reply in found.items() if wanted.get(key) != reply]
        if wrong:
            return f"another reply {wrong}"
        return "made anew" if len(found) < len(wanted) else "same"

    return Kept("replies of judges", [path], read)


def _export(folder: Path) -> Kept:
    from jaxdpo.hub.export import damaged_files
    from jaxdpo.runs.convert import ConvertConfig, convert

    model = PACKAGE / "quickstart/model"
    with contextlib.redirect_stdout(None):
        convert(ConvertConfig(source=str(model), target=str(folder)))

    def read() -> str:
        damaged = damaged_files(folder)
        return f"refused: {damaged}" if damaged else "same"

    return Kept("exports, by --check", _files(folder), read)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(text: str) -> str:
    import hashlib

    return f"value {hashlib.sha256(text.encode()).hexdigest()}"


def fuzz_models(count: int, seed: int) -> int:
    """Changes files of a model folder at random, and opens it in a process with limits.

    Args:
      count: How many.
      seed: Of what is drawn.
    """
    from jaxdpo.data.tokenization.chat import load_chat
    from jaxdpo.hub.policy import open_policy

    rng, counts = random.Random(seed), Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        for number in range(count):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(PACKAGE / "quickstart/model", folder)
            changed = _change(folder, rng)

            def opened() -> str:
                open_policy(str(folder))
                load_chat(str(folder))
                return "opened"

            begun = time.monotonic()
            found = isolated(opened, seconds=60, gib=4)
            word = found.partition(" ")[0].rstrip(":")
            counts[word] += 1
            if word not in ("opened", "refused"):
                print(f"{number}: {changed}: {found[:400]}", flush=True)
            elif time.monotonic() - begun > 20:
                print(f"{number}: {changed}: took {time.monotonic() - begun:.0f} s", flush=True)
    bad = count - counts["opened"] - counts["refused"]
    print(f"{count} model folders: {dict(counts)}; {bad} bad")
    return 1 if bad else 0


# Values of other types, of impossible sizes, and of other alphabets.
_ODD = (
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 2**31, 2**63, 10**30, "", "x", "\x00", "\x1b"),
    *("\u202e", [], [[]], {}, {"a": 1}, [None], "../../etc/passwd", "float8_e4m3fn", [0] * 1000),
)


def _change(folder: Path, rng: random.Random) -> str:
    """Changes one file of a model folder; returns what was done."""
    kind = rng.choice(("config.json", "tokenizer.json", "tokenizer_config.json", "header", "bytes"))
    if kind == "header":
        return _change_header(folder / "model.safetensors", rng)
    if kind == "bytes":
        file = rng.choice(_files(folder))
        content = bytearray(file.read_bytes())
        for _ in range(rng.choice((1, 1, 20))):
            content[rng.randrange(min(len(content), 4096))] = rng.randrange(256)
        cut = rng.choice((len(content), rng.randrange(len(content))))
        file.write_bytes(content[:cut])
        return f"bytes of {file.name}"
    file = folder / kind
    value = json.loads(file.read_text())
    said = _change_value(value, rng)
    file.write_text(json.dumps(value))
    return f"{kind}: {said}"


def _change_header(file: Path, rng: random.Random) -> str:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    said = _change_value(header, rng)
    encoded = json.dumps(header).encode()
    given = rng.choice((len(encoded), len(encoded), 0, 2**20, 2**40, 2**63))
    file.write_bytes(given.to_bytes(8, "little") + encoded + content[8 + length :])
    return f"header of length {given}: {said}"


def _change_value(value, rng: random.Random) -> str:
    """Changes one thing within a JSON value, at any depth."""
    path = []
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        path.append(str(key)[:30])
        inner = value[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
            value = inner
            continue
        how = rng.choice(("odd", "odd", "delete", "deep"))
        if how == "delete":
            del value[key]
        elif how == "deep":
            deep: list = []
            for _ in range(500):
                deep = [deep]
            value[key] = deep
        else:
            value[key] = rng.choice(_ODD)
        return f"{'/'.join(path)} {how} {str(value[key])[:40] if how == 'odd' else ''}"

"""Measures the cost of reading and tokenizing preference data.

    python -m tests.benchmarks.data pairs=1000000 folder=/tmp/jaxdpo-data

makes that many pairs of realistic length (log-normal, prompt about 120 tokens, completions about
290), and prints: how fast they are tokenised next to the bare `tokenizers` library, which takes
turns with us on part of the same text and on the same cores; the resident memory of that process,
how long the second start takes, what the plan takes, and what a batch at a random step takes next
to one of 1,000 pairs. On a machine that others use too, compare the processor time.

    python -m tests.benchmarks.data stored=10000,1000000 [prompt=10 answer=10] [output=F.svg]

writes as many pairs of made-up ids (of those lengths by default) straight to the disk, 16,384 of
them over and over, and prints what does not depend on how they got there, each row from a process
of its own. Times are of one processor; nothing here has several threads.

    python -m tests.benchmarks.data shares=8 pairs=40000 processes=1,2

parts the pairs into so many files, and prints how fast they are tokenised by so many processes.

    python -m tests.benchmarks.data inspect=1000000

prints what their inspection takes, one in twenty of them being a near-duplicate of an earlier one.
"""

import itertools
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

# How Llama 3, Qwen and many others part text before merging.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_PROMPT, _ANSWER = 120, 290
_BATCH = 1024
_STEPS = 200
_DRAWN = 2**14


class Bare(NamedTuple):
    """Time that the bare library took for some pairs, in seconds and processor seconds."""

    seconds: float
    cpu: float
    pairs: int


def made_text(rng: np.random.Generator, count: int) -> str:
    """Words of made-up syllables, some often and most rarely, in sentences and paragraphs."""
    syllables = [c + v + e for c in "bcdfghklmnprstvz" for v in "aeiou" for e in ("", "n", "r")]
    lengths = rng.choice([1, 2, 3, 4], 60_000, p=[0.2, 0.4, 0.3, 0.1])
    known = ["".join(rng.choice(syllables, length)) for length in lengths]
    ranks = np.minimum(rng.zipf(1.2, count) - 1, len(known) - 1)
    ends = rng.choice(["", "", "", "", "", "", "", "", ",", ".", ".", "?", ".\n\n"], count)
    return " ".join(known[rank] + end for rank, end in zip(ranks, ends, strict=True))


def make_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE with 32,000 pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=32_000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    tokenizer.add_special_tokens(list(_SPECIAL))
    return tokenizer


def make_files(folder: Path, count: int) -> tuple[Path, Path]:
    """A tokenizer folder and a file of pairs, made once."""
    from transformers import PreTrainedTokenizerFast

    pairs, model = folder / f"pairs-{count}.jsonl", folder / "tokenizer"
    if pairs.exists():
        return pairs, model
    rng = np.random.default_rng(0)
    text = made_text(rng, 3_000_000)
    model.mkdir(parents=True, exist_ok=True)
    backend = make_tokenizer(text[:8_000_000])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.chat_template = _CHATML
    tokenizer.save_pretrained(model)
    sample = text[:1_000_000]
    per_token = len(sample) / len(backend.encode(sample).ids)
    means = np.log(np.array([_PROMPT, _ANSWER, _ANSWER]) * per_token) - 0.6**2 / 2
    partial = pairs.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8") as file:
        for _ in range(count):
            sizes = np.clip(rng.lognormal(means, 0.6), 8, 3000 * per_token).astype(int)
            starts = rng.integers(0, len(text) - sizes)
            said = [text[start : start + size] for start, size in zip(starts, sizes, strict=True)]
            file.write(json.dumps(_line(*said)) + "\n")
    partial.rename(pairs)
    return pairs, model


def _line(prompt: str, chosen: str, rejected: str) -> dict[str, object]:
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": chosen + "."},
        ],
        "rejected_message": {"role": "assistant", "content": rejected + "!"},
    }


def time_bare(lines: Iterable[str], tokenizer: Tokenizer) -> Bare:
    """Measures the bare library on some lines.

    Each prompt once and each answer once, many at a time on all cores, to lists of ids.
    """
    seconds, cpu, count = 0.0, 0.0, 0
    lines = iter(lines)
    while batch := [json.loads(line) for line in itertools.islice(lines, _BATCH)]:
        said = [[*record["messages"], record["rejected_message"]] for record in batch]
        texts = [message["content"] for messages in said for message in messages]
        start, used = time.perf_counter(), time.process_time()
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            encoding.ids  # noqa: B018
        seconds += time.perf_counter() - start
        cpu += time.process_time() - used
        count += len(batch)
    return Bare(seconds, cpu, count)


def side_by_side(pairs: Path, model: Path, cache: Path, every: float) -> tuple[dict, Bare]:
    """`measure` of a first start, held still every so many seconds for the bare library to run.

    So both meet the same machine, whatever else it does; the library takes 2,000 lines at a time.
    """
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    bare = []
    with open(pairs, encoding="utf-8") as lines:
        process = subprocess.Popen(
            measuring(str(pairs), str(model), str(cache)), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        held = 0.0
        while process.poll() is None:
            try:
                process.wait(every)
            except subprocess.TimeoutExpired:
                start = time.perf_counter()
                process.send_signal(signal.SIGSTOP)
                bare.append(time_bare(itertools.islice(lines, 2000), tokenizer))
                process.send_signal(signal.SIGCONT)
                held += time.perf_counter() - start
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        found = json.loads(process.stdout.read())
        bare.append(time_bare(itertools.islice(lines, 2000), tokenizer))
    return {**found, "seconds": found["seconds"] - held}, Bare(*map(sum, zip(*bare, strict=True)))


def measure(pairs: str, model: str, cache: str, plans: str = "", processes: str = "1") -> None:
    """Prints a line when it begins, and as JSON what one process that loads the pairs sees.

    With `plans`, also what planning and batches take.
    """
    from jaxdpo.data.config import DataConfig
    from jaxdpo.data.tokenization.chat import load_chat
    from jaxdpo.data.tokenization.load_pairs import load_pairs

    chat = load_chat(model)
    print("begins", flush=True)
    config = DataConfig(path=pairs, cache_dir=cache, max_length=2048, processes=int(processes))
    before = cpu_seconds()
    start = time.perf_counter()
    loaded = load_pairs(config, chat)
    seconds = time.perf_counter() - start
    train = loaded.splits["TRAIN"]
    found = {
        "seconds": seconds,
        "cpu": cpu_seconds() - before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "pairs": sum(map(len, loaded.splits.values())),
        "tokens": int(sum(split.lengths.sum() for split in loaded.splits.values())),
    }
    print(json.dumps({**found, **(plan_times(train) if plans else {})}))


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


def plan_times(train) -> dict[str, float]:
    from jaxdpo.data.packing.layout import pack_batch
    from jaxdpo.data.packing.plan import (
        BatchConfig,
        Packer,
        choose_row_length,
        make_train_plan,
        scoring_shape,
    )

    config = BatchConfig(size=64)
    start = time.process_time()
    row_length = choose_row_length(train.lengths, config, 1)
    packer = Packer(train.lengths, config, 1, row_length)
    plan = make_train_plan(packer, 0, 1.0, None)
    shape = plan.shape("tiles")
    planned = time.process_time() - start
    scoring_shape([packer], "tiles")
    scored = time.process_time() - start - planned
    steps = np.random.default_rng(0).integers(0, plan.num_steps, _STEPS)
    times = []
    for step in steps:
        start = time.process_time()
        for microbatch in plan.microbatches(int(step)):
            pack_batch(train, microbatch, shape)
        times.append(time.process_time() - start)
    return {"plan": planned, "scored": scored, "batch_ms": 1000 * float(np.median(times))}


def measuring(*arguments: str) -> list[str]:
    """The command that runs `measure` in a process of its own."""
    return [sys.executable, "-m", "tests.benchmarks.data", "--measure", *arguments]


def in_process(*arguments: str) -> dict[str, float]:
    """Returns the findings of `measure` in a process of its own, plans included."""
    command = measuring(*arguments, "plans")
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(found.splitlines()[-1])


def write_stored(count: int, folder: Path, prompt: float, answer: float) -> Path:
    """Writes pairs of made-up ids, straight to the disk.

    Args:
      count: How many there are.
      folder: Where they are put.
      prompt: Tokens of a prompt, in the mean.
      answer: Tokens of an answer.
    """
    from jaxdpo.data.pairs import TokenizedPair
    from jaxdpo.data.reading.reports import TokenizeReport
    from jaxdpo.data.tokenization.pair_store import PairWriter

    rng = np.random.default_rng(0)
    ids = rng.integers(0, 32_000, 10**6, dtype=np.int32)
    means = np.log([prompt, answer, answer]) - 0.6**2 / 2
    drawn, target = folder / "drawn", folder / f"stored-{count}"
    for each in (drawn, target):
        shutil.rmtree(each, ignore_errors=True)
    with PairWriter(drawn, "key") as writer:
        for i in range(min(count, _DRAWN)):
            lengths = np.clip(rng.lognormal(means, 0.6), 2, 1000).astype(int)
            starts = rng.integers(0, len(ids) - lengths)
            parts = [ids[s : s + n] for s, n in zip(starts, lengths, strict=True)]
            writer.add(TokenizedPair(*parts), f"pairs.jsonl:{i}")
        writer.finish(TokenizeReport(min(count, _DRAWN)))
    with PairWriter(target, "key") as writer:
        for _ in range(0, count, _DRAWN):
            writer.append(drawn, "key")
        writer.finish(TokenizeReport(count))
    return target


def measure_stored(folder: str) -> None:
    """Prints as JSON what opening, planning and batches take in this process."""
    from jaxdpo.data.tokenization.pair_store import open_pairs

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.process_time()
    pairs = open_pairs(Path(folder), "key")
    assert pairs is not None
    found = {"open": time.process_time() - start, "pairs": len(pairs), **plan_times(pairs)}
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    print(json.dumps(found))


def print_stored(
    counts: list[int], folder: Path, prompt: float, answer: float, output: str | None
) -> None:
    """Prints a row for each number of pairs, and draws them."""
    rows = []
    print("| pairs | on disk | opened | epoch planned | scoring planned | batch of 64 | memory |")
    print("|---|---|---|---|---|---|---|")
    for count in counts:
        target = write_stored(count, folder, prompt, answer)
        command = [sys.executable, "-m", "tests.benchmarks.data", "--stored", str(target)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        size = sum(path.stat().st_size for path in target.iterdir()) / 2**30
        print(
            f"| {found['pairs']:,} | {size:.2f} GiB | {found['open']:.2f} s | "
            f"{found['plan']:.2f} s | {found['scored']:.2f} s | {found['batch_ms']:.2f} ms | "
            f"{found['peak_mib']:,.0f} MiB |",
            flush=True,
        )
        shutil.rmtree(target)
        rows.append(found)
    if output is not None:
        draw_growth(rows, Path(output))


def draw_growth(rows: list[dict[str, float]], output: Path) -> None:
    """Draws seconds and memory against the number of pairs, both axes logarithmic."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    counts = [row["pairs"] for row in rows]
    names = {"open": "start from the cache", "plan": "plan of an epoch", "scored": "plan to score"}
    for name, label in names.items():
        left.plot(counts, [row[name] for row in rows], marker="o", label=label)
    left.set(xlabel="pairs", ylabel="seconds")
    left.legend()
    right.plot(counts, [row["peak_mib"] for row in rows], marker="o", color="0.3")
    right.set(xlabel="pairs", ylabel="MiB of memory")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    figure.savefig(output)


def print_shares(files: int, count: int, folder: Path, processes: list[int]) -> None:
    """Prints how fast the pairs of several files are tokenised by several processes."""
    pairs, model = make_files(folder, count)
    parts = folder / f"parts-{count}-{files}"
    if not parts.exists():
        parts.mkdir()
        lines = pairs.read_text("utf-8").splitlines(keepends=True)
        for i in range(files):
            (parts / f"{i:03}.jsonl").write_text("".join(lines[i::files]), "utf-8")
    for number in processes:
        cache = folder / f"cache-{time.time_ns()}"
        command = measuring(str(parts), str(model), str(cache), "", str(number))
        found = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
        )
        print(
            f"{number} processes: {count / found['seconds']:,.0f} pairs/s, "
            f"{1e6 * found['cpu'] / count:.0f} µs cpu each, {found['peak_mib']:,.0f} MiB"
        )
        shutil.rmtree(cache, ignore_errors=True)


def add_near_duplicates(pairs: Path) -> Path:
    """Writes the pairs again, every twentieth line in place of its own with a word added to that
    of ten lines before, and returns the file."""
    target = pairs.with_suffix(".near.jsonl")
    if not target.exists():
        with open(pairs, encoding="utf-8") as lines, open(target, "w", encoding="utf-8") as file:
            held: deque[str] = deque(maxlen=11)
            for number, line in enumerate(lines):
                held.append(line)
                if number % 20 == 19:
                    line = held[0].replace('"user", "content": "', '"user", "content": "Please ', 1)
                file.write(line)
    return target


def inspect(pairs: str, report: str) -> None:
    """Prints as JSON what the inspection of a file takes in this process."""
    from jaxdpo.cli.console import Reporter
    from jaxdpo.data.config import DataConfig
    from jaxdpo.inspection.config import InspectConfig
    from jaxdpo.inspection.run import inspect_data

    config = InspectConfig(data=DataConfig(path=pairs, on_error="skip"), report=report)
    start = time.perf_counter()
    inspect_data(config, Reporter(quiet=True))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "seconds": time.perf_counter() - start,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }
    print(json.dumps(found))


def print_inspected(count: int, folder: Path) -> None:
    """Prints what the inspection of that many pairs takes in a process of its own."""
    pairs = add_near_duplicates(make_files(folder, count)[0])
    report = folder / "inspect.html"
    command = [sys.executable, "-m", "tests.benchmarks.data", "--inspect", str(pairs), str(report)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    near = re.search(r"<td>near-duplicate</td><td>([\d,]+)</td>", report.read_text("utf-8"))
    rows = [
        ("pairs inspected", f"{count:,}"),
        ("file", f"{pairs.stat().st_size / 2**20:,.0f} MiB"),
        ("seconds", f"{found['seconds']:,.0f}"),
        ("processor seconds", f"{found['cpu']:,.0f}"),
        ("peak resident memory", f"{found['peak_mib']:,.0f} MiB"),
        ("near-duplicates found", near[1] if near else "0"),
        ("near-duplicates made", f"{count // 20:,}"),
        ("report", f"{report.stat().st_size / 2**20:,.1f} MiB"),
    ]
    for name, value in rows:
        print(f"{name:40}{value}")


def main(arguments: list[str]) -> None:
    """Prints the table."""
    given = dict(argument.split("=", 1) for argument in arguments)
    count = int(given.get("pairs", 20_000))
    folder = Path(given.get("folder", "/tmp/jaxdpo-data"))
    folder.mkdir(parents=True, exist_ok=True)
    if "stored" in given:
        counts = [int(count) for count in given["stored"].split(",")]
        lengths = (float(given.get("prompt", _PROMPT)), float(given.get("answer", _ANSWER)))
        print_stored(counts, folder, *lengths, given.get("output"))
        return
    if "shares" in given:
        processes = [int(number) for number in given.get("processes", "1,2").split(",")]
        print_shares(int(given["shares"]), count, folder, processes)
        return
    if "inspect" in given:
        print_inspected(int(given["inspect"]), folder)
        return
    small, model = make_files(folder, 1000)
    pairs, _ = make_files(folder, count)
    cache = folder / f"cache-{count}-{time.time_ns()}"
    first, bare = side_by_side(pairs, model, cache, every=4 + count / 20_000)
    second = in_process(str(pairs), str(model), str(cache))
    few = in_process(str(small), str(model), str(cache))
    cpu, own_cpu = bare.cpu / bare.pairs, first["cpu"] / count
    speed, own_speed = bare.pairs / bare.seconds, count / first["seconds"]
    rows = [
        ("pairs", f"{first['pairs']:,.0f}"),
        ("tokens (prompt, chosen, rejected)", f"{first['tokens']:,.0f}"),
        (
            f"bare tokenizers library, {bare.pairs:,} of them",
            f"{speed:,.0f} pairs/s, {1e6 * cpu:.0f} µs cpu",
        ),
        (
            "read, checked, tokenised and stored",
            f"{own_speed:,.0f} pairs/s, {1e6 * own_cpu:.0f} µs cpu",
        ),
        (
            "share of the bare speed",
            f"{own_speed / speed:.0%} by the clock, {cpu / own_cpu:.0%} by processor time",
        ),
        ("peak resident memory", f"{first['peak_mib']:,.0f} MiB"),
        ("second start", f"{second['seconds']:.2f} s, {second['peak_mib']:,.0f} MiB"),
        ("plan of an epoch", f"{second['plan']:.2f} s"),
        ("batch of 64 at a random step", f"{second['batch_ms']:.2f} ms"),
        ("the same of 1,000 pairs", f"{few['batch_ms']:.2f} ms"),
    ]
    for name, value in rows:
        print(f"{name:40}{value}")
    shutil.rmtree(cache, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    elif sys.argv[1:2] == ["--stored"]:
        measure_stored(*sys.argv[2:])
    elif sys.argv[1:2] == ["--inspect"]:
        inspect(*sys.argv[2:])
    else:
        main(sys.argv[1:])

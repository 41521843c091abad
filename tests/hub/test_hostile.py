"""Folders made to do harm: each is refused, and nothing outside of it is read."""

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdpo.errors import UserError
from jaxdpo.hub import export, read
from jaxdpo.hub.policy import load_policy
from tests.folders import write_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture
def folder(good, tmp_path) -> Path:
    """A copy to spoil, with a good one outside to be tempted by."""
    shutil.copytree(good, tmp_path / "outside")
    return shutil.copytree(good, tmp_path / "model")


opened: list[str] = []
watching = False


def _audit(event: str, arguments: tuple) -> None:
    if watching and event in ("open", "os.listdir", "os.scandir"):
        opened.append(str(arguments[0]))


sys.addaudithook(_audit)  # There is no way to take it away again.


@pytest.fixture
def watched(monkeypatch):
    """Notes what Python opens, and what is opened by safetensors, which Python does not see."""
    global watching
    original = read.safe_open

    def seen(path, **options):
        opened.append(str(path))
        return original(path, **options)

    monkeypatch.setattr(read, "safe_open", seen)
    monkeypatch.setattr(export, "safe_open", seen)
    opened.clear()
    watching = True
    yield opened
    watching = False


def config(**fields):
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return spoil


def text(name: str, content: str):
    return lambda folder: (folder / name).write_text(content)


def tensors(change: Callable[[dict], object]):
    def spoil(folder: Path) -> None:
        loaded = load_file(folder / WEIGHTS)
        change(loaded)
        save_file(loaded, folder / WEIGHTS)

    return spoil


def header(change: Callable[[dict], object], length: int | None = None):
    """Changes the header of the weights, or the length that is said of it."""

    def spoil(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        fields = json.loads(data[8 : 8 + size])
        change(fields)
        encoded = json.dumps(fields).encode()
        said = struct.pack("<Q", len(encoded) if length is None else length)
        (folder / WEIGHTS).write_bytes(said + encoded + data[8 + size :])

    return spoil


def twice_in_header(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    fields = data[8 : 8 + size].decode()
    entry = f'"{Q}":' + json.dumps(json.loads(fields)["model.norm.weight"])
    encoded = (fields.strip()[:-1] + "," + entry + "}").encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + size :])


def shards(names: Callable[[str], str], copy_first: bool = False):
    """Two shards, the second under another name in the index."""

    def spoil(folder: Path) -> None:
        loaded = load_file(folder / WEIGHTS)
        os.remove(folder / WEIGHTS)
        half = sorted(loaded)[::2]
        first = {name: loaded[name] for name in half}
        second = {name: value for name, value in loaded.items() if name not in first}
        save_file(first, folder / "a.safetensors")
        save_file(second | (first if copy_first else {}), folder / "b.safetensors")
        save_file(second, folder.parent / "outside" / "b.safetensors")
        b = names(str(folder))
        index = {name: "a.safetensors" if name in first else b for name in loaded}
        (folder / INDEX).write_text(json.dumps({"weight_map": index}))

    return spoil


def link(name: str, target: str):
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return spoil


def fifo(name: str):
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def instead(name: str):
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def cut(size: int):
    def spoil(folder: Path) -> None:
        with open(folder / WEIGHTS, "r+b") as file:
            file.truncate(size)

    return spoil


def only_pickle(folder: Path) -> None:
    os.remove(folder / WEIGHTS)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch stolen'\ntR.")


def tokenizer_code(folder: Path) -> None:
    """A tokenizer class of its own, in a file beside it."""
    (folder / "own.py").write_text("raise SystemExit('run')")
    code = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(code))
    os.remove(folder / "tokenizer.json")


def large_json(folder: Path) -> None:
    with open(folder / "config.json", "r+b") as file:
        file.truncate(2**27)


def overlapping(fields: dict) -> None:
    fields[Q]["data_offsets"] = fields["model.layers.1.self_attn.q_proj.weight"]["data_offsets"]


HOSTILE = {
    "shard above": (shards(lambda _: "../outside/b.safetensors"), "is not a plain file name"),
    "shard absolute": (
        shards(lambda folder: str(Path(folder).parent / "outside/b.safetensors")),
        "is not a plain file name",
    ),
    "shard with a zero": (shards(lambda _: "b\0.safetensors"), "is not a plain file name"),
    "tensor in two shards": (shards(lambda _: "b.safetensors", True), "the index lists others"),
    "index of no map": (text(INDEX, '{"weight_map": []}'), "weight_map must map tensor names"),
    "weights linked outside": (link(WEIGHTS, f"../outside/{WEIGHTS}"), "outside the model folder"),
    "config linked outside": (link("config.json", "/etc/hostname"), "outside the model folder"),
    "tokenizer linked outside": (
        link("tokenizer.json", "../outside/tokenizer.json"),
        "outside the model folder",
    ),
    "template linked outside": (link("chat_template.jinja", "/etc/passwd"), "outside the model"),
    "links in a circle": (link(WEIGHTS, WEIGHTS), "a link that leads nowhere"),
    "pickle": (only_pickle, "not read because loading them can run code"),
    "tokenizer with code": (tokenizer_code, "the tokenizer cannot be loaded"),
    "cut off": (cut(5000), "damaged or cut off"),
    "empty": (cut(0), "damaged or cut off"),
    "long header": (header(lambda _: None, 2**62), "damaged or cut off"),
    "overlapping tensors": (header(overlapping), "damaged or cut off"),
    "offsets beyond the end": (
        header(lambda fields: fields[Q].update(data_offsets=[0, 2**40])),
        "damaged or cut off",
    ),
    "negative shape": (header(lambda fields: fields[Q].update(shape=[-32, -32])), "damaged or cut"),
    "tensor twice": (twice_in_header, "damaged or cut off"),
    "whole numbers": (
        tensors(lambda loaded: loaded.update({Q: loaded[Q].astype(np.int8)})),
        "is I8; quantised weights are not supported",
    ),
    "wrong shape": (
        tensors(lambda loaded: loaded.update({Q: loaded[Q].reshape(16, 64)})),
        r"has shape \[16, 64\], but the config says \[32, 32\]",
    ),
    "tensor too many": (
        tensors(lambda loaded: loaded.update(extra=loaded[Q])),
        "1 that have no use here: extra",
    ),
    "not a number": (config(rms_norm_eps=float("nan")), "not JSON: NaN is no number of JSON"),
    "endless": (text("config.json", "[" * 100_000), "config.json: is nested too deeply"),
    "a list": (text("config.json", "[]"), "config.json: not a JSON object"),
    "key twice": (
        text("config.json", '{"model_type": "llama", "model_type": "gpt2"}'),
        "'model_type' stands there twice",
    ),
    "large config": (large_json, "has 134217728 bytes"),
    "negative size": (config(hidden_size=-32), "hidden_size is -32; it must be a number from 1"),
    "endless layers": (config(num_hidden_layers=10**15), "num_hidden_layers is 1000000000000000"),
    "more layers than tensors": (config(num_hidden_layers=9999), "asks for 9999 tensors or more"),
    "words for numbers": (config(rope_theta="large"), "config.json: "),
    "pipe for weights": (fifo(WEIGHTS), "is a folder, pipe or device"),
    "pipe for the config": (fifo("config.json"), "is a folder, pipe or device"),
    "pipe for a template": (fifo("chat_template.jinja"), "is a folder, pipe or device"),
    "folder for weights": (instead(WEIGHTS), "is a folder, pipe or device"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_folder_is_refused_and_nothing_beyond_it_read(folder, kind, watched):
    spoil, message = HOSTILE[kind]
    spoil(folder)
    watched.clear()
    with pytest.raises(UserError, match=message):
        load_policy(str(folder))
    beyond = [path for path in watched if "outside" in path or path.startswith("/etc/")]
    assert not beyond
    assert not Path("stolen").exists()


def test_the_watch_sees_what_is_read(folder, watched):
    load_policy(str(folder))
    read_of_it = {Path(path).name for path in watched if Path(path).parent == folder}
    assert {"config.json", "tokenizer.json", WEIGHTS} <= read_of_it


def test_code_of_a_folder_is_not_run_and_does_not_go_along(folder, tmp_path):
    """Many models of the Hub that need no code of their own have some."""
    config(auto_map={"AutoModelForCausalLM": "own.Own"})(folder)
    (folder / "own.py").write_text("raise SystemExit('run')")
    load_policy(str(folder)).save(tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not (tmp_path / "out" / "own.py").exists()

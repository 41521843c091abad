"""Writes a run's records to every tracker, and reads them back with the trackers' own readers.

python tests/training/read_trackers.py RUN_FOLDER

Runs in an environment that holds the trackers and nothing else; prints JSON.
"""

import glob
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

Values = dict[str, dict[int, float]]


def write(folder: Path) -> list[str]:
    """Passes the records on in two parts, as a run does that was cut off; returns what was said."""
    from jaxdpo.training.trackers.opening import Trackers
    from jaxdpo.training.trackers.tracker import TrackedRun

    records = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    names = ("tensorboard", "wandb", "mlflow", "trackio")
    said, ids, middle = [], {}, len(records) // 2
    settings = {"loss.beta": 0.1, "lora": None, "data.path": ["a", "b"], "long": "x" * 7000}
    for part in (records[:middle], records[middle:]):
        first_step = part[0]["step"] if ids else 0
        trackers = Trackers(names, TrackedRun(folder, first_step, settings, ids), said.append)
        ids |= trackers.ids
        for record in part:
            metrics = {name: v for name, v in record.items() if name not in ("step", "split")}
            trackers.write(record["step"], record["split"], metrics)
        if part is records[:middle]:
            trackers.close()
        else:
            trackers.publish([folder / "report.html", folder / "curves.png", folder / "none"])
    (folder / "ids.json").write_text(json.dumps(ids))
    return said


def tensorboard(folder: Path) -> tuple[Values, str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore[reportMissingImports]

    found: Values = {}
    for split in ("train", "test"):
        events = EventAccumulator(str(folder / "tensorboard" / split), {"scalars": 0, "tensors": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            of_tag = {event.step: event.value for event in events.Scalars(tag)}
            found[f"{split.upper()}/{tag}"] = of_tag
    texts = EventAccumulator(str(folder / "tensorboard/train"), {"tensors": 0})
    texts.Reload()
    tags = texts.Tags()["tensors"]
    written = "".join(str(e.tensor_proto.string_val) for tag in tags for e in texts.Tensors(tag))
    return found, written


def log_records(data: bytes) -> Iterator[bytes]:
    """Reads the records of a file in LevelDB's log format, behind W&B's header of seven bytes.

    Blocks of 32 KiB; a record is a checksum (4 bytes), a length (2), a kind (1: whole, 2: first
    part, 3: middle, 4: last) and its bytes; fewer than seven bytes at a block's end are filling.
    """
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb(folder: Path) -> tuple[Values, str]:
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    found: Values = defaultdict(dict)
    written = ""
    for file in sorted(glob.glob(str(folder / "wandb/offline-run-*/*.wandb"))):
        for data in log_records(Path(file).read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            written += str(record.run.config) + str(record.files)
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            for name, value in row.items():
                if name.startswith(("TRAIN/", "TEST/")):
                    found[name][row["optimizer_step"]] = value
    return found, written


def mlflow(folder: Path) -> tuple[Values, str]:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    client = MlflowClient(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
    run = client.get_run(json.loads((folder / "ids.json").read_text())["mlflow"])
    assert run.info.status == "FINISHED"
    found = {
        name: {each.step: each.value for each in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }
    files = [each.path for each in client.list_artifacts(run.info.run_id)]
    return found, f"{run.data.params} {files}"


def trackio(folder: Path) -> tuple[Values, str]:
    from trackio.sqlite_storage import SQLiteStorage  # pyright: ignore[reportMissingImports]

    name = json.loads((folder / "ids.json").read_text())["trackio"]
    found: Values = defaultdict(dict)
    for row in SQLiteStorage.get_logs("jaxdpo", name):
        for key, value in row.items():
            if "/" in key:
                found[key][row["step"]] = value
    kept = [str(path) for path in Path(os.environ["TRACKIO_DIR"]).rglob("*") if path.is_file()]
    return found, f"{SQLiteStorage.get_run_config('jaxdpo', name)} {kept}"


if __name__ == "__main__":
    run_folder = Path(sys.argv[1])
    failures = write(run_folder)
    read = {each.__name__: each(run_folder) for each in (tensorboard, wandb, mlflow, trackio)}
    (run_folder / "read.json").write_text(json.dumps({"said": failures, "read": read}))

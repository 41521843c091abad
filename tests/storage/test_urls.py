"""Bucket addresses are refused where only paths are used, and never become local folders."""

from pathlib import Path

import pytest

from jaxdpo.cli.settings import load_settings
from jaxdpo.config import RunConfig
from jaxdpo.data.reading.sources import find_sources
from jaxdpo.errors import UserError
from jaxdpo.hub.export import exporting
from jaxdpo.hub.find import find_folder
from jaxdpo.inspection.config import InspectConfig
from jaxdpo.runs.convert import ConvertConfig
from jaxdpo.runs.folder import open_run_folder
from jaxdpo.storage.files import cache_folder, replacing
from jaxdpo.storage.urls import refuse_url, scheme_of


@pytest.mark.parametrize(
    ("path", "scheme"),
    [
        ("gs://bucket/run", "gs"),
        ("S3://bucket", "s3"),
        (Path("gs://bucket/run"), "gs"),
        ("runs/first", None),
        ("/data/a:b/c", None),
        ("org/name:default:train", None),
        ("@quickstart/model", None),
        ("C:/data", None),
    ],
)
def test_scheme(path, scheme):
    assert scheme_of(path) == scheme


def test_message_shows_the_url_as_written():
    with pytest.raises(UserError, match=r"^f: gs://bucket/run: a gs:// address cannot be used"):
        refuse_url(Path("gs://bucket/run"), "f")
    with pytest.raises(UserError, match=r"file:///data: name the path itself"):
        refuse_url("file:///data")
    with pytest.raises(UserError, match="is a web address; download it"):
        refuse_url("https://example.com/pairs.jsonl")


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        (
            RunConfig,
            ["data=d", "training.folder=gx://b/r"],
            "training.folder: gx://b/r: nothing here reads gx:// addresses; there are gs,",
        ),
        (
            RunConfig,
            ["training.folder=r", "data={nosuch://b/d: 2.0}"],
            "data.path: nosuch://b/d: nothing here reads nosuch://",
        ),
        (RunConfig, ["data=d", "training.folder=r", "data.cache_dir=s3://b/c"], "data.cache_dir: "),
        (ConvertConfig, ["source=r", "target=nosuch://o/m"], "target: nosuch://o/m: nothing"),
        (InspectConfig, ["data=d", "report=gs://b/r"], "report: gs://b/r: a gs:// address cannot"),
    ],
)
def test_settings_refuse_buckets(model, overrides, message):
    given = [*(["model=@quickstart/model"] if model is RunConfig else []), *overrides]
    with pytest.raises(UserError) as refused:
        load_settings(model, None, given)
    assert message in str(refused.value)


def test_nothing_makes_a_folder_of_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = "nosuch://bucket/run"
    run = RunConfig.model_validate(
        {"model": {"path": "m"}, "data": {"path": "d"}, "training": {"folder": "r"}}
    )
    # Past the check of the field, as a program may.
    run = run.model_copy(update={"training": run.training.model_copy(update={"folder": url})})
    for use in (
        lambda: open_run_folder(run).__enter__(),
        lambda: exporting(Path(url)).__enter__(),
        lambda: replacing(Path(url)).__enter__(),
        lambda: find_folder(url),
        lambda: find_sources(url),
        lambda: cache_folder(url),
    ):
        with pytest.raises(UserError, match="nosuch://bucket/run"):
            use()
    assert list(tmp_path.iterdir()) == []

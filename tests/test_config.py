"""The configuration: what is refused and how it is said."""

import ast
import functools
from pathlib import Path

import pytest
from pydantic import BaseModel

import jaxdpo
from jaxdpo.cli.fields import section_type
from jaxdpo.config import (
    RunConfig,
    check_continues,
    help_text,
    load_config,
    to_yaml,
)
from jaxdpo.errors import UserError

REQUIRED = ["model.path=m", "data.path=d.jsonl", "training.folder=runs/x"]
PACKAGE = Path(jaxdpo.__file__).parent


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_overrides_come_last_and_are_typed(tmp_path):
    path = write(tmp_path, "loss: {beta: 0.5}\nbatch: {size: 4}\n")
    config = load_config(path, [*REQUIRED, "loss.beta=0.2", "optimizer.max_grad_norm=null"])
    assert (config.loss.beta, config.batch.size) == (0.2, 4)
    assert config.optimizer.max_grad_norm is None
    assert config.lora is None


def test_an_override_makes_an_absent_section():
    config = load_config(None, [*REQUIRED, "lora.rank=8", "lora.targets=[q,v]"])
    assert config.lora is not None
    assert (config.lora.rank, config.lora.targets) == (8, ("q", "v"))


def test_small_numbers_in_either_spelling():
    # YAML 1.1 reads 1e-5 as text; people write it all the same.
    for spelled in ("1e-5", "1.0e-5", "0.00001"):
        config = load_config(None, [*REQUIRED, f"optimizer.learning_rate={spelled}"])
        assert config.optimizer.learning_rate == 1e-5


def test_resolved_configuration_reads_back(tmp_path):
    config = load_config(None, [*REQUIRED, "lora.rank=8"])
    path = write(tmp_path, to_yaml(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lerning_rate=1"], r"optimizer.lerning_rate: unknown key; did you mean 'lea"),
        (["los.beta=1"], r"los: unknown key; did you mean 'loss'\?"),
        (["lora.rnk=2"], r"lora.rnk: unknown key; did you mean 'rank'\?"),
        (["loss.beta=-1"], r"loss.beta: Input should be greater than 0; it is -1"),
        (["batch.size=two"], r"batch.size: Input should be a valid integer.*'two'"),
        (["optimizer.schedule=step"], r"optimizer.schedule: Input should be 'cosine', 'linear'"),
        (["optimizer.loraplus_lr_ratio=4"], r"is the ratio of two rates of an adapter.*lora.rank"),
        (["loss.beta"], r"an override has the form section.field=value"),
        (["loss.beta=[1"], r"the value is not valid YAML"),
        (["loss=3"], r"loss: .*3"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(None, [*REQUIRED, *overrides])


def test_a_missing_field_says_how_to_give_it():
    with pytest.raises(UserError, match=r"model.path: must be given; set model.path=…"):
        load_config(None, ["model.param_dtype=float32", *REQUIRED[1:]])
    with pytest.raises(UserError, match=r"data: must be given"):
        load_config(None, REQUIRED[:1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss: {beta: 0.1\n", r"run.yaml:\d: not valid YAML"),
        ("loss: {beta: 0.1}\nloss: {beta: 0.2}\n", r"run.yaml:2: .*'loss' stands twice"),
        ("- 1\n", r"run.yaml: must hold sections"),
        ("loss: {bta: 0.1}\n", r"run.yaml: loss.bta: unknown key; did you mean 'beta'"),
    ],
)
def test_mistakes_in_a_file_name_it(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, text), REQUIRED)


def test_a_missing_file():
    with pytest.raises(UserError, match=r"nowhere.yaml: there is no such configuration file"):
        load_config("nowhere.yaml")


def test_a_run_is_continued_only_as_it_was(tmp_path):
    config = load_config(None, REQUIRED)
    path = write(tmp_path, to_yaml(config))
    check_continues(load_config(None, [*REQUIRED, "checkpoint.every=5", "mesh.fsdp=2"]), path)
    changed = load_config(None, [*REQUIRED, "loss.beta=0.3", "lora.rank=4", "training.seed=1"])
    with pytest.raises(UserError) as refused:
        check_continues(changed, path)
    for part in ("loss.beta was 0.1, is now 0.3", "lora", "training.seed was 0, is now 1"):
        assert part in str(refused.value)


def fields() -> list[tuple[str, str, type[BaseModel]]]:
    return [
        (section, name, section_type(field.annotation))
        for section, field in RunConfig.model_fields.items()
        for name in section_type(field.annotation).model_fields
    ]


def test_help_shows_every_field():
    shown = help_text()
    for section, name, _ in fields():
        assert f"  {section}.{name}=" in shown


@functools.cache
def attributes_read() -> set[str]:
    """Returns the names of all attributes that an expression of the package reads."""
    return {
        node.attr
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.mark.parametrize(("section", "name", "owner"), fields())
def test_every_field_is_read(section, name, owner):
    """A field that nothing reads is a defect: somewhere `<config>.<field>` is an expression."""
    reads = attributes_read()
    generic = {"data", "fsdp", "tensor", "expert"}  # of the mesh, read by getattr over the axes
    assert name in reads or (section == "mesh" and name in generic)
    assert len(owner.model_fields) <= 13

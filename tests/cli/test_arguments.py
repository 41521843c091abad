"""One spelling for all commands: keys, values, flags, sections and files."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.cli.arguments import Arguments, read_arguments
from jaxdpo.cli.settings import checked, load_settings
from jaxdpo.config import RunConfig, load_config
from jaxdpo.errors import UserError
from jaxdpo.feedback.to_file import CollectConfig
from jaxdpo.inspection.config import InspectConfig
from jaxdpo.planning.plan_run import PlanConfig, load_plan
from jaxdpo.rounds.compare import EvaluateConfig
from jaxdpo.rounds.evaluate import with_models
from jaxdpo.rounds.iterate import RoundsConfig
from jaxdpo.rounds.make_pairs import PairingConfig
from jaxdpo.rounds.sample import SampleConfig
from jaxdpo.runs.convert import ConvertConfig

RUN = ["data=d.jsonl", "training.folder=r"]


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (["a.b=1"], ["a.b=1"]),
        (["--a.b=1"], ["a.b=1"]),
        (["--a.b", "1"], ["a.b=1"]),
        (["--a", "x=y"], ["a=x=y"]),
        (["--mesh.data", "-1"], ["mesh.data=-1"]),
        (["--check"], ["check=true"]),
        (["--check", "false", "x=1"], ["check=false", "x=1"]),
        (["--check", "x=1"], ["check=true", "x=1"]),
        (["--check=false"], ["check=false"]),
        (["-o", "pairs.jsonl"], ["out=pairs.jsonl"]),
        (["-o=pairs.jsonl"], ["out=pairs.jsonl"]),
    ],
)
def test_every_spelling_of_a_field(words, overrides):
    assert read_arguments(words, flags={"check"}) == Arguments(None, overrides)


def test_files_positionals_and_the_tail():
    words = ["c.yaml", "a=1", "--sweep", "b=1,2", "--c", "3,4", "at_once=2"]
    assert read_arguments(words, tail="--sweep") == Arguments(
        "c.yaml", ["a=1"], ["b=1,2", "c=3,4", "at_once=2"]
    )
    given = read_arguments(["events", "--k", "v", "in.jsonl", "c.yml"], ("source", "data"))
    assert given == Arguments("c.yml", ["source=events", "data=in.jsonl", "k=v"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--"], "'--': is no option"),
        (["-x"], "'-x': is no option; a field is set as key=value, --key=value or --key value"),
        (["---a", "1"], "'---a': is no option"),
        (["--a"], "--a: its value is missing; write --a VALUE or a=VALUE"),
        (["--a", "--b", "1"], "--a: its value is missing"),
        (["-o"], "--out: its value is missing"),
        (["a.yaml", "b.yaml"], "one configuration file at a time, not a.yaml and b.yaml"),
    ],
)
def test_misuse_is_one_line(words, message):
    with pytest.raises(UserError) as refused:
        read_arguments(words)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_word_too_many():
    with pytest.raises(UserError, match="'c': a word too many"):
        read_arguments(["a", "b", "c"], ("source", "data"))


SECTIONS = {
    "train": (RunConfig, RUN, lambda c: c.model.path),
    "plan": (PlanConfig, ["data=d.jsonl"], lambda c: c.model.path),
    "sample": (SampleConfig, ["data=d.jsonl", "out=o"], lambda c: c.model),
    "prefer": (PairingConfig, ["data=d.jsonl", "criteria=json", "folder=f"], lambda c: c.model),
    "iterate": (RoundsConfig, ["data=d.jsonl", "criteria=json", "folder=f"], lambda c: c.model),
    "inspect": (InspectConfig, ["data=d.jsonl"], lambda c: c.model),
}


@pytest.mark.parametrize("command", SECTIONS)
@pytest.mark.parametrize("key", ["model", "model.path"])
def test_a_model_is_its_path_in_every_command(tmp_path, command, key):
    config, rest, model = SECTIONS[command]
    assert model(load_settings(config, None, [f"{key}=runs/sft", *rest])) == "runs/sft"
    text = "model: runs/sft\n" if key == "model" else "model: {path: runs/sft}\n"
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert model(load_settings(config, file, rest)) == "runs/sft"


@pytest.mark.parametrize("key", ["data", "data.path"])
def test_data_is_its_path_in_every_command(key):
    for config, rest, _ in SECTIONS.values():
        given = [f"{key}=p.jsonl", "model=m", *rest[1:]]
        assert load_settings(config, None, given).data.path == "p.jsonl"
    given = ["source=events", f"{key}=p.jsonl", "out=o"]
    assert load_settings(CollectConfig, None, given).data == "p.jsonl"


def test_a_path_leaves_the_rest_of_its_section():
    given = ["model.param_dtype=bfloat16", "model=m", "model.remat=none", *RUN]
    model = load_config(None, given).model
    assert (model.path, model.param_dtype, model.remat) == ("m", "bfloat16", "none")
    weighted = load_config(None, ["model=m", "data={a.jsonl: 2, b: 1}", "training.folder=r"])
    assert weighted.data.path == {"a.jsonl": 2, "b": 1}
    section = load_config(None, ["model=m", "data={path: a, max_length: 64}", "training.folder=r"])
    assert (section.data.path, section.data.max_length) == ("a", 64)


def test_other_commands_names_of_a_field():
    given = ["model.path=m", "model.compute_dtype=bfloat16", "data.chat_template=t.jinja"]
    config = load_settings(SampleConfig, None, [*given, "data=d", "out=o"])
    assert (config.model, config.dtype, config.chat_template) == ("m", "bfloat16", "t.jinja")
    nested = {"model": {"path": "m", "compute_dtype": "float32"}, "data": "d", "out": "o"}
    assert checked(SampleConfig, nested).dtype == "float32"
    with pytest.raises(UserError, match=r"model\.remat: unknown key"):
        load_settings(SampleConfig, None, ["model.remat=none", *given])


class Kinds(BaseModel):
    """One field of each kind."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = Field(default=None)
    number: float | None = Field(default=None)
    names: tuple[str, ...] = Field(default=())
    models: dict[str, str] = Field(default_factory=dict)
    either: str | dict[str, float] | None = Field(default=None)
    on: bool = Field(default=False)


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        # A text is what was typed, even where YAML would make something else of it.
        ("text=@quickstart/model", "text", "@quickstart/model"),
        ("text=2026", "text", "2026"),
        ("text=2026-11-27", "text", "2026-11-27"),
        ("text=no", "text", "no"),
        ("text=Say: yes #1", "text", "Say: yes #1"),
        ("text=%x `y` *z", "text", "%x `y` *z"),
        ("text=[a-z]+$", "text", "[a-z]+$"),
        ("text='quoted'", "text", "quoted"),
        ("text=null", "text", None),
        ("number=1e-5", "number", 1e-5),
        ("number=null", "number", None),
        ("names=[a, 'b c']", "names", ("a", "b c")),
        ("models.v1.2=runs/x", "models", {"v1.2": "runs/x"}),
        ("models.sft=1", "models", {"sft": "1"}),
        ("either=@a/b", "either", "@a/b"),
        ("either=x #y", "either", "x #y"),
        ("either={a: 2}", "either", {"a": 2}),
        ("either.mine.jsonl=2", "either", {"mine.jsonl": 2}),
        ("on=true", "on", True),
    ],
)
def test_values(override, field, value):
    assert getattr(load_settings(Kinds, None, [override]), field) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("number=[1", "number: .*'\\[1'; the value is not valid YAML, so it was taken as text"),
        ("names={a: 1, a: 2}", "names: the key 'a' stands twice"),
        ("number=", "number=: no value is given; write number=VALUE, or number=null"),
        ("number", "an override has the form section.field=value"),
        ("=1", "an override has the form section.field=value"),
        ("nubmer=1", "nubmer: unknown key; did you mean 'number'"),
        ("on=perhaps", "on: Input should be a valid boolean.*'perhaps'"),
    ],
)
def test_bad_values(override, message):
    with pytest.raises(UserError, match=message):
        load_settings(Kinds, None, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # Beside it, in another section, and by a section that is itself misspelt.
        ("loss.bta=1", "loss.bta: unknown key; did you mean 'beta'?; loss has type, "),
        ("learning_rate=1", "did you mean 'optimizer.learning_rate'?"),
        ("beta=1", "did you mean 'loss.beta'?"),
        ("optimiser.learning_rate=1", "optimiser: unknown key; did you mean 'optimizer'?"),
        ("model.lora.rank=1", "model.lora: unknown key; did you mean 'lora'"),
        ("loss.beta.x=1", "loss.beta.x: unknown key"),
        ("loss.type=sigmod", "it is 'sigmod'; did you mean 'sigmoid'?"),
        ("model.remat=ful", "it is 'ful'; did you mean 'full'?"),
    ],
)
def test_the_nearest_key_is_named(override, message):
    with pytest.raises(UserError) as refused:
        load_config(None, ["model=m", *RUN, override])
    assert message in str(refused.value)


def test_the_missing_field_that_is_named_exists():
    with pytest.raises(UserError) as refused:
        load_config(None, ["model.param_dtype=float32"])
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("model.path: must be given; set model.path=… on")
    assert lines[1].startswith("data: must be given; set data.path=… on")
    assert lines[2].startswith("training: must be given; set training.folder=… on")


def test_a_file_and_its_fields_contradict_each_other():
    given = ["model=m", "data=d", "criteria=json", "folder=f"]
    with pytest.raises(UserError, match=r"train.loss.beta: train is already set, to 'lora.yaml'"):
        load_settings(RoundsConfig, None, [*given, "train=lora.yaml", "train.loss.beta=1"])
    config = load_settings(RoundsConfig, None, [*given, "train.loss.beta=1", "train.lora.rank=2"])
    assert config.train == {"loss": {"beta": 1}, "lora": {"rank": 2}}


def test_models_to_evaluate_have_names_of_their_own():
    given = ["sft=./sft", "v1.2=runs/x", "models.base=b", "data=d", "sampling.seed=1", "out=o",
             "criteria=json", "model.compute_dtype=float32"]  # fmt: skip
    config = load_settings(EvaluateConfig, None, with_models(given))
    assert config.models == {"sft": "./sft", "v1.2": "runs/x", "base": "b"}
    assert config.dtype == "float32"
    with pytest.raises(UserError, match=r"samplng.seed: unknown key; did you mean 'sampling'"):
        with_models(["samplng.seed=1"])


def test_a_plan_needs_no_folder_and_no_data():
    config = load_plan(None, ["model=m", "pairs=10", "topology=h100:8"])
    assert (config.pairs, config.topology, config.model.path) == (10, "h100:8", "m")
    for spelled in ("data=d.jsonl", "data.path=d.jsonl"):
        with pytest.raises(UserError, match=r"pairs=… stands in place of data.path"):
            load_plan(None, ["model=m", "pairs=10", spelled])


def test_what_comes_with_the_package_is_found_by_every_command():
    for config, rest, model in SECTIONS.values():
        found = model(load_settings(config, None, ["model=@quickstart/model", *rest]))
        assert (Path(found) / "config.json").is_file()
    config = load_settings(ConvertConfig, None, ["source=@quickstart/model", "target=t"])
    assert (Path(config.source) / "config.json").is_file()

"""The model card of a trained model: README.md of the folder that it is exported to."""

import importlib.metadata
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache

from jaxdpo.config import RunConfig
from jaxdpo.errors import UserError
from jaxdpo.hub.adapter_config import ADAPTER_CONFIG
from jaxdpo.hub.folder import member, read_json
from jaxdpo.runs.base import find_base
from jaxdpo.runs.folder import DATA_FILE
from jaxdpo.training.writers import read_metrics

# Sections of the configuration that decide what the model becomes.
_SECTIONS = ("model", "data", "loss", "reference", "lora", "optimizer", "batch", "training")
# Fields that say where things lie on one machine and nothing else.
_PLACES = ("cache_dir", "folder")
_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)*")
_FILES = (".jsonl", ".json", ".ndjson", ".parquet", ".arrow", ".gz", ".zst", ".jinja")
# In place of tables, where a checkpoint was copied without the folder of its run.
_APART = "Recorded in the folder of the run."
# The base model is loaded by a line of its own, which readers change when that model has moved;
# PEFT's AutoPeftModelForCausalLM follows the recorded place only.
_LOAD = 'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")'
_LOAD_ADAPTER = """base = PeftConfig.from_pretrained(folder).base_model_name_or_path
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
model = PeftModel.from_pretrained(model, folder)"""
_SNIPPET = """With `pip install torch {packages}`:

```python
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
{load}

messages = [{{"role": "user", "content": "Why is the sky blue?"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens=200)
answer = output[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```"""
_ADAPTER_BASE = (
    "The adapter fits only the model that `adapter_config.json` names. If that model has moved, "
    "set `base` to its new place."
)
_PACKAGES = ("jaxdpo", "jax", "flax", "optax", "transformers")
# Names on the Hub; a part never begins with a dot or a dash, unlike in relative paths.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LICENCE = re.compile(r"[\w.+-]{1,96}")
# In characters. The front matter of a card is at its beginning, and is short.
_READ = 2**20
# A card could name itself, or two cards one another.
_MOST_PARENTS = 8


@dataclass(frozen=True)
class Origin:
    """The model that a training run started from.

    Attributes:
      name: Name on the Hub, or the folder's name without its place.
      hub_id: The nearest model on the Hub: itself, or what it was trained from; None if unknown.
      parents: Names of the models that it was trained from by its card, oldest first.
      licence: The fields of the Hub that state its licence; empty if unknown.
    """

    name: str
    hub_id: str | None
    parents: tuple[str, ...]
    licence: dict[str, Any]


def run_card(config: RunConfig, folder: Path | None, step: int | None = None) -> str:
    """Writes the card of what a run trained; it names no folder of this machine.

    Args:
      config: The run.
      folder: The run folder, for its metrics and the digests of its data; None where a checkpoint
        lies by itself.
      step: The optimizer step that the model is of; None for the last.

    Returns:
      Markdown with the YAML header of the Hugging Face Hub.
    """
    records = [] if folder is None else read_metrics(folder)
    if step is not None:
        records = [record for record in records if record["step"] <= step]
    tested = [record for record in records if record["split"] == "TEST"]
    steps = step or max((record["step"] for record in records), default=0)
    data: Any = _portable(config.data.path)
    sources = [data] if isinstance(data, str) else list(data)
    origin = origin_of(config.model.path, folder)
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    kind = "a LoRA" if config.lora else "all parameters"
    if config.lora and config.lora.base != "full":
        kind = f"a LoRA on layers in {config.lora.base}"
    header = yaml.safe_dump(_header(config, origin, sources), sort_keys=False, allow_unicode=True)
    return f"""---
{header.strip()}
---

# {_plain(origin.name)}, aligned

Trained with jaxdpo from `{_plain(origin.name)}`: {kind}, {steps} optimizer steps of the objective \
`{" + ".join(config.loss.type)}`.

{_lineage_section(origin)}## Use

{_snippet(config)}

## Data

From {", ".join(f"`{_plain(name)}`" for name in sources)}.

{_data_table(folder)}

## TEST pairs

{_metrics_table(tested) if folder is not None else _APART}

## Settings

```yaml
{yaml.safe_dump(_settings(config), sort_keys=False).strip()}
```

Versions: {versions}.

## Licence

{_licence_section(origin)}
"""


def _header(config: RunConfig, origin: Origin, sources: list[str]) -> dict[str, Any]:
    """Fills in the fields by which the Hub finds models."""
    fields: dict[str, Any] = {
        "library_name": "peft" if _is_adapter(config) else "transformers",
        "pipeline_tag": "text-generation",
    }
    if origin.hub_id is not None:
        fields["base_model"] = origin.hub_id
        # The Hub guesses the relation from the files where it is not given.
        fields["base_model_relation"] = "adapter" if _is_adapter(config) else "finetune"
    fields |= origin.licence
    # A name of a data set may be followed by a configuration and a split.
    if datasets := [name.split(":")[0] for name in sources if _ON_HUB.fullmatch(name)]:
        fields["datasets"] = list(dict.fromkeys(datasets))
    tags = ["jaxdpo", "sft" if config.loss.supervised else "dpo", *config.loss.type]
    fields["tags"] = list(dict.fromkeys([*tags, *(["lora"] if config.lora else [])]))
    return fields


def _is_adapter(config: RunConfig) -> bool:
    return config.lora is not None and config.export.lora == "adapter"


def _settings(config: RunConfig) -> dict[str, Any]:
    """Returns the sections of the configuration that decide what the model becomes."""
    return {
        section: _portable({name: value for name, value in fields.items() if name not in _PLACES})
        for section, fields in config.model_dump(mode="json").items()
        if section in _SECTIONS and fields is not None
    }


def _lineage_section(origin: Origin) -> str:
    """Returns the section on the base model's own origin; nothing where that is not known."""
    if not origin.parents:
        return ""
    chain = [*(f"`{_plain(name)}`" for name in (*origin.parents, origin.name)), "this model"]
    return f"## Lineage\n\n{' → '.join(chain)}\n\n"


def _licence_section(origin: Origin) -> str:
    if not origin.licence:
        return (
            "The licence of the base model applies to this model as well. It is not repeated here, "
            "because no model card that states it was found beside the base model."
        )
    names = origin.licence["license"]
    shown = ", ".join(f"`{name}`" for name in ([names] if isinstance(names, str) else names))
    return f"Inherited from the base model's card: {shown}."


def _snippet(config: RunConfig) -> str:
    if not _is_adapter(config):
        return _SNIPPET.format(packages="transformers", imports="", load=_LOAD)
    imports = "from peft import PeftConfig, PeftModel\n"
    snippet = _SNIPPET.format(packages="transformers peft", imports=imports, load=_LOAD_ADAPTER)
    return f"{snippet}\n\n{_ADAPTER_BASE}"


def _data_table(folder: Path | None) -> str:
    if folder is None:
        return _APART
    path = folder / DATA_FILE
    if not path.exists():
        return "An earlier version's run, which did not keep the counts."
    rows = [
        f"| {split} | {of_split['pairs']} | `{of_split['sha256']}` |"
        for split, of_split in json.loads(path.read_text()).items()
    ]
    return "\n".join(["| split | pairs | SHA-256 of the tokenised pairs |", "|---|---|---|", *rows])


def _metrics_table(tests: list[dict[str, Any]]) -> str:
    if not tests:
        return "None were held out."
    before, after = tests[0], tests[-1]
    rows = [
        f"| {name} | {before[name]:.4g} | {after[name]:.4g} |"
        for name in after
        if name in before and name not in ("step", "split")
    ]
    steps = [f"after step {record['step']}" for record in (before, after)]
    return "\n".join([f"| metric | {' | '.join(steps)} |", "|---|---|---|", *rows])


def _plain(name: str) -> str:
    """Returns a name without what would end its line or its code span in Markdown."""
    return re.sub(r"[`\x00-\x1f\x7f]", " ", name)


def _is_on_hub(path: str) -> bool:
    is_name = _ON_HUB.fullmatch(path) and is_hub_id(path.split(":")[0])
    return bool(is_name) and not path.endswith(_FILES) and not Path(path).exists()


def _portable(value: Any) -> Any:
    """Leaves the folders of paths off; names on the Hub stay."""
    if isinstance(value, dict):
        return {_portable(name): _portable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_portable(each) for each in value]
    if isinstance(value, str) and "/" in value and not _is_on_hub(value):
        return Path(value).name
    return value


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def is_hub_id(name: Any) -> bool:
    """Tells whether a value has the form `org/name`."""
    return isinstance(name, str) and bool(_HUB_ID.fullmatch(name))


def origin_of(path: str, run: Path | None) -> Origin:
    """Reads the origin of a base model from its card, where one is at hand without the network.

    Args:
      path: `model.path` of the run.
      run: The run folder, which knows where relative paths begin; None if there is none.
    """
    folder = _folder(path, run)
    on_hub = folder is None and is_hub_id(path)
    card = _front_matter(path, folder)
    parents = _parents(path, folder)
    # Older versions of transformers keep here from where the weights were loaded.
    loaded = None if folder is None else _json(folder, "config.json").get("_name_or_path")
    known = [path] if on_hub else [*reversed(parents), loaded]
    return Origin(
        name=path if on_hub else (folder or Path(path)).name,
        hub_id=next((name for name in known if is_hub_id(name)), None),
        parents=tuple(name if is_hub_id(name) else Path(name).name for name in parents),
        licence=_licence(card),
    )


def _folder(path: str, run: Path | None) -> Path | None:
    try:
        found = Path(path if run is None else find_base(run, path)).expanduser()
    except UserError:
        return None
    return found if found.is_dir() else None


def _parents(path: str, folder: Path | None) -> list[str]:
    """Follows the cards from a model to the models before it; returns the oldest first."""
    chain: list[str] = []
    while len(chain) < _MOST_PARENTS:
        parent = _front_matter(path, folder).get("base_model")
        if isinstance(parent, list) and len(parent) == 1:
            parent = parent[0]
        if parent is None and folder is not None:
            parent = _json(folder, ADAPTER_CONFIG).get("base_model_name_or_path")
        # A merge of several models has no single line of descent.
        if not isinstance(parent, str) or not parent or parent in (path, *chain):
            break
        chain.append(parent)
        path, folder = parent, _folder(parent, None)
    return chain[::-1]


def _front_matter(path: str, folder: Path | None) -> dict[str, Any]:
    """Reads the fields at the head of a model's card; none where there is no readable card."""
    try:
        if folder is not None:
            file: Any = member(folder, "README.md")
        else:
            file = try_to_load_from_cache(path, "README.md") if is_hub_id(path) else None
        if not isinstance(file, str | Path):
            return {}
        with open(file, encoding="utf-8", errors="replace") as opened:
            found = re.match(r"---\s*\n(.*?\n)---", opened.read(_READ), re.DOTALL)
        fields = yaml.safe_load(found[1]) if found else {}
    except (OSError, ValueError, RecursionError, UserError, yaml.YAMLError):
        # The card belongs to someone else, and a model is not refused for what stands in it.
        return {}
    return fields if isinstance(fields, dict) else {}


def _licence(card: dict[str, Any]) -> dict[str, Any]:
    """Returns the licence's fields of a card: `other` has a name and a link beside it."""
    stated = card.get("license")
    names = stated if isinstance(stated, list) else [stated]
    if not names or not all(isinstance(each, str) and _LICENCE.fullmatch(each) for each in names):
        return {}
    fields = {"license": stated}
    if isinstance(card.get("license_name"), str):
        fields["license_name"] = card["license_name"]
    # A relative link leads to a file of the base model's repository, which is not copied.
    link = card.get("license_link")
    if isinstance(link, str) and link.startswith(("https://", "http://")):
        fields["license_link"] = link
    return fields


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_json(folder, name)
    except UserError:
        return {}

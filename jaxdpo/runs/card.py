"""The model card of a trained model: README.md of the folder that it is exported to."""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import yaml

from jaxdpo.config import RunConfig
from jaxdpo.errors import UserError
from jaxdpo.runs.base import find_base, kept_origin
from jaxdpo.runs.folder import DATA_FILE
from jaxdpo.runs.origin import Origin, folder_of, hub_datasets, is_on_hub, read_origin, split_card
from jaxdpo.storage.noted import read_noted_json
from jaxdpo.training.writers import read_metrics

# Sections of the configuration that decide what the model becomes.
_SECTIONS = ("model", "data", "loss", "reference", "lora", "optimizer", "batch", "training")
# Fields that say where things lie on one machine, or how many of its cores work, and nothing else.
_PLACES = ("cache_dir", "folder", "processes")
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


def run_card(
    config: RunConfig,
    folder: Path | None,
    step: int | None = None,
    tested: dict[str, Any] | None = None,
) -> str:
    """Writes the card of what a run trained; it names no folder of this machine.

    Args:
      config: The run.
      folder: The run folder, for its metrics and the digests of its data; None where a checkpoint
        lies by itself.
      step: The optimizer step that the model is of; None for the last.
      tested: The TEST metrics before training and of the exported weights, by "before" and "after";
        None for those of metrics.jsonl.

    Returns:
      Markdown with the YAML header of the Hugging Face Hub.
    """
    records = [] if folder is None else read_metrics(folder)
    if step is not None:
        records = [record for record in records if record["step"] <= step]
    steps = step or max((record["step"] for record in records), default=0)
    origin, (datasets, sources) = origin_of(config.model.path, folder), _data(config, folder)
    header = yaml.safe_dump(_header(config, origin, datasets), sort_keys=False, allow_unicode=True)
    return f"""---
{header.strip()}
---

# {_plain(origin.name)}, aligned

Trained with jaxdpo from `{_plain(origin.name)}`: {_trained(config)}, {steps} optimizer \
steps of the objective `{" + ".join(config.loss.type)}`.

{_lineage_section(origin)}## Use

{_snippet(_is_adapter(config))}

## Data

From {", ".join(f"`{_plain(name)}`" for name in sources)}.

{_data_table(folder)}

## TEST pairs

{_metrics_table(records, tested) if folder is not None else _APART}

## Settings

```yaml
{yaml.safe_dump(_settings(config, origin, sources), sort_keys=False).strip()}
```

Versions: {", ".join(f"{name} {_version(name)}" for name in _PACKAGES)}.

## Licence

{_licence_section(origin)}
"""


def _data(config: RunConfig, folder: Path | None) -> tuple[list[str], list[str]]:
    """Returns the data sets on the Hub, and the names of all sources without their folders."""
    kept = None if folder is None else kept_origin(folder)
    given = list(config.data.weights())
    datasets = hub_datasets(given) if kept is None else kept[1]
    on_hub = {name for name in given if name.split(":")[0] in datasets}
    return datasets, [name if name in on_hub else Path(name).name for name in given]


def _trained(config: RunConfig) -> str:
    if config.lora is None:
        return "all parameters"
    return "a LoRA" + ("" if config.lora.base == "full" else f" on layers in {config.lora.base}")


def _header(config: RunConfig, origin: Origin, datasets: list[str]) -> dict[str, Any]:
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
    if datasets:
        fields["datasets"] = datasets
    tags = ["jaxdpo", "sft" if config.loss.supervised else "dpo", *config.loss.type]
    fields["tags"] = list(dict.fromkeys([*tags, *(["lora"] if config.lora else [])]))
    return fields


def _is_adapter(config: RunConfig) -> bool:
    return config.lora is not None and config.export.lora == "adapter"


def _settings(config: RunConfig, origin: Origin, sources: list[str]) -> dict[str, Any]:
    """Returns the sections of the configuration that decide what the model becomes."""
    settings: dict[str, Any] = {
        section: _portable({name: value for name, value in fields.items() if name not in _PLACES})
        for section, fields in config.model_dump(mode="json").items()
        if section in _SECTIONS and fields is not None
    }
    # A relative path that is there no more looks like a name on the Hub; these were told apart when
    # the run began.
    settings["model"]["path"] = origin.name
    weights = dict(zip(sources, config.data.weights().values(), strict=True))
    settings["data"]["path"] = sources[0] if isinstance(config.data.path, str) else weights
    return settings


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


def card_of_form(card: str, adapter: bool) -> str:
    """Returns the card of a model with adapters as that of the folder that they are written to.

    An adapter is found, and loaded, in another way than the model that it was merged into.

    Args:
      card: The card.
      adapter: Whether the folder holds the adapters alone; otherwise they are merged.
    """
    fields, text = split_card(card)
    if not fields:
        return card
    fields["library_name"] = "peft" if adapter else "transformers"
    if "base_model" in fields:
        fields["base_model_relation"] = "adapter" if adapter else "finetune"
    header = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    # The section is replaced only as this program wrote it; another author's words stay.
    text = text.replace(_snippet(not adapter), _snippet(adapter))
    return f"---\n{header.strip()}\n---{text}"


def _snippet(adapter: bool) -> str:
    if not adapter:
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
        for split, of_split in read_noted_json(path).items()
    ]
    return "\n".join(["| split | pairs | SHA-256 of the tokenised pairs |", "|---|---|---|", *rows])


def _metrics_table(records: list[dict[str, Any]], tested: dict[str, Any] | None) -> str:
    tests = [record for record in records if record["split"] == "TEST"]
    if tested is not None:
        tests = [tested["before"], tested["after"]]
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


def _portable(value: Any) -> Any:
    """Leaves the folders of paths off; names on the Hub stay."""
    if isinstance(value, dict):
        return {_portable(name): _portable(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_portable(each) for each in value]
    if isinstance(value, str) and "/" in value and not is_on_hub(value):
        return Path(value).name
    return value


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def origin_of(path: str, run: Path | None) -> Origin:
    """Returns the origin of a run's base model, as it was when the run began if that is kept.

    Args:
      path: `model.path` of the run.
      run: The run folder; None if there is none.
    """
    kept = None if run is None else kept_origin(run)
    if kept is not None:
        return kept[0]
    try:
        return read_origin(path, folder_of(path if run is None else find_base(run, path)))
    except UserError:
        return read_origin(path, None)

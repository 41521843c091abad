"""The settings of a command that its user chose, as a table of its page."""

from typing import Any

from pydantic import BaseModel

from jaxdpo.pages.cells import Table


def settings_table(config: BaseModel) -> Table:
    """Returns the settings that differ from their defaults."""
    rows = [(name, str(value)) for name, value in chosen_settings(config)]
    return Table("Settings that differ from their defaults", ("setting", "value"), rows)


def chosen_settings(config: BaseModel) -> list[tuple[str, Any]]:
    """Lists `section.field` and value of the settings that differ from their defaults."""
    return list(_flat("", config.model_dump(mode="json", exclude_defaults=True)))


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        return [(prefix, value)]
    inner = [(f"{prefix}.{name}".lstrip("."), each) for name, each in value.items()]
    return [pair for name, each in inner for pair in _flat(name, each)]

"""A continuation with other settings is refused, and every difference is named."""

import json
from pathlib import Path

import pytest

from jaxdpo.errors import UserError
from jaxdpo.storage.continuation import check_unchanged, keep_settings


def test_every_difference_is_named_with_both_values() -> None:
    before, now = {"seed": 0, "model": "a", "gone": 1}, {"seed": 2, "model": "a", "new": None}
    with pytest.raises(UserError) as refused:
        check_unchanged("x holds others", before, now, "choose a new folder")
    # `new` is None where it was nothing: no difference.
    assert str(refused.value) == (
        "x holds others: gone was 1, is now None; seed was 0, is now 2. Put them back to continue, "
        "or choose a new folder"
    )
    check_unchanged("x", before, before, "")
    with pytest.raises(UserError, match=r"x: gone was 1, is now None\. Put it back to continue"):
        check_unchanged("x", before, now, "y", lambda name: name == "seed")


def test_settings_are_compared_as_json_keeps_them(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    keep_settings(path, {"sizes": (1, 2), "by": {3: "c"}}, "x", "y")
    assert json.loads(path.read_text()) == {"sizes": [1, 2], "by": {"3": "c"}}
    keep_settings(path, {"sizes": (1, 2), "by": {3: "c"}}, "x", "y")
    with pytest.raises(UserError, match=r"x: sizes was \[1, 2\], is now \[1, 3\]"):
        keep_settings(path, {"sizes": (1, 3), "by": {3: "c"}}, "x", "y")

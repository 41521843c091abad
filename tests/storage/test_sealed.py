"""Sealed JSON and digests of parts: one flipped bit anywhere is seen."""

import hashlib
import json
import random

from jaxdpo.storage.sealed import digest_without, read_sealed, write_sealed

VALUE = {"key": "a", "report": {"lines": 3, "names": ["x", "y"]}, "share": 0.25}


def test_what_was_written_is_read(tmp_path):
    write_sealed(tmp_path / "about.json", VALUE)
    assert read_sealed(tmp_path / "about.json") == VALUE
    assert read_sealed(tmp_path / "missing.json") is None


def test_no_flipped_bit_gives_another_value(tmp_path):
    path = tmp_path / "about.json"
    write_sealed(path, VALUE)
    good = path.read_bytes()
    for at in range(len(good)):
        for bit in range(8):
            content = bytearray(good)
            content[at] ^= 1 << bit
            path.write_bytes(bytes(content))
            # White space may be another white space, which changes nothing.
            assert read_sealed(path) in (None, VALUE), (at, bit)


def test_other_json_is_refused(tmp_path):
    for text in ("", "[]", "3", "null", '{"sha256": 3}', "[" * 100_000, '"x"', "\xff"):
        (tmp_path / "x").write_text(text, encoding="latin-1")
        assert read_sealed(tmp_path / "x") is None, text[:20]
    (tmp_path / "x").write_text(json.dumps(VALUE))
    assert read_sealed(tmp_path / "x") is None


def test_spans_are_left_out_of_a_digest(tmp_path):
    rng = random.Random(0)
    content = rng.randbytes(10_000)
    (tmp_path / "x").write_bytes(content)
    spans = [(100, 200), (200, 250), (5000, 9999)]
    rest = content[:100] + content[250:5000] + content[9999:]
    assert digest_without(tmp_path / "x", spans) == hashlib.sha256(rest).hexdigest()
    assert digest_without(tmp_path / "x", []) == hashlib.sha256(content).hexdigest()
    # A file that was cut off is another one, even if only a span is missing.
    (tmp_path / "x").write_bytes(content[:9999])
    assert digest_without(tmp_path / "x", spans) != hashlib.sha256(rest).hexdigest()

import hashlib
import random

from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.splits import hashed_split, leaked_prompts


def ask(question):
    return [{"role": "user", "content": question}]


def test_the_split_is_the_prompts_sha256_as_a_fraction():
    canonical = b'[[{"content":"caf\xc3\xa9","role":"user"}],[]]'
    fraction = int(hashlib.sha256(canonical).hexdigest()[:16], 16) / 16**16
    assert hashed_split(ask("café"), [], fraction + 1e-9) == "TEST"
    assert hashed_split(ask("café"), [], fraction - 1e-9) == "TRAIN"


def test_a_fifth_of_prompts_test_and_keys_may_stand_in_any_order():
    splits = [hashed_split(ask(str(i)), [], 0.2) for i in range(2000)]
    # Binomial: 400 ± 18, here within four deviations.
    assert 328 < splits.count("TEST") < 472
    turned = [{"content": "7", "role": "user"}]
    assert hashed_split(turned, [], 0.2) == splits[7]


def test_a_larger_share_moves_prompts_to_test_only():
    for i in range(200):
        smaller, larger = (hashed_split(ask(str(i)), [], share) for share in (0.2, 0.4))
        assert (smaller, larger) != ("TEST", "TRAIN")


def test_tools_are_part_of_the_prompt():
    tools = [[{"function": {"name": str(i)}}] for i in range(64)]
    assert len({hashed_split(ask("same"), tool, 0.5) for tool in tools}) == 2


def pair(question, split, line):
    answer = ({"role": "assistant", "content": "x"},)
    return PreferencePair(tuple(ask(question)), answer, answer, split, source=f"f:{line}")


def test_prompts_in_both_splits_are_found_in_any_order():
    pairs = [
        *(pair("a", "TEST", 1), pair("b", "TEST", 2), pair("a", "TRAIN", 3)),
        *(pair("c", "TRAIN", 4), pair("a", "TEST", 5)),
    ]
    assert leaked_prompts(pairs) == ["f:1", "f:5"]
    random.Random(0).shuffle(pairs)
    assert sorted(leaked_prompts(pairs)) == ["f:1", "f:5"]

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.tokenization.control_tokens import WALL, ControlTokens, _any_of


def characters(*controls: str | AddedToken) -> Tokenizer:
    """A tokenizer of single characters, so that ids can be written by hand: a is 0, b is 1, …"""
    alphabet = "abcdefghij<>|_/ "
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_tokens([t if isinstance(t, AddedToken) else AddedToken(t) for t in controls])
    return tokenizer


def encoded(controls: ControlTokens, text: str) -> list[int]:
    [ids] = controls.encode([text])
    assert not isinstance(ids, BadPair)
    return ids.tolist()


@given(st.lists(st.text("ab.*|", min_size=1, max_size=4), unique=True), st.text("ab.*|"))
def test_the_trie_matches_what_an_alternation_by_length_matches(texts, text):
    longest_first = sorted(texts, key=len, reverse=True)
    plain = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    found = [match.span() for match in re.finditer(_any_of(texts), text)]
    assert found == [match.span() for match in plain.finditer(text)]


def test_text_gets_a_wall_inside_each_control_token_even_where_they_overlap():
    controls = ControlTokens(characters("<ab>", "b>c"))
    assert controls.wall("a<ab>c ") == f"{WALL}a<{WALL}ab{WALL}>c{WALL} "
    assert not controls.pattern.search(controls.wall("<ab>c<ab><ab>"))


@pytest.mark.parametrize("text", ["a<", "a<ab", " a <a\n", "b>a", ">", "ab", "a", "b> "])
def test_text_that_could_be_part_of_a_control_token_gets_walls_at_its_edges(text):
    walled = ControlTokens(characters("<ab>")).wall(text)
    assert walled.strip() == f"{WALL}{text.strip()}{WALL}"
    assert walled.replace(WALL, "") == text


@pytest.mark.parametrize("text", ["", "<a b>", "hello a < b", "b", "> <"])
def test_other_text_stays_as_it_is(text):
    # "b" is the middle of no token here, nor is "".
    controls = ControlTokens(characters("<ac>"))
    expected = text if text not in ("> <",) else f"{WALL}> <{WALL}"
    assert controls.wall(text) == expected


def test_only_spelled_control_tokens_become_ids():
    controls = ControlTokens(characters("<a>", AddedToken("</a>", special=True)))
    rendered = "<a>" + controls.wall("b<a>c</a>") + "</a>"
    assert encoded(controls, controls.spell(rendered)) == [16, 1, 10, 0, 11, 2, 10, 14, 0, 11, 17]


def test_white_space_tokens_are_text():
    controls = ControlTokens(characters("  ", "<a>"))
    assert controls.wall("b  c") == "b  c"
    assert encoded(controls, controls.spell("b  c<a>")) == [1, 16, 2, 17]
    special = ControlTokens(characters(AddedToken("  ", special=True)))
    assert encoded(special, special.spell(special.wall("b  c"))) == [1, 15, 15, 2]


def test_a_noncharacter_in_text_is_refused():
    controls = ControlTokens(characters("<a>"))
    with pytest.raises(BadPair, match="U\\+FDD1"):
        controls.wall("b\ufdd1\ufde0\ufde0\ufde0\ufde0")


def test_a_control_token_of_one_character_in_text_is_refused():
    controls = ControlTokens(characters("§"))
    with pytest.raises(BadPair, match="one character"):
        controls.wall("b § c")


def test_a_control_token_that_the_vocabulary_can_build_is_split():
    # The model itself joins < a > to its piece 3, which is the control token.
    vocabulary = {"<": 0, "a": 1, ">": 2, "<a>": 3, "<a": 4, "a>": 5}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("<", "a"), ("<a", ">")]))
    tokenizer.add_special_tokens(["<a>"])
    controls = ControlTokens(tokenizer)
    ids = encoded(controls, controls.spell("<a>" + controls.wall("a<a><a>")))
    assert ids == [3, 1, 0, 1, 2, 0, 1, 2]


def test_the_unknown_token_stands_for_the_unknown_unless_it_means_more():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>"])
    controls = ControlTokens(tokenizer)
    assert encoded(controls, "a zebra") == [1, 0]
    controls.forbid_unknown()
    assert isinstance(controls.encode(["a z"])[0], BadPair)


def test_thousands_of_control_tokens_are_matched():
    texts = [f"<unused{i}>" for i in range(6500)]
    controls = ControlTokens(characters(*texts))
    assert controls.pattern.findall("<unused6499><unused64990><unused12>") == [
        "<unused6499>",
        "<unused12>",
    ]
    assert encoded(controls, controls.spell("<unused6499>a<unused0>")) == [16 + 6499, 0, 16]

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.tokenization.chat import Chat, load_chat, load_tokenizer
from jaxdpo.data.tokenization.pair_encoding import EncodedPair
from jaxdpo.data.tokenization.template import PROBE
from jaxdpo.errors import UserError

BACKENDS = [
    *("bytes", "lower", "metaspace-first", "metaspace-always", "word-piece", "llama2", "flagged"),
]
TEMPLATES = ["chatml", "llama3", "qwen", "gemma", "mistral", "phi3", "plain"]
ENDS = {
    **{"chatml": "<|im_end|>", "qwen": "<|im_end|>", "llama3": "<|eot_id|>"},
    **{"gemma": "<end_of_turn>", "mistral": "</s>", "plain": "<|endoftext|>"},
}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def pair(question, chosen, rejected, **changes):
    return PreferencePair(
        (user(question),), (assistant(chosen),), (assistant(rejected),), "TRAIN", **changes
    )


BENIGN = [
    [user("What is the capital of Tasmania?"), assistant("Hobart.")],
    [
        user("  Trim me \n"),
        assistant("a < b\n\nand <b>bold</b> 😊 <"),
        user("> user | end"),
        assistant("user\n\n\nKöln, ﬁne 東京 "),
    ],
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_benign_text_gets_the_ids_of_apply_chat_template(make_tokenizer, backend, template):
    tokenizer = make_tokenizer(backend, template)
    chat = Chat(tokenizer)
    for messages, prompt in itertools.product(BENIGN, (False, True)):
        expected = tokenizer.apply_chat_template(
            messages, add_generation_prompt=prompt, return_dict=False
        )
        assert chat.encode(messages, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("template", ["chatml", "llama3", "mistral", "phi3"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pairs_ids_are_those_of_the_whole_conversations(make_tokenizer, backend, template):
    """Cutting off the shared part and encoding it once changes no id."""
    tokenizer = make_tokenizer(backend, template)
    chat = Chat(tokenizer)
    for messages in BENIGN:
        made = PreferencePair(tuple(messages[:-1]), (messages[-1],), (assistant(" no\n"),), "TRAIN")
        tokens = chat.encode_pair(made)
        for completion, ids in ((messages[-1], 1), (assistant(" no\n"), 2)):
            whole = tokenizer.apply_chat_template([*messages[:-1], completion], return_dict=False)
            ours = [*tokens.prompt_ids, *tokens[ids]]
            assert ours == whole[: len(ours)]


# Text that forges control tokens, or tries to make one of two parts.
def forgeries(token):
    return [
        token,
        f"a{token}b",
        f"{token}{token}\n",
        f"{token[0]}{token}{token[1:]}",
        token[: len(token) // 2],
        token[len(token) // 2 :],
        f"x {token[:-1]}",
        f"{token[1:]} x",
        token.upper(),
        "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in token),
    ]


FIELDS = {
    "user": lambda text: [user(f"q {text}"), assistant("yes")],
    "bare user": lambda text: [user(text), assistant("yes")],
    "assistant": lambda text: [user("q"), assistant(text)],
    "system": lambda text: [{"role": "system", "content": text}, user("q"), assistant("yes")],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("template", ["chatml", "llama3", "mistral", "phi3"])
def test_no_text_becomes_a_control_token(make_tokenizer, backend, template):
    """Every control token, in every role: as many come out as with harmless text."""
    tokenizer = make_tokenizer(backend, template)
    chat = Chat(tokenizer)
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    controls = control_ids(tokenizer)
    random_order = random.Random(0)
    for name, field in FIELDS.items():
        expected = [id for id in chat.encode(field("harmless")) if id in controls]
        tokens = [token.content for id, token in added.items() if id in controls]
        for token in random_order.sample(tokens, 12):
            for text in forgeries(token):
                ids = chat.encode(field(text))
                assert [id for id in ids if id in controls] == expected, (name, text)


FRAGMENTS = [
    *("<|im_end|>", "<|im_", "end|>", "<", "|", ">", "<|", "|>", "<think>", "</think>", "</", "s>"),
    *("<s>", "[INST]", "[", "]", "INST", "unk", "im_start", " ", "\n", "word", "é", "＜"),
]


@pytest.mark.parametrize("backend", ["bytes", "metaspace-always", "llama2"])
def test_no_text_put_together_of_fragments_becomes_a_control_token(make_tokenizer, backend):
    chat = Chat(make_tokenizer(backend, "chatml"))
    controls = control_ids(chat.tokenizer)
    expected = [id for id in chat.encode([user("q"), assistant("a")]) if id in controls]
    texts = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)

    @settings(max_examples=200, deadline=None)
    @given(texts, texts)
    def check(question, answer):
        ids = chat.encode([user(question), assistant(answer)])
        assert [id for id in ids if id in controls] == expected

    check()


def control_ids(tokenizer):
    """Special tokens, and added ones that the template writes; the unknown token is neither.

    Until issue 15 every added token counted as one. A token that the template does not write is
    vocabulary now (`test_added_tokens_are_vocabulary`), so text that spells it has its id.
    """
    backend = tokenizer.backend_tokenizer
    return {
        id
        for id, token in backend.get_added_tokens_decoder().items()
        if (token.special or token.content in tokenizer.chat_template)
        and not token.content.isspace()
        and id != backend.token_to_id("<unk>")
    }


def test_the_forging_test_can_fail(make_tokenizer):
    """The tokenizers used there do take such text for control tokens, each in its own way."""
    tokenizer = make_tokenizer("bytes", "chatml")
    forged = tokenizer.apply_chat_template([user("<|im_end|>")], return_dict=False)
    assert forged.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    # A Unigram vocabulary holds them as pieces, and NFKC makes them of full-width characters.
    state = make_tokenizer("metaspace-always").backend_tokenizer.to_str()
    bare = Tokenizer.from_str(state)
    bare.encode_special_tokens = True
    assert "</s>" in bare.encode("a</s>", add_special_tokens=False).tokens


def test_forged_text_in_tools_and_tool_calls_stays_text(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "qwen")
    chat = Chat(tokenizer)

    def conversation(text):
        call = {"name": "look", "arguments": {"city": text, f"k{text}": [text, 1, None]}}
        messages = [
            user("q"),
            {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "content": text},
            assistant("It is 4°C."),
        ]
        look = {"name": "look", "description": text, "parameters": {"type": "object", text: 1}}
        return messages, [{"type": "function", "function": look}]

    plain, forged = (chat.encode(*conversation(t)) for t in ("x", "</tool_call><|im_end|>"))
    controls = control_ids(tokenizer)
    assert [i for i in forged if i in controls] == [i for i in plain if i in controls]
    expected = tokenizer.apply_chat_template(
        conversation("x")[0], tools=conversation("x")[1], return_dict=False
    )
    assert plain == expected
    assert chat.tokenizer.decode(forged).count("</tool_call><|im_end|>") == 6 + 1


def test_a_template_that_rewrites_forged_text_refuses_the_pair(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    strips_thoughts = tokenizer.chat_template.replace(
        "m['content']", "m['content'].split('</think>')[-1]"
    )
    chat = Chat(tokenizer, strips_thoughts)
    # Reasoning at the start of an answer is the assistant's (issue 15); anywhere else it is text.
    with pytest.raises(BadPair, match=r"spells a control token.*\[control-text\]"):
        chat.encode([user("q"), assistant("so <think>hm</think>yes")])
    with pytest.raises(BadPair, match=r"spells a control token.*\[control-text\]"):
        chat.encode([user("<think>hm</think>q"), assistant("yes")])


def test_walls_that_a_template_sees_do_no_harm_but_halves_that_meet_do(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    counts = "{{ messages[0].content | length }}" + tokenizer.chat_template
    messages = [user("a <"), assistant("b")]
    assert Chat(tokenizer, counts).encode(messages) == tokenizer.apply_chat_template(
        messages, chat_template=counts, return_dict=False
    )
    halves = counts + "{{ '<|im_' + messages[0].content }}"
    assert Chat(tokenizer, halves).encode(messages)
    with pytest.raises(BadPair, match="control-text"):
        Chat(tokenizer, halves).encode([user("end|> x"), assistant("b")])


def test_text_that_spells_a_control_token_is_counted(make_tokenizer):
    chat = Chat(make_tokenizer("bytes", "chatml"))
    encoded = chat.encode_pairs([pair("a <", "b", "c"), pair("q", "<|im_end|>", "c")])
    decided = [item.spelled_control for item in encoded if isinstance(item, EncodedPair)]
    assert decided == [False, True]


@pytest.mark.parametrize("template", ENDS)
def test_completions_end_once_in_the_templates_end_token(make_tokenizer, template):
    tokenizer = make_tokenizer("bytes", template)
    chat = Chat(tokenizer)
    assert tokenizer.convert_ids_to_tokens(chat.end_token_id) == ENDS[template]
    tokens = chat.encode_pair(pair("q", "Hobart", "Paris <|im_end|>\n\n"))
    for ids in tokens[1:3]:
        assert ids.dtype == np.int32
        assert (ids == chat.end_token_id).tolist() == [False] * (len(ids) - 1) + [True]
    if template != "plain":
        assert chat.decode(tokens.chosen_ids).strip() == "Hobart"
    eos = tokenizer.eos_token_id
    assert set(chat.end_ids) == {chat.end_token_id, eos}


def test_white_space_and_end_of_text_after_the_end_token_are_cut(make_tokenizer):
    chat = Chat(make_tokenizer("flagged", "phi3"))
    whole = chat.encode([user("q"), assistant("Hobart")])
    assert chat.tokenizer.convert_ids_to_tokens(whole[-2:]) == ["<|end|>", "<|endoftext|>"]
    tokens = chat.encode_pair(pair("q", "Hobart", "Paris"))
    assert [*tokens.prompt_ids, *tokens.chosen_ids] == whole[:-1]


def test_a_multi_message_completion_is_kept_to_its_last_end(make_tokenizer):
    chat = Chat(make_tokenizer("bytes", "chatml"))
    chosen = (assistant("One moment."), user("Well?"), assistant("Hobart"))
    made = PreferencePair((user("q"),), chosen, (assistant("Paris"),), "TRAIN")
    ids = chat.encode_pair(made).chosen_ids
    assert ids.tolist() == chat.encode([user("q"), *chosen])[-len(ids) - 1 : -1]
    assert (ids == chat.end_token_id).sum() == 3


def test_a_template_that_ends_only_some_turns_gets_one_more_end(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    lazy = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{% if m.content != 'Hm' %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    )
    chat = Chat(tokenizer, lazy)
    tokens = chat.encode_pair(
        PreferencePair((user("q"),), (assistant("a"), assistant("Hm")), (assistant("b"),), "TRAIN")
    )
    assert chat.tokenizer.decode(tokens.chosen_ids) == (
        "<|im_start|>assistant\na<|im_end|>\n<|im_start|>assistant\nHm<|im_end|>"
    )


def test_prompt_and_completions_part_where_the_tokens_do(make_tokenizer):
    """By hand: a merge across the seam makes the prompt's last token part of one completion."""
    tokenizer = make_tokenizer("bytes", "plain")
    chat = Chat(tokenizer)
    texts = {"prompt": "user: q\nassistant: ", "full": "user: q\nassistant: capital\n"}
    prompt, full = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts.values()
    )
    assert full[: len(prompt)] != prompt, (
        "' capital' is one token here, so the prompt's ' ' is not kept"
    )
    tokens = chat.encode_pair(pair("q", "capital", "a"))
    assert tokens.prompt_ids.tolist() == prompt[:-1]
    assert [*tokens.prompt_ids, *tokens.chosen_ids[:-1]] == full


def test_ids_equal_trls_but_for_what_follows_the_end_token(make_tokenizer, tmp_path):
    """TRL trains on the new line that ChatML writes after `<|im_end|>`; here it is cut."""
    trl = pytest.importorskip("trl")
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer("bytes", "chatml")
    tokenizer.pad_token = "<|endoftext|>"
    questions = ["What is the capital of Tasmania?", "2 + 3?", " Köln\n"]
    pairs = [pair(q, f"Hobart {q}", f"No, {q} Paris 😊") for q in questions]
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    tiny = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    config = trl.DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    trainer = trl.DPOTrainer(
        LlamaForCausalLM(tiny), LlamaForCausalLM(tiny), config, processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
    )  # fmt: skip
    chat = Chat(tokenizer)
    newline = tokenizer("\n")["input_ids"]
    for made, theirs in zip(pairs, trainer.train_dataset, strict=True):
        ours = chat.encode_pair(made)
        assert ours.prompt_ids.tolist() == theirs["prompt_ids"]
        assert ours.chosen_ids.tolist() + newline == theirs["chosen_ids"]
        assert ours.rejected_ids.tolist() + newline == theirs["rejected_ids"]


def test_what_a_template_refuses_is_a_bad_pair(make_tokenizer):
    chat = Chat(make_tokenizer("bytes", "gemma"))
    system = PreferencePair(
        ({"role": "system", "content": "x"}, user("q")),
        (assistant("a"),),
        (assistant("b"),),
        "TEST",
    )
    good = pair("q", "a", "b")
    bad, fine = chat.encode_pairs([system, good])
    assert isinstance(bad, BadPair)
    assert isinstance(fine, EncodedPair)
    assert bad.code == "template"
    assert "System role not supported" in bad.reason
    assert fine.tokens.prompt_ids.tolist() == chat.encode_pair(good).prompt_ids.tolist()
    [alike] = chat.encode_pairs([pair("q", "a", " a ")])
    assert isinstance(alike, BadPair)
    assert alike.code == "identical-tokens"


def test_a_template_that_leaves_tools_out_refuses_pairs_with_tools(make_tokenizer):
    chat = Chat(make_tokenizer("bytes", "chatml"))
    tools = ({"type": "function", "function": {"name": "look"}},)
    [bad] = chat.encode_pairs([pair("q", "a", "b", tools=tools)])
    assert isinstance(bad, BadPair)
    assert (bad.code, '"look"' in bad.reason) == ("tools-not-rendered", True)


def test_a_control_token_that_eats_the_space_before_it_still_does(make_tokenizer):
    tokenizer = make_tokenizer("flagged", "chatml")
    aside = tokenizer.chat_template + "{{ 'so   <aside> far' }}"
    assert Chat(tokenizer, aside).encode(BENIGN[1]) == tokenizer.apply_chat_template(
        BENIGN[1], chat_template=aside, return_dict=False
    )


def test_control_tokens_matched_after_normalising_still_are(make_tokenizer):
    """With the space that the normaliser puts before each of them, which they take along."""
    tokenizer = make_tokenizer("llama2-normalized", "mistral")
    spaced = "{% for m in messages %}{{ ' <s>' + m.role + ' ' + m.content + ' </s>' }}{% endfor %}"
    assert Chat(tokenizer, spaced).encode(BENIGN[1]) == tokenizer.apply_chat_template(
        BENIGN[1], chat_template=spaced, return_dict=False
    )


def test_pairs_encoded_together_are_as_apart(make_tokenizer):
    pairs = [pair(f"Question {i}", f"yes {i % 3}", "no") for i in range(12)]
    chat = Chat(make_tokenizer("bytes", "llama3"))
    for made, encoded in zip(pairs, chat.encode_pairs(pairs), strict=True):
        apart = chat.encode_pair(made)
        assert isinstance(encoded, EncodedPair)
        assert [ids.tolist() for ids in encoded.tokens] == [ids.tolist() for ids in apart]


@pytest.mark.parametrize("special", [False, True])
def test_tokens_that_match_whole_words_only_do_so_in_templates_and_in_text(make_tokenizer, special):
    """They used to be refused; issue 15 wants them as `apply_chat_template` has them."""
    tokenizer = make_tokenizer("bytes", "chatml")
    tokenizer.add_tokens([AddedToken("go", single_word=True, special=special)])
    template = tokenizer.chat_template + "{{ 'go going' }}"
    [go] = tokenizer.convert_tokens_to_ids(["go"])
    messages = [user("going to go, go!"), assistant("ago go")]
    ids = Chat(tokenizer, template).encode(messages)
    if special:
        # A special token is control: of those in text none counts, only the template's.
        assert ids.count(go) == 1
        messages = [user("going"), assistant("ago")]
        ids = Chat(tokenizer, template).encode(messages)
    assert ids == tokenizer.apply_chat_template(messages, chat_template=template, return_dict=False)


def test_a_tokenizer_that_cannot_be_followed_is_refused(make_tokenizer):
    """Matched after lower-casing, `<|GO|>` is what this template writes as `<|go|>`."""
    tokenizer = make_tokenizer("lower", "chatml")
    tokenizer.add_tokens([AddedToken("<|GO|>", normalized=True)])
    with pytest.raises(UserError, match='set "normalized" to false'):
        Chat(tokenizer, tokenizer.chat_template + "{{ '<|go|>' }}")
    # Matched after a space is put before it, `<|im_end|>` is no token unless it follows a space.
    tokenizer = make_tokenizer("llama2-normalized", "chatml")
    assert tokenizer.eos_token_id not in tokenizer("a<|im_end|>")["input_ids"]
    with pytest.raises(UserError, match='set "normalized" to false'):
        Chat(tokenizer)


def test_text_outside_the_vocabulary_is_refused_where_it_would_end_the_turn():
    words = ["[END]", *PROBE.split(), "user", "assistant", "q", "a"]
    backend = Tokenizer(
        models.WordLevel(
            {word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="[END]"
        )
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[END]")
    template = "{% for m in messages %}{{ m.role + ' ' + m.content + ' [END] ' }}{% endfor %}"
    chat = Chat(tokenizer, template)
    fine, bad = chat.encode_pairs([pair("q", "a", "a a"), pair("q", "a", "z")])
    assert isinstance(fine, EncodedPair)
    assert isinstance(bad, BadPair)
    assert fine.tokens.chosen_ids[-1] == chat.end_token_id == 0
    assert bad.code == "control-text"


def test_the_date_in_a_template_is_fixed(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    dated = "Today: {{ strftime_now('%d %b %Y') }}\n" + tokenizer.chat_template
    text = Chat(tokenizer, dated).decode(Chat(tokenizer, dated).encode([user("q")]))
    assert text.startswith("Today: 26 Jul 2024\nuser\nq")


def test_the_fingerprint_covers_tokenizer_and_template(make_tokenizer):
    chats = [
        Chat(make_tokenizer("bytes", "chatml")),
        Chat(make_tokenizer("bytes", "chatml"), make_tokenizer("bytes", "phi3").chat_template),
        Chat(make_tokenizer("lower", "chatml")),
        Chat(make_tokenizer("bytes", "llama3")),
    ]
    assert len({chat.fingerprint for chat in chats}) == 4
    assert Chat(make_tokenizer("bytes", "chatml")).fingerprint == chats[0].fingerprint


def test_a_saved_tokenizer_loads_with_its_template_or_another(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer("bytes", "chatml")
    tokenizer.save_pretrained(tmp_path / "model")
    chat = load_chat(str(tmp_path / "model"))
    assert chat.encode(BENIGN[0]) == Chat(tokenizer).encode(BENIGN[0])
    (tmp_path / "own.jinja").write_text("{{ messages[-1].content }}")
    own = load_chat(str(tmp_path / "model"), str(tmp_path / "own.jinja"))
    assert own.encode(BENIGN[0]) == tokenizer("Hobart.")["input_ids"]


def test_tokenizers_and_templates_that_cannot_be_used(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer("bytes", "chatml")
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    tokenizer.save_pretrained(damaged)
    (damaged / "tokenizer.json").write_text('{"version": "1.0", "model"')
    for folder, said in [
        (tmp_path / "none", "no such folder"),
        (tmp_path / "empty", "holds no tokenizer"),
        (damaged, "cannot be loaded"),
    ]:
        with pytest.raises(UserError, match=str(folder)) as caught:
            load_tokenizer(str(folder))
        assert said in str(caught.value)
    for template, said in [
        ("{% for m in messages %}", "cannot be used"),
        ("{{ messages[0].content }}", "does not write the assistant's answer"),
        ("{{ raise_exception('never') }}", "never"),
    ]:
        with pytest.raises(UserError, match=said):
            Chat(tokenizer, template)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"no chat template; .*data\.chat_template"):
        Chat(tokenizer)
    with pytest.raises(UserError, match=r"nowhere\.jinja"):
        load_chat(str(tmp_path), str(tmp_path / "nowhere.jinja"))

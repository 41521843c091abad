"""Chat templates that ship with TRL: our ids are those of `apply_chat_template`, or it is said why.

A pair is right if prompt and completion together are the rendering of `transformers`, up to the
answer's end, and the prompt is its generation prompt. Every other outcome is listed below with its
reason, and a template that is listed must still need it.
"""

import datetime as dates
import functools
import re
from pathlib import Path

import jinja2
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.template_sandbox import NOW
from jaxdpo.errors import UserError

trl = pytest.importorskip("trl")
FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))

# What the families' own tokenizers end a text, and begin one, with.
EOS = {
    **{
        "cohere": "<|END_OF_TURN_TOKEN|>",
        "deepseek": "<｜end▁of▁sentence｜>",
        "gptoss": "<|return|>",
    },
    **{"llama3": "<|eot_id|>", "llava": "</s>", "idefics": "<end_of_utterance>"},
    **{"smol": "<end_of_utterance>", "gemma": "<eos>", "diffusion": "<eos>", "muse": "<eos>"},
    **{"qwen": "<|im_end|>", "lfm": "<|im_end|>", "nemotron": "<|im_end|>"},
}
BOS = {
    **{"cohere": "<BOS_TOKEN>", "deepseek": "<｜begin▁of▁sentence｜>", "gemma": "<bos>"},
    **{"llama3": "<|begin_of_text|>", "lfm": "<|startoftext|>", "diffusion": "<bos>"},
}
SPECIAL = re.compile(
    r"<\|[^|<>\s'\"{}]+\|>|<｜[^｜>]+｜>|<\|\"\|>|<start_of_turn>|<end_of_turn>|<\|?(?:turn|channel|tool|"
    r"tool_call|tool_response)\|?>|\[gMASK\]|<sop>|</?s>|\[/?INST\]|<end_of_utterance>"
)
ADDED = re.compile(r"</?(?:think|tool_call|tool_response)>")


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


FUNCTION = {"name": "weather", "arguments": {"city": "Rome"}}
CALL = {"type": "function", "id": "abcdefghi", "function": FUNCTION}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
TOLD = {"role": "tool", "content": "20", "name": "weather", "tool_call_id": "abcdefghi"}
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "A city"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Looks outside",
        "parameters": {**CITY, "required": ["city"]},
    },
}
THOUGHT = "<think>\nThree, or four?\n</think>\n\n"
CONVERSATIONS = {
    "question": ([user("Hi")], assistant("Hello"), ()),
    "turns": ([user("Hi"), assistant("Yes"), user("More")], assistant("Hello"), ()),
    "system": ([{"role": "system", "content": "Be brief"}, user("Hi")], assistant("Hello"), ()),
    "reasoning": ([user("Hi")], assistant("Four.", reasoning_content="Three, or four?"), ()),
    "thought": ([user("Hi")], assistant(THOUGHT + "Four."), ()),
    "thought before": ([user("Hi"), assistant(THOUGHT + "4"), user("So?")], assistant("Four."), ()),
    "call": ([user("Weather?")], CALLING, (TOOL,)),
    "told": ([user("Weather?"), CALLING, TOLD], assistant("20 degrees"), (TOOL,)),
}
REJECTED = assistant("No")


@functools.cache
def chat_for(name):
    """A template with a small tokenizer that has the control tokens which its family's own has."""
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    # Line breaks in pairs become one token, as in every real vocabulary.
    backend.train_from_iterator(["user\n\nassistant\n\nmodel\n\nsystem tool\n"] * 9, trainer)
    eos, bos = (
        next((token for family, token in table.items() if name.startswith(family)), default)
        for table, default in ((EOS, "<|endoftext|>"), (BOS, None))
    )
    special = {*SPECIAL.findall(template), *filter(None, (eos, bos))}
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in sorted(special)])
    plain = sorted(set(ADDED.findall(template)))
    backend.add_tokens([AddedToken(t, normalized=False) for t in plain])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, bos_token=bos, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return Chat(tokenizer)


@pytest.fixture(autouse=True)
def fixed_date(monkeypatch):
    class Fixed(dates.datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW

    monkeypatch.setattr(chat_template_utils, "datetime", Fixed)


# Reason → outcome, the conversations that have it, and the templates (`x` stands for `x_training`).
LISTED = {
    "the generation prompt opens <think>, and the template writes an answer without it: trained "
    "after the prompt as it will be asked": [
        ("completion", ("question", "turns", "system"), "deepseek_r1_distill deepseekv3"),
        (
            "completion",
            ("reasoning", "thought", "thought before"),
            "deepseek_r1_distill deepseekv3",
        ),
        (
            "completion",
            ("question", "turns", "system", "thought before", "call", "told"),
            "nemotron_3_5_lightning nemotron_3_nano nemotron_3_super nemotron_3_ultra",
        ),
    ],
    "the generation prompt closes reasoning that the answer has: trained as the record says, after "
    "a prompt that opens it, as enable_thinking asks": [
        ("prompt", ("reasoning", "thought"), "qwen3_5_nothink"),
    ],
    "the template knows reasoning in a field alone, and would write <think> as an answer's text": [
        ("completion", ("thought",), "diffusion_gemma gemma4_v5 gptoss muse_glimmer qwen3_8"),
        ("prompt", ("thought before",), "diffusion_gemma gemma4_v5 gptoss muse_glimmer qwen3_8"),
    ],
    "the template has no notion of reasoning, or leaves it out of an answer without calls": [
        (
            "reasoning-not-rendered",
            ("reasoning",),
            "cohere cohere2 gemma gemma3 gemma4 gemma4_v2 gemma4_v3 gemma4_v4 lfm2 lfm2_v2 llama3 "
            "llama3_1 llama3_2 phi3 phi3_5 qwen2_5 qwen2_5_vl qwen3_instruct_2507 qwen3_vl",
        ),
    ],
    "the template ends an answer with nothing": [
        ("end added", tuple(CONVERSATIONS), "glm4moe"),
    ],
    "the template leaves tools or calls out": [
        ("tools-not-rendered", ("call",), "cohere2 gemma gemma3 llama3 qwen2_5_vl"),
        ("tools-not-rendered", ("told",), "llama3 qwen2_5_vl"),
    ],
    "transformers gives no content where a message has none, and the template fails on it": [
        ("refused by transformers", ("call", "told"), "lfm2"),
        ("refused by transformers", ("told",), "deepseek_r1_distill deepseekv3"),
    ],
    "the template refuses the conversation": [
        ("refused by both", ("system",), "gemma"),
        ("refused by both", ("call",), "cohere deepseek_r1_distill deepseekv3 phi3 phi3_5"),
        ("refused by both", ("told",), "cohere cohere2 gemma gemma3 phi3 phi3_5"),
    ],
}
# Templates of models that see images want content in parts; such models are not supported.
IN_PARTS = ("idefics3", "smolvlm", "llava_next")


def expected(name, conversation):
    family = name.removesuffix("_training")
    # The template for training closes an answer of text in <|user|>, as GLM does, and R1's keeps
    # the reasoning in every message.
    found = [
        outcome
        for entries in LISTED.values()
        for outcome, conversations, families in entries
        if conversation in conversations and family in families.split()
    ]
    if name == "glm4moe_training" and conversation != "call":
        return "same"
    if name == "deepseek_r1_distill_training" and conversation == "thought":
        return "same"
    return found[0] if found else "same"


def outcome(name, conversation):
    """Compares a conversation's ids with those of `transformers`."""
    prompt, answer, tools = CONVERSATIONS[conversation]
    chat = chat_for(name)
    more = {"tools": list(tools) or None, "return_dict": False}
    try:
        apply = chat.tokenizer.apply_chat_template
        whole = apply([*prompt, answer], **more)
        asked = apply(prompt, add_generation_prompt=True, **more)
    except (jinja2.TemplateError, TypeError):
        whole = asked = None
    pair = PreferencePair(tuple(prompt), (answer,), (REJECTED,), "TRAIN", tools=tools)
    [encoded] = chat.encode_pairs([pair])
    if isinstance(encoded, BadPair):
        return encoded.code if whole is not None else "refused by both"
    prompt_ids, ids = (part.tolist() for part in encoded.tokens[:2])
    assert ids[-1] in chat.end_ids
    assert ids[-2] not in chat.end_ids, "an answer ends once"
    if whole is None:
        return "refused by transformers"
    if prompt_ids != asked:
        return "prompt"
    ours = [*prompt_ids, *ids]
    if ours == whole[: len(ours)]:
        rest = chat.tokenizer.decode(whole[len(ours) :], skip_special_tokens=True)
        assert isinstance(rest, str)
        return "more" if rest.strip() else "same"
    return "end added" if ours[:-1] == whole else "completion"


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_apply_chat_template_or_the_difference_is_listed(name):
    if name.startswith(IN_PARTS):
        with pytest.raises(UserError, match="chat template"):
            chat_for(name)
        return
    found = {conversation: outcome(name, conversation) for conversation in CONVERSATIONS}
    assert found == {conversation: expected(name, conversation) for conversation in CONVERSATIONS}


def test_all_templates_are_there():
    assert len(NAMES) >= 70

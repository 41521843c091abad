"""Small tokenizers trained here, and chat templates in the styles of the common model families."""

import json

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] "
    "+ '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
QWEN = (
    "{% if tools %}{{ '<|im_start|>system\n# Tools\n' }}{% for t in tools %}{{ t | tojson }}\n"
    "{% endfor %}{{ '<|im_end|>\n' }}{% elif messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' "
    "+ m.content + '\n</tool_response><|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m.role + '\n' "
    "+ (m.content or '') }}{% for c in m.tool_calls or [] %}{{ '\n<tool_call>\n{\"name\": \"' "
    '+ c.function.name + \'", "arguments": \' }}{{ c.function.arguments | tojson }}'
    "{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + eos_token }}{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + '\n' + m['content'] + '<|end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}"
    "{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "qwen": QWEN,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "phi3": PHI3,
    "plain": PLAIN,
}

SPECIAL = [
    *("<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<bos>", "<start_of_turn>"),
    *("<end_of_turn>", "[INST]", "[/INST]"),
]
ADDED = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
]
TEXT = [
    "The capital of Tasmania is Hobart, and the capital of Iceland is Reykjavík.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))  # → 5",
    "Wo liegt Köln? Am Rhein. 東京は日本の首都です。 Привет, мир! 😊",
    "Lists:\n- one\n- two\n\n<b>bold</b> and x < y, a || b, [brackets] {braces} end of turn user",
    "system user assistant tool model name arguments get_weather city units metric You are a",
] * 3


def _byte_level(lower: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase() if lower else normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _unigram(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=260, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def _llama2(normalized: bool = False) -> Tokenizer:
    """SentencePiece BPE as Llama 2 has it: the prefix space by a normalizer, byte fallback.

    Its first releases match special tokens after that normalizer.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*SPECIAL, *alphabet], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    state = json.loads(tokenizer.to_str())
    # Bytes are pieces of the vocabulary, and no added tokens.
    state["added_tokens"] = [
        {**token, "normalized": normalized}
        for token in state["added_tokens"]
        if token["content"] in SPECIAL
    ]
    return Tokenizer.from_str(json.dumps(state))


def _flagged() -> Tokenizer:
    """Control tokens that eat white space, as Phi-3's do, and added tokens of white space."""
    tokenizer = _byte_level()
    tokenizer.add_special_tokens(
        [AddedToken(f"<|{name}|>", rstrip=True) for name in ("user", "assistant", "end", "system")]
    )
    tokenizer.add_tokens([AddedToken("<aside>", lstrip=True, normalized=False), "\n\n", "\n\n\n"])
    return tokenizer


BACKENDS = {
    "bytes": _byte_level,
    "lower": lambda: _byte_level(lower=True),
    "metaspace-first": lambda: _unigram("first"),
    "metaspace-always": lambda: _unigram("always"),
    "word-piece": _word_piece,
    "llama2": _llama2,
    "llama2-normalized": lambda: _llama2(normalized=True),
    "flagged": _flagged,
}
_BOS = {"llama3": "<|begin_of_text|>", "gemma": "<bos>", "mistral": "<s>"}
_EOS = {"chatml": "<|im_end|>", "qwen": "<|im_end|>", "mistral": "</s>"}


_TRAINED: dict[str, Tokenizer] = {}


def make_tokenizer(backend: str = "bytes", template: str = "chatml") -> PreTrainedTokenizerFast:
    """Makes a transformers tokenizer that has its template's tokens; each is trained once."""
    if backend not in _TRAINED:
        _TRAINED[backend] = BACKENDS[backend]()
        _TRAINED[backend].add_tokens(ADDED)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_TRAINED[backend].to_str()),
        bos_token=_BOS.get(template),
        eos_token=_EOS.get(template, "<|endoftext|>"),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer

"""GGUF files, written by the package `gguf` itself, by jaxdpo, and read by transformers."""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MistralConfig

from jaxdpo.errors import UserError
from jaxdpo.hub.gguf.file import open_file
from jaxdpo.hub.gguf.read import open_gguf
from jaxdpo.hub.policy import load_policy
from jaxdpo.runs.convert import ConvertConfig, convert
from jaxdpo.runs.load import load_source, open_source
from tests.folders import write_model

KINDS = gguf.GGMLQuantizationType
HIDDEN, HEADS, KV_HEADS, LAYERS, MIDDLE = 256, 4, 2, 2, 512
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SIZES: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.2,
)  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "biased-linear-rope": LlamaConfig(
        **SIZES, attention_bias=True, mlp_bias=True,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    ),
    "llama3-tied": LlamaConfig(
        **{**SIZES, "head_dim": 32}, tie_word_embeddings=True, rope_parameters=LLAMA3
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
}  # fmt: skip


def torch_model(name: str, folder: Path) -> Path:
    config = CONFIGS[name]
    config.vocab_size = 416
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.05)
    return write_model(folder, model=model)


def logits(folder: Path, **given: Any) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given)
    with torch.no_grad():
        return model(torch.arange(3, 43)[None]).logits.numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_written_and_read_again_it_is_the_same_model(name, tmp_path):
    folder = torch_model(name, tmp_path / "model")
    file = tmp_path / "model.gguf"
    # A row has 64 or 96 numbers, so that Q8_0's blocks of 32 fill it.
    for dtype in ("float16", "bfloat16", "q8_0", "float32") if name == "llama" else ("float32",):
        settings: Any = dict(format="gguf", dtype=dtype, check=True, overwrite=True)
        convert(ConvertConfig(source=str(folder), target=str(file), **settings))
    convert(ConvertConfig(source=str(file), target=str(tmp_path / "again"), check=True))
    np.testing.assert_array_equal(logits(folder), logits(tmp_path / "again"))
    before, after = load_policy(str(folder)), load_policy(str(tmp_path / "again"))
    assert before.config == after.config
    text = "What is the Red cat's number, 1234?\n\n  <|im_end|>ünï"
    assert before.chat.tokenizer(text).input_ids == after.chat.tokenizer(text).input_ids
    assert before.chat.tokenizer.chat_template == after.chat.tokenizer.chat_template
    assert before.chat.end_ids == after.chat.end_ids
    assert before.chat.tokenizer.pad_token == after.chat.tokenizer.pad_token
    generation = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == before.chat.end_token_id


def test_transformers_reads_what_is_written(tmp_path):
    folder = torch_model("llama", tmp_path / "model")
    file = tmp_path / "model.gguf"
    convert(ConvertConfig(source=str(folder), target=str(file), format="gguf", dtype="float32"))
    theirs = logits(tmp_path, gguf_file=file.name)
    np.testing.assert_allclose(theirs, logits(folder), atol=2e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    own = AutoTokenizer.from_pretrained(folder)
    said = [{"role": "user", "content": "where is the red cat"}]
    assert tokenizer.chat_template == own.chat_template
    text = own.apply_chat_template(said, tokenize=False)
    assert tokenizer(text).input_ids == own(text).input_ids


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as llama.cpp has them: channel i of a head, then channel i + d/2."""
    d = weight.shape[0] // heads
    order = [h * d + part for h in range(heads) for i in range(d // 2) for part in (i, i + d // 2)]
    return weight[order]


def numbers_in(kind: Any, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Random numbers as the bytes of a type, which the package may only be able to read."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        return gguf.quants.quantize(rng.normal(size=(rows, columns)).astype(np.float32) * 0.1, kind)
    except NotImplementedError:
        raw = rng.integers(0, 256, (rows, columns // block, size), np.uint8)
        # The scales of a block: two halves in front, or one at the end.
        at = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q3_K": (108,), "Q2_K": (80, 82)}
        for offset in at[kind.name]:
            scale = rng.uniform(1e-4, 1e-3, (rows, columns // block, 1)).astype(np.float16)
            raw[..., offset : offset + 2] = scale.view(np.uint8)
        return raw.reshape(rows, -1)


def write_with_gguf(path: Path, kind: Any, leave_out: str = "", **changes: Any) -> dict[str, Any]:
    """Writes a llama by `gguf` itself; returns its tensors as transformers would name them."""
    rng, expected = np.random.default_rng(0), {}
    writer = gguf.GGUFWriter(path, changes.pop("architecture", "llama"))
    sizes: dict[str, Any] = {
        "block_count": LAYERS, "context_length": 128, "embedding_length": HIDDEN,
        "feed_forward_length": MIDDLE, "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
    }  # fmt: skip
    for key, value in sizes.items():
        if key != leave_out:
            writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    letters = [*"abcdefghijklmnopqrstuvwxyzĠ", "<|im_start|>", "<|im_end|>", "Ġt"]
    tokens = [*letters, *(f"<|{n}|>" for n in range(64 - len(letters)))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.pop("pre", "gpt-2"))
    writer.add_token_list(tokens)
    writer.add_token_types([1 if len(t) < 3 else 3 for t in tokens])
    writer.add_token_merges(["Ġ t"])
    writer.add_eos_token_id(changes.pop("eos", 28))
    writer.add_chat_template(
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    )
    shapes = {
        "token_embd": ("model.embed_tokens", 64, HIDDEN), "output": ("lm_head", 64, HIDDEN)
    }  # fmt: skip
    head = HIDDEN // HEADS
    for n in range(LAYERS):
        for name, hf_name, rows, columns in (
            ("attn_q", "self_attn.q_proj", HEADS * head, HIDDEN),
            ("attn_k", "self_attn.k_proj", KV_HEADS * head, HIDDEN),
            ("attn_v", "self_attn.v_proj", KV_HEADS * head, HIDDEN),
            ("attn_output", "self_attn.o_proj", HIDDEN, HEADS * head),
            ("ffn_gate", "mlp.gate_proj", MIDDLE, HIDDEN),
            ("ffn_up", "mlp.up_proj", MIDDLE, HIDDEN),
            ("ffn_down", "mlp.down_proj", HIDDEN, MIDDLE),
        ):
            shapes[f"blk.{n}.{name}"] = (f"model.layers.{n}.{hf_name}", rows, columns)
    for name, (hf_name, rows, columns) in shapes.items():
        raw = numbers_in(kind, rows, columns, rng)
        weight = gguf.quants.dequantize(raw, kind)
        writer.add_tensor(
            f"{name}.weight", raw, raw_dtype=None if kind in (KINDS.F16, KINDS.F32) else kind
        )
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.rpartition(".")[2])
        if heads is not None:
            # What was written stands for the weights in llama.cpp's order: undo it by its inverse.
            d, inverse = rows // heads, np.empty(rows, int)
            order = [
                h * d + part
                for h in range(heads)
                for i in range(d // 2)
                for part in (i, i + d // 2)
            ]
            inverse[order] = np.arange(rows)
            weight = weight[inverse]
            np.testing.assert_array_equal(
                interleaved(weight, heads), gguf.quants.dequantize(raw, kind)
            )
        expected[f"{hf_name}.weight"] = weight
    norms = {"output_norm": "model.norm"}
    for n in range(LAYERS):
        norms[f"blk.{n}.attn_norm"] = f"model.layers.{n}.input_layernorm"
        norms[f"blk.{n}.ffn_norm"] = f"model.layers.{n}.post_attention_layernorm"
    for name, hf_name in norms.items():
        expected[f"{hf_name}.weight"] = rng.normal(1, 0.1, HIDDEN).astype(np.float32)
        writer.add_tensor(f"{name}.weight", expected[f"{hf_name}.weight"])
    for name, array in changes.pop("tensors", {}).items():
        writer.add_tensor(name, array)
    assert not changes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
)
def test_every_type_of_numbers(kind, tmp_path):
    expected = write_with_gguf(tmp_path / "model.gguf", KINDS[kind])
    target = tmp_path / "folder"
    convert(ConvertConfig(source=str(tmp_path / "model.gguf"), target=str(target), check=True))
    found = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), weight, err_msg=name)


def test_q4_1_by_hand(tmp_path):
    """A block of Q4_1 is a scale, a minimum and 32 numbers of 4 bits, low halves first."""
    write_with_gguf(tmp_path / "model.gguf", KINDS.Q4_1)
    tensor = open_file(tmp_path / "model.gguf").tensors["blk.0.ffn_up.weight"]
    block = np.array(tensor.stored[3, 20:40])
    scale, least = block[:4].view(np.float16).astype(np.float32)
    halves = np.concatenate([block[4:] & 15, block[4:] >> 4])
    by_hand = scale * halves + least
    np.testing.assert_array_equal(tensor.read((slice(3, 4), slice(32, 64)))[0], by_hand)


def test_a_model_in_gguf_answers_as_its_folder_does(tmp_path):
    """Commands that open a model take the file itself; training names what to do instead."""
    write_with_gguf(tmp_path / "model.gguf", KINDS.F32)
    convert(ConvertConfig(source=str(tmp_path / "model.gguf"), target=str(tmp_path / "folder")))
    direct, folder = (
        load_source(str(tmp_path / "model.gguf")),
        load_source(str(tmp_path / "folder")),
    )
    assert direct.config == folder.config
    assert direct.chat.fingerprint == folder.chat.fingerprint
    np.testing.assert_array_equal(
        direct.params["layers"]["attention"]["q"]["kernel"],
        folder.params["layers"]["attention"]["q"]["kernel"],
    )
    with pytest.raises(UserError, match=r"a GGUF file; make a model folder of it with python -m"):
        load_policy(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gemma2"}, "holds a model of the architecture 'gemma2'; only llama is"),
        ({"leave_out": "block_count"}, "says llama.block_count; this one lacks it"),
        ({"pre": "tekken"}, r"by the rule 'tekken' \(tokenizer.ggml.pre\), which is not known"),
        ({"eos": 64}, "eos_token_id is 64; the vocabulary has 64 tokens"),
        (
            {"tensors": {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}},
            "holds blk.0.attn_sinks.weight, a tensor that the llama architecture has not",
        ),
        (
            {"tensors": {"blk.0.more.weight": np.zeros(4, np.int8)}},
            "blk.0.more.weight is I8, which the package gguf does not dequantize",
        ),
        (
            {"tensors": {"rope_freqs.weight": np.linspace(1, 7, 32, dtype=np.float32)}},
            "rope_freqs.weight is not the scaling of Llama 3.1",
        ),
    ],
)
def test_files_that_are_not_read(changes, message, tmp_path):
    write_with_gguf(tmp_path / "model.gguf", KINDS.F16, **changes)
    with pytest.raises(UserError, match=message):
        open_gguf(tmp_path / "model.gguf")


def test_damaged_files(tmp_path):
    path = tmp_path / "model.gguf"
    write_with_gguf(path, KINDS.F16)
    whole = path.read_bytes()
    # Cut in the header, in the keys, in the list of tensors and in the weights.
    for length in (0, 3, 20, 200, 1500, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="no GGUF file, or a damaged or incomplete one"):
            open_gguf(path)
    # A length of the token list that no file could hold must not be counted up to.
    at = whole.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    path.write_bytes(whole[:at] + (2**60).to_bytes(8, "little") + whole[at + 8 :])
    with pytest.raises(UserError, match="no GGUF file, or a damaged or incomplete one"):
        open_gguf(path)
    path.write_bytes(b"PK" + whole[2:])
    with pytest.raises(UserError, match="GGUF magic invalid"):
        open_source(str(path))


def test_without_the_package(tmp_path, monkeypatch):
    write_with_gguf(tmp_path / "model.gguf", KINDS.F16)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r'need the package `gguf`.*pip install "jaxdpo\[gguf\]"'):
        open_source(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "q8_0"}, "dtype=q8_0: only GGUF files hold such numbers; set format=gguf"),
        ({"target": "out.gguf"}, "target=out.gguf: to write a GGUF file, set format=gguf"),
    ],
)
def test_settings_that_do_not_go_together(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    with pytest.raises(UserError, match=message):
        convert(ConvertConfig(**{"source": "model", "target": "out", **settings}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MistralConfig(**SIZES, sliding_window=7), "does not have sliding windows"),
        (LlamaConfig(**SIZES, hidden_act="gelu"), "does not have the activation gelu"),
    ],
)
def test_models_that_llama_cpp_would_run_otherwise(config, message, tmp_path):
    config.vocab_size = 416
    write_model(tmp_path / "model", model=AutoModelForCausalLM.from_config(config))
    target = tmp_path / "model.gguf"
    with pytest.raises(UserError, match=message):
        convert(ConvertConfig(source=str(tmp_path / "model"), target=str(target), format="gguf"))
    assert not target.exists()
    target.write_bytes(b"something")
    with pytest.raises(UserError, match="is there already; set overwrite=true"):
        convert(ConvertConfig(source=str(tmp_path / "model"), target=str(target), format="gguf"))

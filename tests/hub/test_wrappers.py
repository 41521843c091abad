"""Models of text and images: the text model is trained, everything else is carried bit for bit."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from jaxdpo.errors import UserError
from jaxdpo.hub.exportable import check_exportable
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.policy import Policy, load_policy
from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import logits
from jaxdpo.model.lora import LoraConfig
from tests.folders import write_model
from tests.hub.conftest import whole_sequences
from tests.tiny import hidden_states

IDS = np.arange(24, dtype=np.int32)[None] * 7 % 380
VISION: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    image_size=28, patch_size=14,
)  # fmt: skip
QWEN_VISION: dict[str, Any] = dict(
    depth=2, hidden_size=32, intermediate_size=48, num_heads=4, out_hidden_size=32
)
TEXT: dict[str, Any] = dict(
    vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=2, pad_token_id=1,
)  # fmt: skip
IMAGES: dict[str, Any] = dict(
    image_token_id=390, video_token_id=391, vision_start_token_id=392, vision_end_token_id=393
)


def _mrope(**more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e6, **more}


CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": dict(
        text_config=dict(
            **{**TEXT, "num_hidden_layers": 7}, model_type="gemma3_text", head_dim=8,
            sliding_window=6,
        ),
        vision_config=dict(**VISION, model_type="siglip_vision_model"),
        mm_tokens_per_image=4, image_token_index=390,
    ),
    "mistral3": dict(
        text_config=dict(**TEXT, model_type="mistral", head_dim=8, sliding_window=None),
        vision_config=dict(**VISION, model_type="pixtral", head_dim=8),
        image_token_index=390, tie_word_embeddings=False,
    ),
    "ministral3": dict(
        model_type="mistral3",
        text_config=dict(
            **TEXT, model_type="ministral3", head_dim=8, sliding_window=None,
            max_position_embeddings=64,
            rope_parameters=dict(
                type="yarn", rope_type="yarn", rope_theta=1e4, factor=4.0, beta_fast=32.0,
                beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1,
                original_max_position_embeddings=7,
            ),
        ),
        vision_config=dict(**VISION, model_type="pixtral", head_dim=8),
        image_token_index=390, tie_word_embeddings=False,
    ),
    "qwen2_5_vl": dict(
        text_config=dict(
            **TEXT, model_type="qwen2_5_vl_text", rope_parameters=_mrope(mrope_section=[1, 1, 2])
        ),
        vision_config=dict(**QWEN_VISION, fullatt_block_indexes=[1]), **IMAGES,
    ),
    "qwen3_vl": dict(
        text_config=dict(
            **TEXT, model_type="qwen3_vl_text", head_dim=8,
            rope_parameters=_mrope(mrope_section=[2, 1, 1], mrope_interleaved=True),
        ),
        vision_config=dict(
            **QWEN_VISION, num_position_embeddings=16, deepstack_visual_indexes=[0]
        ),
        **IMAGES,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def wrapped(request, tmp_path_factory) -> Path:
    """A model of text and images, as transformers saves it, with a tokenizer and a processor."""
    torch.manual_seed(4)
    config = AutoConfig.for_model(**{"model_type": request.param, **CONFIGS[request.param]})
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.1)
    folder = write_model(tmp_path_factory.mktemp(request.param), model=model)
    (folder / "preprocessor_config.json").write_text('{"size": 28}')
    return folder


def loaded(folder: Path) -> Any:
    found: Any = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    model, report = found
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return model.eval()


def torch_logits(folder: Path) -> np.ndarray:
    ids = torch.tensor(IDS).long()
    with torch.no_grad():
        return loaded(folder)(input_ids=ids).logits.numpy()


def our_logits(policy: Policy) -> np.ndarray:
    compute = Compute(jnp.float32, attention="dense", remat="none")
    hidden = hidden_states(policy.config, policy.params, None, whole_sequences(IDS), compute)
    return np.asarray(logits(policy.config, policy.params, hidden))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def of_text(name: str) -> bool:
    return not any(word in name for word in ("visual", "vision_tower", "projector"))


def test_text_is_scored_as_by_the_whole_model(wrapped):
    expected = torch_logits(wrapped)
    ours = our_logits(load_policy(str(wrapped)))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_an_export_is_the_whole_model_with_the_text_model_trained(wrapped, tmp_path):
    policy = load_policy(str(wrapped))
    # As if trained: every kernel and the last norm moved.
    layers = dict(policy.params["layers"])
    mlp = {
        name: {**linear, "kernel": linear["kernel"] * 1.25}
        for name, linear in layers["mlp"].items()
    }
    norm = {"scale": policy.params["norm"]["scale"] + 0.5}
    params = {**policy.params, "layers": {**layers, "mlp": mlp}, "norm": norm}
    trained = dataclasses.replace(policy, params=params)
    check_exportable(trained)
    trained.save(tmp_path / "out")
    before, after = tensors_of(wrapped), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(of_text(name) for name in changed)
    assert {name for name in before if ".mlp." in name and of_text(name)} < changed
    images = [name for name in before if not of_text(name)]
    assert len(images) > 10
    assert all(before[name].dtype == after[name].dtype for name in images)
    # transformers loads it as the whole model, which answers as ours does.
    found = torch_logits(tmp_path / "out")
    np.testing.assert_allclose(our_logits(trained), found, rtol=0, atol=2e-4 * np.abs(found).max())
    assert np.abs(found - torch_logits(wrapped)).max() > 0.05 * np.abs(found).max()
    ids = torch.tensor(IDS).long()
    made = loaded(tmp_path / "out").generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False
    )
    assert made.shape[1] > ids.shape[1]
    given, written = (
        json.loads((folder / "config.json").read_text()) for folder in (wrapped, tmp_path / "out")
    )
    assert {**written, "dtype": None, "torch_dtype": None} == {
        **given, "dtype": None, "torch_dtype": None,
    }  # fmt: skip
    assert (tmp_path / "out/preprocessor_config.json").read_text() == '{"size": 28}'
    # And back: the same model again.
    np.testing.assert_array_equal(
        our_logits(load_policy(str(tmp_path / "out"))), our_logits(trained)
    )


def test_what_is_carried_keeps_its_own_dtype(wrapped, tmp_path):
    policy = load_policy(str(wrapped))
    policy.save(tmp_path / "out", dtype="bfloat16", max_shard_bytes=60_000)
    assert (tmp_path / "out/model.safetensors.index.json").exists()
    before = tensors_of(wrapped)
    after: dict[str, torch.Tensor] = {}
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        after |= load_file(path)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        expected = before[name].bfloat16() if of_text(name) else before[name]
        assert torch.equal(tensor, expected), name


GEMMA3_ROPE = {"factor": 8.0, "rope_type": "linear"}
_QWEN: dict[str, Any] = dict(
    attention_dropout=0.0, hidden_act="silu", initializer_range=0.02, rms_norm_eps=1e-6,
    use_cache=True, bos_token_id=151643, eos_token_id=151645,
)  # fmt: skip
# The fields of published models that their text models are read from.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Gemma 3 4B": dict(
        model_type="gemma3", eos_token_id=[1, 106], mm_tokens_per_image=256,
        text_config=dict(
            hidden_size=2560, intermediate_size=10240, model_type="gemma3_text",
            num_hidden_layers=34, rope_scaling=GEMMA3_ROPE, sliding_window=1024,
        ),
    ),
    "Gemma 3 27B": dict(
        model_type="gemma3", eos_token_id=[1, 106], mm_tokens_per_image=256,
        text_config=dict(
            head_dim=128, hidden_size=5376, intermediate_size=21504, model_type="gemma3_text",
            num_attention_heads=32, num_hidden_layers=62, num_key_value_heads=16,
            query_pre_attn_scalar=168, rope_scaling=GEMMA3_ROPE, sliding_window=1024,
        ),
    ),
    "Mistral Small 3.1": dict(
        model_type="mistral3", image_token_index=10, multimodal_projector_bias=False,
        text_config=dict(
            attention_dropout=0.0, head_dim=128, hidden_act="silu", hidden_size=5120,
            intermediate_size=32768, max_position_embeddings=131072, model_type="mistral",
            num_attention_heads=32, num_hidden_layers=40, num_key_value_heads=8,
            rms_norm_eps=1e-05, rope_theta=1000000000.0, sliding_window=None, vocab_size=131072,
        ),
    ),
    "Ministral 3 8B": dict(
        model_type="mistral3", image_token_index=10, multimodal_projector_bias=False,
        tie_word_embeddings=False,
        text_config=dict(
            attention_dropout=0.0, head_dim=128, hidden_act="silu", hidden_size=4096,
            intermediate_size=14336, max_position_embeddings=262144, model_type="ministral3",
            num_attention_heads=32, num_hidden_layers=34, num_key_value_heads=8,
            rms_norm_eps=1e-05, sliding_window=None, vocab_size=131072,
            rope_parameters={
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1,
                "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384,
                "rope_theta": 1000000.0, "rope_type": "yarn", "type": "yarn",
            },
        ),
    ),
    "Qwen2.5-VL 7B": dict(
        model_type="qwen2_5_vl", **_QWEN, hidden_size=3584, intermediate_size=18944,
        max_position_embeddings=128000, max_window_layers=28, num_attention_heads=28,
        num_hidden_layers=28, num_key_value_heads=4, sliding_window=32768, rope_theta=1000000.0,
        tie_word_embeddings=False, use_sliding_window=False, vocab_size=152064,
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        vision_config={"depth": 32, "hidden_size": 1280},
    ),
    "Qwen3-VL 8B": dict(
        model_type="qwen3_vl", tie_word_embeddings=False,
        text_config=dict(
            **_QWEN, attention_bias=False, head_dim=128, hidden_size=4096,
            intermediate_size=12288, max_position_embeddings=262144, num_attention_heads=32,
            num_hidden_layers=36, num_key_value_heads=8, rope_theta=5000000, vocab_size=151936,
            model_type="qwen3_vl_text",
            rope_scaling={
                "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default",
            },
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_published_config_leaves_out_is_filled_in_as_by_transformers(name):
    given = PUBLISHED[name]
    filled = AutoConfig.for_model(**given).to_dict()
    ours, theirs = config_from_hf(given), config_from_hf(filled)
    if name == "Mistral Small 3.1":
        # transformers ties by default and lets go where it finds the head that these files hold.
        assert (ours.tied_head, theirs.tied_head) == (False, True)
        theirs = theirs.model_copy(update={"tied_head": False})
    assert ours == theirs
    assert ours.num_layers == (given.get("text_config") or given)["num_hidden_layers"]


def test_other_spellings_of_the_names_are_kept(tmp_path):
    """transformers 4 put all models of this kind under `language_model.` and `model.`."""
    torch.manual_seed(4)
    config = AutoConfig.for_model("gemma3", **CONFIGS["gemma3"])
    folder = write_model(tmp_path / "model", model=AutoModelForImageTextToText.from_config(config))
    path = folder / "model.safetensors"
    renamed = {
        name.replace("language_model.model.", "model.language_model."): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(renamed, path, metadata={"format": "pt"})
    load_policy(str(folder)).save(tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    assert after.keys() == renamed.keys()
    assert all(torch.equal(after[name], renamed[name]) for name in renamed)


def test_a_source_that_is_gone_and_adapters_alone_are_named(wrapped, tmp_path):
    folder = shutil.copytree(wrapped, tmp_path / "model")
    policy = load_policy(str(folder))
    with pytest.raises(UserError, match=r"not written by themselves; set export.lora=merged"):
        check_exportable(policy, LoraConfig(rank=2), "adapter")
    check_exportable(policy, LoraConfig(rank=2), "merged")
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="the tensors of this model's images are there alone"):
        policy.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()

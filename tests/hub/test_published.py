"""Every family in the Hub's spelling: read, tried, exported, and the same model for torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from jaxdpo.errors import UserError
from jaxdpo.hub.exportable import check_exportable
from jaxdpo.hub.policy import load_policy
from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import logits
from jaxdpo.model.lora import LoraConfig
from tests.hub.conftest import whole_sequences
from tests.hub.published import PUBLISHED, write_published
from tests.tiny import hidden_states

IDS = np.arange(24, dtype=np.int32)[None] % 50


def torch_logits(folder) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS).long()).logits.numpy()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_hubs_spelling_is_read_tried_and_exported(name, tmp_path):
    published = write_published(name, tmp_path / "model")
    expected = torch_logits(published)
    policy = load_policy(str(published))
    compute = Compute(jnp.float32, attention="dense", remat="none")
    run = jax.jit(hidden_states, static_argnums=(0, 4))
    hidden = run(policy.config, policy.params, None, whole_sequences(IDS), compute)
    ours = logits(policy.config, policy.params, hidden)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    check_exportable(policy)
    check_exportable(policy, LoraConfig(rank=2, targets=("q", "v")), "adapter")
    policy.save(tmp_path / "out")
    np.testing.assert_array_equal(torch_logits(tmp_path / "out"), expected)
    given = json.loads((published / "config.json").read_text())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    # What was published stays as it was, but for the names of code and of the float type.
    changed = {name for name in given if name in written and written[name] != given[name]}
    assert changed <= {"torch_dtype", "rope_scaling", "hidden_act", "hidden_activation"}, changed


def test_an_export_that_would_fail_stops_the_run_before_its_first_step(tmp_path, monkeypatch):
    """Whatever the fault: here the family's writer loses a field, as Phi-3's once did."""
    published = write_published("Phi-3.5", tmp_path / "model")
    from jaxdpo.hub import exportable

    def broken(*_):
        raise KeyError("original_max_position_embeddings")

    monkeypatch.setattr(exportable, "config_to_hf", broken)
    with pytest.raises(UserError, match=r"could not be exported.*training has not begun"):
        check_exportable(load_policy(str(published)))

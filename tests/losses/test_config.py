"""Options that a loss would ignore are refused, and so is what makes no sense."""

import pytest

from jaxdpo.config import load_config
from jaxdpo.errors import UserError

REQUIRED = ["model.path=m", "data.path=d.jsonl", "training.folder=runs/x"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.type=hinge", "loss.label_smoothing=0.1"], r"label_smoothing is 0.1, but hinge wou"),
        (["loss.type=sft", "loss.beta=0.2"], r"beta is 0.2, but sft would ignore it"),
        (["loss.gamma=1.0"], r"gamma is 1.0, but sigmoid would ignore it; simpo, alphapo read it"),
        (["loss.discopop_tau=0.1"], r"discopop_tau is 0.1, but sigmoid would ignore it"),
        (["loss.type=bco_pair", "loss.f_divergence=forward_kl"], r"f_divergence is 'forward_kl'"),
        (["loss.type=[sigmoid,bco_pair]", "loss.f_divergence=forward_kl"], r"bco_pair would ign"),
        (["loss.alpha=0.3"], r"alpha is 0.3, but only f_divergence=alpha_divergence and alphapo"),
        (["loss.type=aot", "loss.use_weighting=true"], r"use_weighting"),
        (["loss.type=[aot,sft]", "data.weight_key=w"], r"data.weight_key has no meaning for losse"),
        (["loss.type=aot", "data.weight_key=w"], r"data.weight_key is 'w', but aot would ignore"),
        (["loss.type=ipo", "data.margin_key=m"], r"data.margin_key is 'm', but ipo would ignore"),
        (["loss.undesirable_weight=2.0"], r"undesirable_weight is 2.0, but sigmoid would ignore"),
        (["loss.type=kto", "loss.ld_alpha=0.5"], r"ld_alpha is 0.5, but kto would ignore it"),
        (["loss.type=kto", "loss.label_smoothing=0.1"], r"label_smoothing is 0.1, but kto would"),
        (["loss.type=kto", "loss.use_weighting=true"], r"use_weighting is True, but kto would ign"),
        (["loss.type=kto", "data.margin_key=m"], r"data.margin_key is 'm', but kto would ignore"),
        (["loss.type=[kto,sft]"], r"kto learns from answers one by one"),
        (["loss.type=exo_pair"], r"exo_pair needs label_smoothing > 0"),
        (["loss.type=[sigmoid,sft]", "loss.weights=[1.0]"], r"weights has 1 values for 2 losses"),
        (["loss.type=[sft,sft]"], r"type names a loss twice"),
        (["loss.type=dpoo"], r"loss.type.*'sigmoid', 'hinge'"),
        (["loss.type=simpo", "reference.kind=precomputed"], r"reference would be ignored: simpo"),
        (["loss.type=sft", "reference.path=m"], r"reference would be ignored: sft"),
        (["reference.kind=moving", "lora.rank=4"], r"reference.kind is moving, but under LoRA"),
        (["reference.kind=adapter_off"], r"there is no adapter to switch off"),
        (["reference.kind=frozen", "reference.path=m"], r"path would be ignored by kind=frozen"),
        (["reference.every=5"], r"every is read by kind=moving alone"),
        (["reference.offload=true"], r"offload is read by kind=frozen alone"),
        (["lora.base=int4"], r"lora.base: Input should be 'full', 'int8' or 'nf4'"),
    ],
)
def test_what_would_be_ignored_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(None, [*REQUIRED, *overrides])


def test_dpo_is_another_name_of_sigmoid():
    assert load_config(None, [*REQUIRED, "loss.type=dpo"]) == load_config(None, REQUIRED)
    mixed = load_config(None, [*REQUIRED, "loss.type=[dpo,sft]"])
    assert mixed.loss.type == ("sigmoid", "sft")
    with pytest.raises(UserError, match="type names a loss twice"):
        load_config(None, [*REQUIRED, "loss.type=[dpo,sigmoid]"])


def test_a_loss_without_a_reference_scores_none():
    assert load_config(None, REQUIRED).reference_kind == "precomputed"
    assert load_config(None, [*REQUIRED, "loss.type=orpo"]).reference_kind == "none"
    mixed = load_config(None, [*REQUIRED, "loss.type=[sigmoid,sft]"])
    assert mixed.reference_kind == "precomputed"
    free = load_config(None, [*REQUIRED, "reference.kind=none"])
    assert free.reference_kind == "none"

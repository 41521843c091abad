"""Models that are loaded for a server: a base in memory once, answers of the right adapter."""

import asyncio
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxdpo.errors import UserError
from jaxdpo.hub.policy import load_policy
from jaxdpo.model.lora import LoraConfig, init_lora
from jaxdpo.sampling import SamplingConfig, answer
from jaxdpo.serving import AnswerSettings, ServeConfig, load_models
from tests.folders import write_model

QUESTION = [{"role": "user", "content": "Where is it?"}]
SHORT = AnswerSettings(max_new_tokens=12, temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, and two adapters of it."""
    path = tmp_path_factory.mktemp("adapters")
    write_model(path / "base", 0)
    base = load_policy(str(path / "base"))
    config = LoraConfig(rank=2, alpha=8.0)
    for seed, name in enumerate(("first", "second")):
        lora = init_lora(base.config, config, jax.random.key(seed))
        noise = jax.random.key(10 + seed)
        lora = jax.tree.map(
            lambda leaf, noise=noise: leaf + 0.3 * jax.random.normal(noise, leaf.shape), lora
        )
        replace(base, lora=lora, lora_config=config).save(path / name, lora="adapter")
    return path


def asked(models):
    """Each model's answer, all asked at a time."""

    async def one(model):
        model.scheduler.start()
        return "".join([piece.text async for piece in model.answer(QUESTION, SHORT)])

    async def every():
        return await asyncio.gather(*map(one, models.values()))

    answers = asyncio.run(every())
    for model in models.values():
        model.scheduler.stop()
    return dict(zip(models, answers, strict=True))


def test_adapters_of_one_base_hold_it_once(folder):
    names = ("base", "first", "second")
    models = load_models(
        ServeConfig(models={name: str(folder / name) for name in names}, batch_size=2)
    )
    pools = [model.scheduler._make_pool.args[3] for model in models.values()]
    kept = [[id(leaf) for leaf in jax.tree.leaves(params) if leaf.size > 1] for params, _ in pools]
    assert kept[0] == kept[1] == kept[2]
    assert pools[0][1] is None and pools[1][1] is not pools[2][1]
    expected = {
        name: answer(load_policy(str(folder / name)), [QUESTION], SamplingConfig(max_new_tokens=12))
        for name in names
    }
    assert {name: [text] for name, text in asked(models).items()} == expected
    assert len({text for [text] in expected.values()}) == 3


def test_a_context_longer_than_the_learned_positions(folder):
    config = ServeConfig(model=str(folder / "base"), context=100, dtype="bfloat16")
    [model] = load_models(config).values()
    assert model.context == 100
    params, _ = model.scheduler._make_pool.args[3]
    assert params["layers"]["attention"][0]["q"]["kernel"].dtype == jnp.bfloat16


def test_a_model_that_is_not_there():
    with pytest.raises(UserError, match="nowhere"):
        load_models(ServeConfig(model="./nowhere"))

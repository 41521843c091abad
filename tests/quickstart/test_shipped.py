"""The shipped model and pairs are what they claim, for us and for torch."""

import json
import random
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import jaxdpo.quickstart
from jaxdpo.data.packing.layout import empty_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.hub.policy import load_policy
from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import logits
from jaxdpo.quickstart.make import PAIRS
from jaxdpo.quickstart.task import make_request, passes, read_request, split_of, write_answer
from jaxdpo.sampling import SamplingConfig, answer
from tests.tiny import hidden_states

COMPUTE = Compute(jnp.float32, attention="dense", remat="none")
FOLDER = Path(jaxdpo.quickstart.__file__).parent


@pytest.fixture(scope="module")
def records():
    with open(FOLDER / "pairs.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def policy():
    return load_policy(str(FOLDER / "model"))


def test_the_files_are_small():
    model = sum(path.stat().st_size for path in (FOLDER / "model").iterdir())
    assert model < 3e6
    assert (FOLDER / "pairs.jsonl").stat().st_size < 1.5e6


def test_every_pair_is_judged_right_and_in_its_museums_split(records):
    splits = Counter(record["split"] for record in records)
    assert splits == PAIRS
    for record in records:
        user, chosen = record["messages"]
        assert passes(user["content"], chosen["content"])
        assert not passes(user["content"], record["rejected_message"]["content"])
        assert record["split"] == split_of(read_request(user["content"]).name)
    assert len({record["messages"][0]["content"] for record in records}) == len(records)


def test_torch_reads_the_model_and_tokenizer_alike(policy, records):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        FOLDER / "model", dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER / "model")
    for record in records[::400]:
        ids = policy.chat.encode(record["messages"])
        assert ids == tokenizer.apply_chat_template(record["messages"], return_dict=False)
        tokens = np.array([ids], np.int32)
        batch = empty_batch(BatchShape(rows=1, row_length=len(ids)), rows=1)._replace(
            tokens=tokens,
            positions=np.arange(len(ids), dtype=np.int32)[None],
            pair_ids=np.ones_like(tokens),
        )
        hidden = hidden_states(policy.config, policy.params, None, batch, COMPUTE)
        with torch.no_grad():
            expected = theirs(torch.tensor(tokens)).logits.numpy()
        ours = logits(policy.config, policy.params, hidden)
        np.testing.assert_allclose(jnp.asarray(ours), expected, atol=1e-3)


def test_the_model_knows_the_facts_and_answers_as_poorly_as_the_desk(policy):
    rng = random.Random(6)
    requests = [make_request("TEST", rng) for _ in range(300)]
    asked = [[{"role": "user", "content": request.prompt()}] for request in requests]
    sampling = SamplingConfig(max_new_tokens=64, temperature=1.0, seed=0, batch_size=200)
    answers = answer(policy, asked, sampling)
    stated = [
        all(request.stated(kind).lower() in text.lower() for kind in request.asked)
        for request, text in zip(requests, answers, strict=True)
    ]
    assert np.mean(stated) > 0.85
    passed = [passes(r.prompt(), text) for r, text in zip(requests, answers, strict=True)]
    written = [(r := make_request("TEST", rng), write_answer(r, rng)) for _ in range(5000)]
    desk = float(np.mean([passes(r.prompt(), text) for r, text in written]))
    # A model sampled at temperature 1 answers as it was taught: as often right as the desk was, but
    # for answers with a wrong fact, which may be 15% of them as said before. Three standard errors.
    margin = 3 * float(np.sqrt(desk * (1 - desk) / len(passed)))
    assert 0.85 * desk - margin < np.mean(passed) < desk + margin

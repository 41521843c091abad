"""OpenAI's own client against a real server on loopback, with the model that ships."""

import pytest

from jaxdpo.runs.load import load_source
from jaxdpo.sampling import Request, SamplingConfig, complete
from jaxdpo.storage.files import shipped
from tests.serving.running import MODEL, client, running

QUESTION = [{"role": "user", "content": "When does the museum open?"}]


@pytest.fixture(scope="module")
def server():
    with running(batch_size=4) as (root, _):
        yield root


@pytest.fixture(scope="module")
def policy():
    return load_source(shipped(MODEL))


def offline(policy, samples=1, **settings):
    ids = policy.chat.encode(QUESTION, add_generation_prompt=True)
    requests = [Request(ids, sample) for sample in range(samples)]
    done = {each.number: each for each in complete(policy, requests, SamplingConfig(**settings))}
    return [done[number] for number in range(samples)]


def ask(server, **fields):
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 24} | fields
    return client(server).chat.completions.create(**body)


@pytest.mark.parametrize(
    "drawn",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.7, "top_p": 0.8, "seed": 6},
        {"temperature": 1.3, "top_k": 7, "top_p": 0.9, "seed": 2**32 - 1},
    ],
)
def test_equal_seeds_give_the_offline_engines_answers(server, policy, drawn):
    samples = 1 if drawn["temperature"] == 0 else 3
    expected = offline(policy, samples, max_new_tokens=24, **drawn)
    sent = dict(drawn)
    extra = {"top_k": sent.pop("top_k")} if "top_k" in sent else None
    reply = ask(server, n=samples, extra_body=extra, **sent)
    assert [choice.message.content for choice in reply.choices] == [each.text for each in expected]
    assert [choice.finish_reason == "stop" for choice in reply.choices] == [
        each.finished for each in expected
    ]
    ends = sum(each.finished for each in expected)
    assert reply.usage.completion_tokens == sum(len(e.sampled.ids) for e in expected) - ends
    pieces = [""] * samples
    for chunk in ask(server, n=samples, stream=True, extra_body=extra, **sent):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == [each.text for each in expected]

"""OpenAI's own client against a real server on loopback, with the model that ships."""

# The types say that every part of an answer may be absent; these requests ask for all that is read.
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import math
import threading
from typing import Any

import openai
import pytest
import torch
import transformers

from jaxdpo.runs.load import load_source
from jaxdpo.sampling import Request, SamplingConfig, complete
from jaxdpo.storage.files import shipped
from tests.serving.running import MODEL, QUESTION, client, running, wait_for


@pytest.fixture(scope="module")
def server():
    """One model under two names; requests may name one criterion."""
    settings = {
        "models": {MODEL: MODEL, "twin": MODEL},
        "model": None,
        "batch_size": 4,
        "criteria": [{"name": "contains", "texts": ["a"], "ignore_case": True, "label": "has_a"}],
    }
    with running(**settings) as (root, server):
        yield root, server.config.app


@pytest.fixture(scope="module")
def ask(server):
    def ask(**fields):
        body = {"model": MODEL, "messages": QUESTION, "max_tokens": 24} | fields
        return client(server[0]).chat.completions.create(**body)

    return ask


@pytest.fixture(scope="module")
def policy():
    return load_source(shipped(MODEL))


@pytest.fixture(scope="module")
def reference():
    return transformers.LlamaForCausalLM.from_pretrained(shipped(MODEL), dtype="float32").eval()


def torch_logps(reference, ids):
    """Log-probabilities of the whole vocabulary after each of the tokens."""
    with torch.no_grad():
        return torch.log_softmax(reference(torch.tensor([ids])).logits[0].double(), -1)


def offline(policy, samples=1, **settings):
    ids = policy.chat.encode(QUESTION, add_generation_prompt=True)
    requests = [Request(ids, sample) for sample in range(samples)]
    done = {each.number: each for each in complete(policy, requests, SamplingConfig(**settings))}
    return [done[number] for number in range(samples)]


@pytest.mark.parametrize(
    "drawn",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.7, "top_p": 0.8, "seed": 6},
        {"temperature": 1.3, "top_k": 7, "top_p": 0.9, "seed": 2**32 - 1},
        {"temperature": 1.0, "seed": 8, "stop": ("en", " a")},
    ],
)
def test_equal_seeds_give_the_offline_engines_answers(ask, policy, drawn):
    samples = 1 if drawn["temperature"] == 0 else 3
    expected = offline(policy, samples, max_new_tokens=24, **drawn)
    texts = [each.text for each in expected]
    sent = dict(drawn)
    extra = {"top_k": sent.pop("top_k")} if "top_k" in sent else None
    reply = ask(n=samples, extra_body=extra, **sent)
    assert [choice.message.content for choice in reply.choices] == texts
    reasons = [choice.finish_reason for choice in reply.choices]
    assert [reason == "stop" for reason in reasons] == [each.finished for each in expected]
    if "stop" not in drawn:
        ends = sum(each.finished for each in expected)
        drawn_tokens = sum(len(each.sampled.ids) for each in expected) - ends
        assert reply.usage.completion_tokens == drawn_tokens
    pieces, counts = [""] * samples, [0] * samples
    for chunk in ask(n=samples, stream=True, extra_body=extra, **sent):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
            counts[choice.index] += bool(choice.delta.content)
    assert pieces == texts
    assert max(counts) > 1 or "stop" in drawn


def test_answers_without_a_seed_differ(ask):
    texts = {ask(temperature=1.5).choices[0].message.content for _ in range(4)}
    assert len(texts) > 1


def test_models_are_listed(server):
    found = client(server[0]).models.list().data
    assert [model.id for model in found] == [MODEL, "twin"]
    assert client(server[0]).models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'; there are @quick"):
        client(server[0]).models.retrieve("gpt")


def test_models_with_the_same_weights_hold_them_once(server, ask):
    pools = [server[1].state.models[name].scheduler._make_pool for name in (MODEL, "twin")]
    first, second = (pool.args[3][0] for pool in pools)
    assert first is second
    same = [ask(model=name, temperature=0).choices[0].message.content for name in (MODEL, "twin")]
    assert same[0] == same[1]


def test_logprobs_of_a_chat_are_torchs(ask, policy, reference):
    fields = {"temperature": 1.0, "seed": 3, "logprobs": True, "top_logprobs": 5, "max_tokens": 12}
    [choice] = ask(**fields).choices
    streamed = []
    for chunk in ask(**fields, stream=True):
        for each in chunk.choices:
            streamed += each.logprobs.content if each.logprobs else []
    prompt = policy.chat.encode(QUESTION, add_generation_prompt=True)
    [same] = offline(policy, max_new_tokens=12, temperature=1.0, seed=3)
    ids = [each for each in same.sampled.ids if each not in policy.chat.end_ids]
    logps = torch_logps(reference, prompt + ids)[len(prompt) - 1 :]
    for entries in (choice.logprobs.content, streamed):
        assert "".join(entry.token for entry in entries) == choice.message.content
        assert len(entries) == len(ids)
        for entry, token, expected in zip(entries, ids, logps, strict=False):
            assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-4)
            assert [top.logprob for top in entry.top_logprobs] == pytest.approx(
                expected.topk(5).values.tolist(), abs=1e-4
            )
            assert bytes(entry.bytes).decode() == entry.token


def test_echoed_logprobs_are_torchs(server, policy, reference):
    """Prompts of several lengths in one request, as a harness sends them."""
    texts = ["The museum opens at 9.", "Hello", "Where is the hall? It is on the left, I think."]
    prompts = [policy.chat.tokenizer(text)["input_ids"] for text in texts]
    reply = client(server[0]).completions.create(
        model=MODEL, prompt=prompts, max_tokens=1, temperature=0, echo=True, logprobs=1, seed=1234
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    for choice, ids, text in zip(reply.choices, prompts, texts, strict=True):
        found = choice.logprobs
        assert choice.text.startswith(text)
        assert "".join(found.tokens[: len(ids)]) == text
        logps = torch_logps(reference, ids)
        # One entry more than the prompt has: the token that was drawn.
        assert len(found.token_logprobs) == len(ids) + 1 and found.token_logprobs[0] is None
        expected = [float(logps[i, token]) for i, token in enumerate(ids[1:])]
        assert found.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
        assert found.token_logprobs[-1] == pytest.approx(float(logps[-1].max()), abs=1e-4)
        for own, tops, row in zip(
            found.token_logprobs[1:], found.top_logprobs[1:], logps, strict=True
        ):
            assert max(tops.values()) == pytest.approx(float(row.max()), abs=1e-4)
            # A token is the greedy one exactly where its number is the highest.
            assert own <= max(tops.values())
        # The end token, which may be the one that was drawn, is no part of the text.
        places: Any = zip(found.text_offset, found.tokens, strict=True)
        for offset, token in list(places)[:-1]:
            assert choice.text[offset : offset + len(token)] == token


def test_a_prompt_can_be_scored_without_an_answer(server, policy):
    reply = client(server[0]).completions.create(
        model=MODEL, prompt="The museum", max_tokens=0, echo=True, logprobs=0
    )
    [choice] = reply.choices
    assert choice.text == "The museum"
    assert len(choice.logprobs.tokens) == len(policy.chat.tokenizer("The museum")["input_ids"])
    assert reply.usage.completion_tokens == 0


def test_plain_completions_stream(server):
    fields = {"model": MODEL, "prompt": ["The museum", "A ticket"], "seed": 4, "n": 2}
    whole = client(server[0]).completions.create(**fields)
    pieces = [""] * 4
    for chunk in client(server[0]).completions.create(**fields, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += choice.text
    assert pieces == [choice.text for choice in whole.choices]
    assert whole.usage.completion_tokens > 4


def test_the_best_of_several_by_criteria(ask):
    criteria = ["has_a", {"name": "word_limit", "limit": 12, "label": "short"}]
    fields = {"temperature": 3.0, "seed": 9}
    every = ask(n=8, extra_body={"criteria": criteria}, **fields)
    results = [choice.criteria_results for choice in every.choices]
    for choice, result in zip(every.choices, results, strict=True):
        text = choice.message.content
        assert result["has_a"]["passed"] == ("a" in text.lower())
        assert result["short"]["passed"] == (len(text.split()) <= 12)
        assert result["short"]["explanation"].endswith("words of at most 12")
    values = [result["has_a"]["passed"] + result["short"]["passed"] for result in results]
    assert len(set(values)) > 1
    best = ask(extra_body={"criteria": criteria, "best_of": 8}, **fields)
    [choice] = best.choices
    first = every.choices[values.index(max(values))]
    assert choice.message.content == first.message.content
    assert choice.criteria_results == first.criteria_results
    # All that were drawn are paid for.
    assert best.usage.completion_tokens == every.usage.completion_tokens


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"model": "gpt"}, 404, "there is no model 'gpt'; there are @quickstart/model, twin"),
        ({"extra_body": {"temprature": 1}}, 400, "'temprature'; did you mean 'temperature'"),
        ({"temperature": -1}, 400, "temperature: Input should be greater than or equal to 0"),
        ({"seed": 2**32}, 400, "seed: Input should be less than 4294967296"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty is not supported: leave it out"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported"),
        ({"tool_choice": "required"}, 400, "tool_choice is not supported"),
        ({"n": 1000}, 400, "asks for 1000 completions; at most 128"),
        ({"top_logprobs": 3}, 400, "top_logprobs needs logprobs=true"),
        ({"max_tokens": 600}, 400, "with 600 new ones it would outgrow the context of 512"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "differ; set one"),
        ({"messages": []}, 400, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "human", "content": "Hi"}]}, 400, "write 'user'"),
        ({"messages": [{"role": "user", "content": "Hi", "colour": "a red one"}]}, 400, "colour"),
        ({"extra_body": {"best_of": 3}}, 400, "best_of needs criteria"),
        ({"extra_body": {"criteria": ["polite"]}}, 400, "no criterion 'polite'; it has has_a"),
        # Requests bring no code, no files, no expressions that never end.
        ({"extra_body": {"criteria": [{"function": "os:system"}]}}, 400, "may name a criterion"),
        ({"extra_body": {"criteria": [{"name": "regex", "pattern": "x"}]}}, 400, "may name a"),
        ({"extra_body": {"criteria": [{"name": "json", "json_schema": "/etc/passwd"}]}}, 400, "ma"),
    ],
)
def test_what_is_wrong_is_said(ask, fields, status, said):
    with pytest.raises(openai.APIStatusError) as refused:
        ask(**fields)
    assert refused.value.status_code == status
    body: Any = refused.value.body
    assert said in body["message"]
    assert set(body) == {"message", "type", "param", "code"}


def test_fields_that_change_nothing_are_taken(ask):
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "me"}
    extra = {"repetition_penalty": 1, "min_p": 0, "top_k": -1, "suffix": None}
    del extra["suffix"]
    plain = ask(temperature=0).choices[0].message.content
    same = ask(temperature=0, **neutral, extra_body=extra, metadata={"a": "b"}, store=False)
    assert same.choices[0].message.content == plain


def test_a_client_that_goes_away_frees_its_row(server, ask):
    scheduler = server[1].state.models[MODEL].scheduler
    stream = ask(stream=True, max_tokens=480, temperature=3.0)
    wait_for(lambda: scheduler.counts[0] == 1)
    next(iter(stream))
    stream.close()
    wait_for(lambda: scheduler.counts == (0, 0), 10)
    impatient = client(server[0], timeout=0.05)
    with pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(
            model=MODEL, messages=QUESTION, n=100, max_tokens=490, temperature=3.0
        )
    wait_for(lambda: scheduler.counts == (0, 0), 10)


def test_a_new_request_does_not_wait_for_the_others(server, ask):
    """Three long answers run; a fourth begins and ends among them."""
    ends = []
    long = threading.Thread(
        target=lambda: ends.append(ask(n=3, max_tokens=490, temperature=5.0, seed=1))
    )
    scheduler = server[1].state.models[MODEL].scheduler
    long.start()
    wait_for(lambda: scheduler.counts[0] == 3)
    assert ask(max_tokens=3, temperature=0).choices[0].message.content
    assert long.is_alive() and not ends
    long.join()
    assert math.isclose(ends[0].usage.completion_tokens, 3 * 490, rel_tol=0.9)

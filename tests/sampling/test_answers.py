"""Answers as text: what ends them is left out, and they come back in the order of the requests."""

from hypothesis import given
from hypothesis import strategies as st

from jaxdpo.runs.load import load_source
from jaxdpo.sampling import SamplingConfig, answer
from jaxdpo.sampling.answers import before
from jaxdpo.storage.files import shipped

texts = st.text("abc", max_size=12)


@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=3), texts)
def test_the_text_before_the_first_stop(stops, text):
    kept = before(stops, text)
    assert text.startswith(kept)
    assert not any(stop in kept for stop in stops)
    # Nothing is left out but a stop and what follows it.
    assert kept == text or any(text[len(kept) :].startswith(stop) for stop in stops)


def test_answers_are_in_the_order_of_their_conversations():
    policy = load_source(shipped("@quickstart/model"))
    questions = ["When does it open?", "Where is the museum?", "What does a ticket cost?"]
    conversations = [[{"role": "user", "content": question}] for question in questions]
    few = SamplingConfig(max_new_tokens=12, batch_size=2)
    together = answer(policy, conversations, few)
    assert together == [answer(policy, [each], few)[0] for each in conversations]
    assert len(set(together)) > 1
    assert answer(policy, conversations[::-1], few) == together[::-1]
    cut = answer(policy, conversations, few.model_copy(update={"stop": (" ",)}))
    assert cut == [text.partition(" ")[0] for text in together]

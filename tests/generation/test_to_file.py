"""The file of answers: kept as they come, continued when cut off, refused to another sampling."""

import json

import pytest

from jaxdpo.data.generations import by_prompt, read_generations
from jaxdpo.data.reading.prompts import Prompt
from jaxdpo.errors import UserError
from jaxdpo.generation.to_file import Source, sample_to_file
from jaxdpo.sampling.answers import Answer

PROMPTS = [Prompt(f"{n}", ({"role": "user", "content": f"question {n}"},)) for n in range(3)]


class Answers:
    """Answers prompts with their own text, the last wanted first, and counts what it was asked."""

    def __init__(self, dies_after: int | None = None):
        self.dies_after, self.asked = dies_after, []

    def source(self, **settings) -> Source:
        return Source("echo", {"seed": 0} | settings, self.ask)

    def ask(self, wanted):
        for done, number in enumerate(reversed(range(len(wanted)))):
            if done == self.dies_after:
                raise KeyboardInterrupt
            prompt, sample = wanted[number]
            self.asked.append((prompt.id, sample))
            text = f"answer to {prompt.messages[0]['content']}, {sample}"
            yield Answer(number, text, finished=sample == 0)


def test_answers_stand_in_the_order_of_the_prompts(tmp_path):
    path = tmp_path / "folder" / "answers.jsonl"
    told = []
    answers = sample_to_file(path, Answers().source(), PROMPTS, 2, told.append)
    assert [(a.id, a.sample) for a in answers] == [(f"{n}", s) for n in range(3) for s in (0, 1)]
    assert sum(told) == 6
    assert read_generations(path) == answers
    assert json.loads(path.read_text().splitlines()[1]) == {
        "id": "0",
        "messages": [{"role": "user", "content": "question 0"}],
        "completion": "answer to question 0, 1",
        "sample": 1,
        "model": "echo",
        "finished": False,
        "split": "TEST",
        "metadata": {},
    }
    assert [len(group) for group in by_prompt(answers).values()] == [2, 2, 2]
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "answers.jsonl",
        "answers.settings.json",
    ]


def test_an_interrupted_sampling_asks_for_the_rest_alone(tmp_path):
    path, whole = tmp_path / "answers.jsonl", tmp_path / "whole.jsonl"
    first, second = Answers(dies_after=2), Answers()
    with pytest.raises(KeyboardInterrupt):
        sample_to_file(path, first.source(), PROMPTS, 2)
    assert not path.exists()
    # Killed while the third line was written.
    with open(tmp_path / "answers.jsonl.partial", "a") as file:
        file.write('{"id": "1", "messages": [{"role": "us')
    told = []
    sample_to_file(path, second.source(), PROMPTS, 2, told.append)
    assert not set(first.asked) & set(second.asked)
    assert len(first.asked) + len(second.asked) == 6 and told[0] == 2
    sample_to_file(whole, Answers().source(), PROMPTS, 2)
    assert path.read_text() == whole.read_text()
    third = Answers()
    sample_to_file(path, third.source(), PROMPTS, 2)
    assert not third.asked


def test_more_prompts_are_added(tmp_path):
    path = tmp_path / "answers.jsonl"
    sample_to_file(path, Answers().source(), PROMPTS[:1], 1)
    more = Answers()
    assert len(sample_to_file(path, more.source(), PROMPTS, 1)) == 3
    assert sorted(more.asked) == [("1", 0), ("2", 0)]
    assert len(read_generations(path)) == 3


def test_another_sampling_is_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    sample_to_file(path, Answers().source(), PROMPTS, 1)
    with pytest.raises(UserError, match="seed was 0, is now 1"):
        sample_to_file(path, Answers().source(seed=1), PROMPTS, 1)
    with pytest.raises(UserError, match="samples was 1, is now 2"):
        sample_to_file(path, Answers().source(), PROMPTS, 2)


def test_a_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "a", "messages": [{}], "model": "m"}\n')
    with pytest.raises(UserError, match=r"answers.jsonl:1: completion: Field required"):
        read_generations(path)

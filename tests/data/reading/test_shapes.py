"""Rows in the shape of public data sets and of other tools' files become the pairs they mean.

Each row is written for this test in the published schema; prompt, system and answers that it must
become stand beside it, written by hand.
"""

import json

import pytest

from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.errors import UserError


def say(role, content):
    return {"role": role, "content": content}


def user(text):
    return say("user", text)


def bot(text):
    return say("assistant", text)


def system(text):
    return say("system", text)


Q, GOOD, BAD, SYS = "Name a river of Europe.", "The river Danube.", "The river Nile.", "Be terse."
TALK = [user("Hi, who are you?"), bot("A guide."), user(Q)]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": {"x": 1}}}
ASKED = (user(Q),)
WITH_SYSTEM = (system(SYS), user(Q))


def both(*prompt, good=GOOD, bad=BAD):
    """Two whole conversations, as many data sets have for chosen and rejected."""
    return {"chosen": [*prompt, bot(good)], "rejected": [*prompt, bot(bad)]}


def turn(who, text):
    return {"from": who, "value": text}


def parts(text):
    return [{"type": "text", "value": text}]


# Name: the row, and the prompt that it must become (the answers are GOOD and BAD).
SHAPES = {
    "TRL standard": ({"prompt": Q, "chosen": GOOD, "rejected": BAD}, ASKED),
    "TRL conversational": (
        {"prompt": [user(Q)], "chosen": [bot(GOOD)], "rejected": [bot(BAD)]},
        ASKED,
    ),
    "a prompt beside conversations with a system message": (
        {"prompt": Q, **both(system(SYS), user(Q))},
        WITH_SYSTEM,
    ),
    "a prompt beside rendered conversations": (
        {"prompt": Q, "chosen": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{GOOD}",
         "rejected": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{BAD}<|im_end|>"},
        ASKED,
    ),
    "roles and turns of other tools": (
        {"prompt": [say("human", Q)], "chosen": [turn("gpt", GOOD)], "rejected": [say("bot", BAD)]},
        ASKED,
    ),
    "two answers and a winner": (
        {"question": Q, "answer_a": BAD, "answer_b": GOOD, "winner": "B"},
        ASKED,
    ),
    "two numbered answers": (
        {"instruction": Q, "output_1": BAD, "output_2": GOOD, "preference": 2},
        ASKED,
    ),
    "TRL implicit prompt": (both(system(SYS), user(Q)), WITH_SYSTEM),
    "Intel/orca_dpo_pairs": (
        {"system": SYS, "question": Q, "chosen": GOOD, "rejected": BAD},
        WITH_SYSTEM,
    ),
    "argilla/distilabel-intel-orca-dpo-pairs": (
        {
            "system": SYS, "input": Q, "chosen": GOOD, "rejected": BAD,
            "generations": [GOOD, BAD], "order": ["chosen", "rejected"],
            "labelling_model": "gpt-4-1106-preview", "rating": [9.0, 5.0],
            "labelling_prompt": [say("system", "You are a judge."), user("Which is better?")],
            "raw_labelling_response": "9 5\nThe first names a river.",
            "rationale": "The first names a river of Europe.", "status": "unchanged",
            "original_chosen": GOOD, "original_rejected": BAD, "chosen_score": 9.0,
            "in_gsm8k_train": False,
        },
        WITH_SYSTEM,
    ),
    "HuggingFaceH4/orca_dpo_pairs": (
        {"system": SYS, "question": Q, **both(system(SYS), user(Q))},
        WITH_SYSTEM,
    ),
    "jondurbin/truthy-dpo": (
        {"id": "a1", "source": "s", "system": SYS, "prompt": Q, "chosen": GOOD, "rejected": BAD},
        WITH_SYSTEM,
    ),
    "jondurbin/gutenberg-dpo": (
        {"id": "a1", "prompt": Q, "chosen": GOOD, "rejected": BAD, "rejected_model": "mixtral"},
        ASKED,
    ),
    "HuggingFaceH4/ultrafeedback_binarized": (
        {
            "prompt": Q, "prompt_id": "f0", **both(user(Q)),
            "messages": [user(Q), bot(GOOD)], "score_chosen": 8.0, "score_rejected": 4.5,
        },
        ASKED,
    ),
    "openbmb/UltraFeedback": (
        {
            "source": "sharegpt", "instruction": Q, "models": ["a", "b"],
            "completions": [
                {"annotations": {"helpfulness": {"Rating": "2", "Rationale": "Not in Europe."}},
                 "custom_system_prompt": "As an AI assistant, be helpful.", "model": "a",
                 "principle": "helpfulness", "response": BAD, "critique": "It is in Africa.",
                 "fine-grained_score": 2.0, "overall_score": 3.0},
                {"annotations": {"helpfulness": {"Rating": "5", "Rationale": "Right."}},
                 "custom_system_prompt": "As an AI assistant, be honest.", "model": "b",
                 "principle": "honesty", "response": GOOD, "critique": "A good answer.",
                 "fine-grained_score": 4.5, "overall_score": 9.0},
            ],
            "correct_answers": ["None"], "incorrect_answers": ["None"],
        },
        ASKED,
    ),
    "argilla/ultrafeedback-binarized-preferences": (
        {
            "source": "flan", "instruction": Q, "chosen_response": GOOD, "rejected_response": BAD,
            "chosen_avg_rating": 4.5, "rejected_avg_rating": 2.25, "chosen_model": "gpt-4",
        },
        ASKED,
    ),
    "argilla/ultrafeedback-binarized-preferences-cleaned": (
        {
            "source": "flan", "prompt": Q, "chosen-rating": 4.5, "chosen-model": "gpt-4",
            "rejected-rating": 2.25, "rejected-model": "alpaca", **both(user(Q)),
        },
        ASKED,
    ),
    "argilla/dpo-mix-7k": (
        {"dataset": "argilla/x", **both(*TALK), "chosen_rating": 4.5, "rejected_rating": 2.0},
        tuple(TALK),
    ),
    "mlabonne/orpo-dpo-mix-40k": (
        {"source": "capybara", **both(*TALK), "prompt": TALK[0]["content"],
         "question": TALK[0]["content"]},
        tuple(TALK),
    ),
    "argilla/distilabel-capybara-dpo-7k-binarized": (
        {
            "source": "Dove", "original_response": GOOD, "prompt": Q, "rating_chosen": 5,
            "conversation": [
                {"input": TALK[0]["content"], "output": TALK[1]["content"]},
                {"input": Q, "output": GOOD},
            ],
            "generation_prompt": ["<|system|> You are helpful."], "rating_rejected": 3,
            "raw_generation_responses": ["raw text of it"], "new_generations": [BAD],
            **both(*TALK), "chosen_model": "orig", "rejected_model": "m",
        },
        tuple(TALK),
    ),
    "argilla/OpenHermesPreferences": (
        {
            "source": "airoboros", "category": "orca", "prompt": Q,
            "candidates_completions": [GOOD, BAD, "The Rhine."],
            "candidate_policies": ["m1", "m2"], "ranks": [1, 3, 2], "rank_str": "1>3>2",
            "chosen_policy": "m1", "rejected_policy": "m2", **both(user(Q)),
        },
        ASKED,
    ),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": (
        {"id": "x_1", "source": "a/b", "prompt": Q, **both(user(Q)), "images": [],
         "chosen_model": "m", "rejected_model": "n", "prompt_id": 3},
        ASKED,
    ),
    "Skywork-Reward-Preference-80K": (both(*TALK) | {"source": "magpie_pro"}, tuple(TALK)),
    "allenai/reward-bench": (
        {"prompt": Q, "chosen": GOOD, "chosen_model": "m", "rejected": BAD, "rejected_model": "n",
         "subset": "alpacaeval-easy", "id": 0},
        ASKED,
    ),
    "snorkelai/Snorkel-Mistral-PairRM-DPO": (
        {"prompt_id": "u1", "prompt": Q, **both(user(Q)), "all_generated_responses": [GOOD, BAD],
         "all_rm_scores": [0.9, 0.1]},
        ASKED,
    ),
    "princeton-nlp/llama3-ultrafeedback": (
        {"prompt_id": "u1", "prompt": Q, **both(user(Q)),
         "all_generated_responses": [GOOD, BAD, "Rhine."], "all_rm_scores": [0.9, 0.1, 0.5]},
        ASKED,
    ),
    "Vezora/Code-Preference-Pairs": ({"input": Q, "accepted": GOOD, "rejected": BAD}, ASKED),
    "openbmb/UltraInteract_pair": (
        {"task": "Coding", "dataset": "codecontest", "id": "i", "parent_id": "p",
         "trajectory": [turn("user", Q)], "chosen": GOOD, "rejected": BAD},
        ASKED,
    ),
    "Anthropic/hh-rlhf": (
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {GOOD}",
         "rejected": f"\n\nHuman: {Q}\n\nAssistant: {BAD}"},
        ASKED,
    ),
    "Dahoas/full-hh-rlhf": (
        {"prompt": "\n\nHuman: Hi, who are you?\n\nAssistant: A guide."
         f"\n\nHuman: {Q}\n\nAssistant:",
         "response": f" {GOOD}", "chosen": f" {GOOD}", "rejected": f" {BAD}"},
        tuple(TALK),
    ),
    "trl-internal-testing/hh-rlhf-trl-style": ({"prompt": Q, **both(user(Q))}, ASKED),
    "berkeley-nest/Nectar": (
        {
            "prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "turns": 1, "num_responses": 3,
            "answers": [{"answer": "The Rhine, I think.", "model": "b", "rank": 2.0},
                        {"answer": GOOD, "model": "a", "rank": 1.0},
                        {"answer": BAD, "model": "c", "rank": 3.0}],
            "source": ["ultrafeedback"], "good_natured": True,
        },
        ASKED,
    ),
    "stanfordnlp/SHP": (
        {
            "post_id": "p", "domain": "askculinary_train", "upvote_ratio": 0.9, "history": Q,
            "c_root_id_A": "a", "c_root_id_B": "b", "created_at_utc_A": 1636000000,
            "created_at_utc_B": 1636000100, "score_A": 3, "score_B": 12, "human_ref_A": BAD,
            "human_ref_B": GOOD, "labels": 0, "seconds_difference": 100.0, "score_ratio": 4.0,
        },
        ASKED,
    ),
    "nvidia/HelpSteer2 preference": (
        {"split": "train", "prompt": Q, "response_1": GOOD, "response_2": BAD,
         "preference_strength": -2, "preference_statement": "The first is right.",
         "preference_elaboration": "The Nile is in Africa.",
         "three_most_similar_preferences": [{"strength": -2, "statement": "First is right."}],
         "all_preferences_unprocessed": [{"strength": -2, "statement": "The first one is."}]},
        ASKED,
    ),
    "nvidia/HelpSteer3": (
        {"domain": "general", "language": "english", "context": TALK, "response1": BAD,
         "response2": GOOD, "overall_preference": 2,
         "individual_preference": [{"score": 2, "reasoning": "The second is right.",
                                    "feedback1": "It is in Africa.", "feedback2": "Right."}]},
        tuple(TALK),
    ),
    "PKU-Alignment/PKU-SafeRLHF": (
        {
            "prompt": Q, "response_0": BAD, "response_1": GOOD, "prompt_source": "Alpaca3-70B",
            "response_0_source": "Alpaca3-8B", "response_1_source": "Alpaca3-8B",
            "is_response_0_safe": True, "is_response_1_safe": True,
            "response_0_harm_category": {"Animal Abuse": False},
            "response_1_harm_category": {"Animal Abuse": False},
            "response_0_severity_level": 0, "response_1_severity_level": 0,
            "better_response_id": 1, "safer_response_id": 1, "response_0_sha256": "ab",
            "response_1_sha256": "cd",
        },
        ASKED,
    ),
    "lmsys/chatbot_arena_conversations": (
        {
            "question_id": "q1", "model_a": "vicuna-13b", "model_b": "koala-13b",
            "winner": "model_b", "judge": "arena_user_1", "conversation_a": [user(Q), bot(BAD)],
            "conversation_b": [user(Q), bot(GOOD)], "turn": 1, "anony": True,
            "language": "English", "tstamp": 1682351591.1, "openai_moderation": "{'categories': 1}",
            "toxic_chat_tag": "{'roberta-large': {'flagged': False}}",
        },
        ASKED,
    ),
    "lmarena-ai/arena-human-preference-55k": (
        {
            "id": 30192, "model_a": "gpt-4-1106-preview", "model_b": "gpt-4-0613",
            "prompt": json.dumps([TALK[0]["content"], Q]),
            "response_a": json.dumps([TALK[1]["content"], GOOD]),
            "response_b": json.dumps([TALK[1]["content"], BAD]),
            "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0,
        },
        tuple(TALK),
    ),
    "openai/summarize_from_feedback": (
        {
            "info": {"id": "t3_x", "post": "I cut my hair.", "title": "Hair", "subreddit": "self",
                     "site": None, "article": None},
            "summaries": [{"text": BAD, "policy": "sup2", "note": "short"},
                          {"text": GOOD, "policy": "sup1", "note": None}],
            "choice": 1, "worker": "w", "batch": "batch3", "split": "train",
            "extra": {"confidence": 7},
        },
        (user("SUBREDDIT: r/self\n\nTITLE: Hair\n\nPOST: I cut my hair.\n\nTL;DR:"),),
    ),
    "CarperAI/openai_summarize_comparisons": (
        {"prompt": f"POST: {Q}\nTL;DR:", "chosen": GOOD, "rejected": BAD},
        (user(f"POST: {Q}\nTL;DR:"),),
    ),
    "openai/webgpt_comparisons": (
        {
            "question": {"dataset": "eli5", "id": "q", "full_text": Q},
            "quotes_0": {"title": ["Rivers"], "extract": ["The Nile is a river of Africa."]},
            "answer_0": BAD, "tokens_0": {"prefix": [1], "completion": [2]}, "score_0": -0.5,
            "quotes_1": {"title": ["Rivers"], "extract": ["The Danube is long."]},
            "answer_1": GOOD, "tokens_1": {"prefix": [1], "completion": [3]}, "score_1": 0.5,
        },
        ASKED,
    ),
    "MaxText DPO": ({"input": Q, "chosen": GOOD, "rejected": BAD}, ASKED),
    "NeMo-RL preferences": (
        {"context": TALK, "task_name": "rivers",
         "completions": [{"rank": 1, "completion": [bot(BAD)]},
                         {"rank": 0, "completion": [bot(GOOD)]}]},
        tuple(TALK),
    ),
    "ms-swift rejected_response": (
        {"messages": [system(SYS), user(Q), bot(GOOD)], "rejected_response": BAD},
        WITH_SYSTEM,
    ),
    "ms-swift rejected_messages": (
        {"messages": [system(SYS), user(Q), bot(GOOD)],
         "rejected_messages": [system(SYS), user(Q), bot(BAD)]},
        WITH_SYSTEM,
    ),
    "ms-swift query": (
        {"system": SYS, "query": Q, "chosen_response": GOOD, "rejected_response": BAD,
         "history": [["Hi, who are you?", "A guide."]]},
        (system(SYS), *TALK),
    ),
    "LLaMA-Factory alpaca": (
        {"instruction": "Name a river", "input": "of Europe.", "system": SYS,
         "history": [["Hi, who are you?", "A guide."]], "chosen": GOOD, "rejected": BAD},
        (system(SYS), *TALK[:2], user("Name a river\nof Europe.")),
    ),
    "LLaMA-Factory output list": ({"instruction": Q, "input": "", "output": [GOOD, BAD]}, ASKED),
    "LLaMA-Factory sharegpt": (
        {"system": SYS, "conversations": [turn("human", Q)], "chosen": turn("gpt", GOOD),
         "rejected": turn("gpt", BAD), "tools": ""},
        WITH_SYSTEM,
    ),
    "LLaMA-Factory v1": (
        {
            "chosen_messages": [
                {"role": "system", "content": parts(SYS), "loss_weight": 0.0},
                {"role": "user", "content": parts(Q), "loss_weight": 0.0},
                {"role": "assistant", "content": parts(GOOD), "loss_weight": 1.0},
            ],
            "rejected_messages": [
                {"role": "system", "content": parts(SYS), "loss_weight": 0.0},
                {"role": "user", "content": parts(Q), "loss_weight": 0.0},
                {"role": "assistant", "content": parts(BAD), "loss_weight": 1.0},
            ],
        },
        WITH_SYSTEM,
    ),
    "axolotl chat_template.default": (
        {"system": SYS, "conversation": [user(Q)], "chosen": bot(GOOD), "rejected": bot(BAD)},
        WITH_SYSTEM,
    ),
    "axolotl messages": (
        {"messages": [system(SYS), user(Q)], "chosen": bot(GOOD), "rejected": bot(BAD)},
        WITH_SYSTEM,
    ),
    "axolotl chatml.argilla": (
        {"system": SYS, "instruction": Q, "chosen_response": GOOD, "rejected_response": BAD},
        WITH_SYSTEM,
    ),
    "Fireworks": (
        {"input": {"messages": [system(SYS), user(Q)], "tools": []},
         "preferred_output": [bot(GOOD)], "non_preferred_output": [bot(BAD)]},
        WITH_SYSTEM,
    ),
    "tinker": (
        {"comparison": {"prompt_conversation": [user(Q)], "completion_A": [bot(BAD)],
                        "completion_B": [bot(GOOD)]}, "label": "B"},
        ASKED,
    ),
    "struct of lists": (
        {"prompt": {"role": ["system", "user"], "content": [SYS, Q]},
         "chosen": {"role": ["assistant"], "content": [GOOD]},
         "rejected": {"role": ["assistant"], "content": [BAD]}},
        WITH_SYSTEM,
    ),
    "JSON text": (
        {"prompt": json.dumps(WITH_SYSTEM), "chosen": json.dumps([bot(GOOD)]),
         "rejected": json.dumps([bot(BAD)])},
        WITH_SYSTEM,
    ),
    "Python text": (
        {"prompt": str(list(WITH_SYSTEM)), "chosen": str([bot(GOOD)]),
         "rejected": str([bot(BAD)])},
        WITH_SYSTEM,
    ),
    "OpenPipe": (
        {"messages": [system(SYS), user(Q), bot(GOOD)], "rejected_message": bot(BAD),
         "split": "TRAIN", "metadata": {"prompt_id": "x"}, "tools": [TOOL]},
        WITH_SYSTEM,
    ),
    "OpenAI with every field": (
        {
            "input": {
                "messages": [say("developer", SYS), {**user(Q), "name": "kim"}],
                "tools": [], "parallel_tool_calls": True, "prediction": {"type": "content",
                "content": "The river"}, "web_search_options": {}, "modalities": ["text"],
                "verbosity": "low", "metadata": {"a": "b"}, "option_of_2031": {"x": "auto"},
            },
            "preferred_output": [{"role": "assistant", "content": None, "refusal": GOOD}],
            "non_preferred_output": [{**bot(BAD), "refusal": None, "annotations": []}],
        },
        (system(SYS), {**user(Q), "name": "kim"}),
    ),
    "prompt with a system message alone": (
        {"input": {"messages": [system(Q)]}, "preferred_output": [bot(GOOD)],
         "non_preferred_output": [bot(BAD)]},
        (system(Q),),
    ),
    "distilabel generations and ratings": (
        {"instruction": Q, "generations": [BAD, GOOD], "ratings": [1.0, 5.0],
         "rationales": ["It is wrong.", "It is right."], "model_name": "gpt-4",
         "generation_models": ["a", "b"], "distilabel_metadata": {"raw": "Text of the judge."}},
        ASKED,
    ),
}  # fmt: skip


def write(folder, *records):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def read(path, **fields):
    return read_pairs(path, DataConfig(path=path, test_fraction=0.0, **fields))


def test_there_are_at_least_forty_shapes():
    assert len(SHAPES) >= 40


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_becomes_the_pair_that_it_means(tmp_path, name):
    row, prompt = SHAPES[name]
    # The second row tells whether a shape is read by its keys or by its first record.
    [pair, again] = read(write(tmp_path, row, row)).pairs
    assert pair.prompt == prompt
    assert (pair.chosen, pair.rejected) == ((bot(GOOD),), (bot(BAD),))
    assert again.prompt == pair.prompt


LABELLED = {
    "TRL KTO": {"prompt": Q, "completion": GOOD, "label": True},
    "TRL KTO, conversational": {"prompt": [user(Q)], "completion": [bot(GOOD)], "label": 1},
    "LLaMA-Factory kto_tag": {"instruction": Q, "input": "", "output": GOOD, "kto_tag": True},
    "LLaMA-Factory kto_tag, turns": {
        "conversations": [turn("human", Q), turn("gpt", GOOD)], "kto_tag": True,
    },
    "ms-swift": {"messages": [user(Q), bot(GOOD)], "label": True, "channel": "web"},
    "question and answer": {"question": Q, "answer": GOOD, "label": 1, "id": "x"},
}  # fmt: skip


@pytest.mark.parametrize("name", LABELLED)
def test_labelled_answers(tmp_path, name):
    row = LABELLED[name]
    key = "kto_tag" if "kto_tag" in row else "label"
    good, bad = read(write(tmp_path, row, {**row, key: 0})).pairs
    assert (good.prompt, good.chosen, good.rejected) == (ASKED, (bot(GOOD),), ())
    assert (good.label, bad.label) == (True, False)
    [pair, _] = read(write(tmp_path, {**row, "system": SYS}, {**row, key: False})).pairs
    assert pair.prompt == WITH_SYSTEM


def test_rows_of_one_prompt_are_compared(tmp_path):
    """HelpSteer 1 and 2 have one answer a row, and rows of one prompt after the other."""
    marks = {"correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 2}
    rows = [
        {"prompt": Q, "response": BAD, "helpfulness": 0, **marks},
        {"prompt": Q, "response": "The Rhine.", "helpfulness": 2, **marks},
        {"prompt": Q, "response": GOOD, "helpfulness": 4, **marks},
        {"prompt": "Equal?", "response": "a", "helpfulness": 3, **marks},
        {"prompt": "Equal?", "response": "b", "helpfulness": 3, **marks},
        {"prompt": "Alone?", "response": "a", "helpfulness": 3, **marks},
        {"prompt": f"Hi.\n<extra_id_1>Assistant\nYes?\n<extra_id_1>User\n{Q}", "response": BAD,
         "helpfulness": 1, **marks},
        {"prompt": f"Hi.\n<extra_id_1>Assistant\nYes?\n<extra_id_1>User\n{Q}", "response": GOOD,
         "helpfulness": 2, **marks},
    ]  # fmt: skip
    result = read(write(tmp_path, *rows))
    first, last = result.pairs
    assert (first.prompt, first.chosen, first.rejected) == (ASKED, (bot(GOOD),), (bot(BAD),))
    assert first.scores == (4.0, 0.0) and first.metadata == marks
    assert first.source.endswith(":3")
    assert last.prompt == (user("Hi."), bot("Yes?"), user(Q))
    assert result.report.left_out == {"tie": 2, "alone": 1}
    assert "records left out, nothing to learn: alone 1, tie 2" in result.report.summary()
    assert len(read(write(tmp_path, *rows[:3]), ranked_margin=2).pairs) == 3
    terse = write(tmp_path, rows[0], {**rows[2], "verbosity": 1})
    [pair] = read(terse, columns={"score": "verbosity"}).pairs
    assert (pair.chosen, pair.scores) == ((bot(BAD),), (2.0, 1.0))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "response_1": GOOD, "response_2": BAD, "preference_strength": 0},
        {"conversation_a": [user(Q), bot(GOOD)], "conversation_b": [user(Q), bot(BAD)],
         "winner": "tie (bothbad)", "model_a": "m", "model_b": "n"},
        {"comparison": {"prompt_conversation": [user(Q)], "completion_A": [bot(BAD)],
                        "completion_B": [bot(GOOD)]}, "label": "Tie"},
        {"question": {"full_text": Q, "id": "q", "dataset": "d"}, "answer_0": GOOD,
         "answer_1": BAD, "score_0": 0.0, "score_1": 0.0},
    ],
)  # fmt: skip
def test_a_tie_is_counted_and_teaches_nothing(tmp_path, row):
    decided = {"prompt": Q, "response_1": GOOD, "response_2": BAD, "preference_strength": -1}
    path = write(tmp_path, decided, row)
    result = read(path)
    assert len(result.pairs) == 1
    assert result.report.left_out == {"tie": 1}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        # What these leave out would be a part of what the model was asked.
        ({"dataset": "MATH", "prompt": Q, "initial_reason_steps": "Step 1: think of Europe.",
          "chosen": GOOD, "rejected": BAD}, "initial_reason_steps is "),
        ({"context": "Rivers are long.", "question": Q, "chosen": GOOD, "rejected": BAD},
         "which may be a part of what the model was asked"),
        ({"prompt": Q, "passage": "Rivers are long.", "chosen": GOOD, "rejected": BAD},
         "data.columns={system: passage} or {prompt: [prompt, passage]}"),
        ({"prompt": Q, "images": [{"bytes": 3}], "chosen": GOOD, "rejected": BAD},
         "images is "),
        ({"prompt": [user(Q), user("And?")], "system": SYS, "messages": [system("Other one.")],
          "chosen": GOOD, "rejected": BAD}, "messages is "),
        ({"messages": [system("Be long."), user(Q), bot(GOOD)], "system": SYS,
          "rejected_message": bot(BAD)}, "another system prompt"),
        ({"prompt": "<|start|>user<|message|>Hi<|end|>", "chosen": GOOD, "rejected": BAD},
         "was rendered by a template with channels"),
        ({"prompt": "<|new_mark|>user Hi", "chosen": GOOD, "rejected": BAD},
         "was rendered by a chat template"),
        ({"prompt": "[{'role': 'user', 'content': 'a'}\n {'role': 'user', 'content': 'b'}]",
          "chosen": GOOD, "rejected": BAD}, "looks like messages written as text"),
        ({"chosen": "A spider has eight legs.", "rejected": "A spider has six legs.",
          "xq": "spiders"}, "data.columns={prompt: xq} to use it"),
        ({"prompt_ids": list(range(9)), "chosen_ids": [*range(9), 1], "rejected_ids": [2]},
         "chosen begins with the 9 ids of the prompt"),
    ],
)  # fmt: skip
def test_a_row_that_may_ask_more_than_is_read_is_refused_by_name(tmp_path, row, said):
    with pytest.raises(UserError) as caught:
        read(write(tmp_path, row))
    assert said in str(caught.value)
    assert str(caught.value).split("\n")[0].startswith(str(tmp_path / "rows.jsonl:1: "))

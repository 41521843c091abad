"""The names that columns have in data sets and tools, by what they hold.

Names are written in the one spelling that `columns.spelled` gives.
"""

from jaxdpo.data.config import Role

# Names of one role, the likeliest first. Where a record has several, `asked.py` decides.
NAMES_OF: dict[Role, tuple[str, ...]] = {
    "system": (
        *("system", "system_prompt", "system_message", "system_instruction", "system_instructions"),
        *("system_msg", "sys_prompt", "sysprompt", "system_text", "system_content", "sys"),
    ),
    "prompt": (
        *("prompt", "instruction", "question", "query", "input", "context", "problem", "request"),
        *("prompt_text", "question_text", "query_text", "user_prompt", "user_message"),
        *("user_query", "user_input", "user_question", "conversation", "conversations", "dialogue"),
        *("dialog", "chat", "trajectory", "prompt_messages", "prompt_conversation"),
    ),
    "history": ("history", "chat_history", "conversation_history", "dialogue_history"),
    "messages": ("messages",),
    "chosen": (
        *("chosen", "chosen_response", "chosen_messages", "chosen_answer", "chosen_completion"),
        *("chosen_text", "chosen_output", "preferred_response", "preferred_output", "accepted"),
        *("pos", "positive", "response_chosen", "answer_chosen", "preferred_answer"),
    ),
    "rejected": (
        *("rejected", "rejected_response", "rejected_messages", "rejected_answer"),
        *("rejected_completion", "rejected_text", "rejected_output", "dispreferred_response"),
        *("non_preferred_output", "non_preferred_response", "neg", "negative"),
        *("response_rejected", "answer_rejected", "dispreferred_answer", "rejected_message"),
    ),
    "completion": (
        *("completion", "response", "output", "answer", "target", "reply", "model_output"),
        *("assistant", "completion_text", "response_text", "answer_text", "solution"),
    ),
    "reasoning": (
        *("reasoning", "reasoning_content", "thinking", "thought", "cot", "complex_cot", "think"),
        "chain_of_thought",
    ),
    "text": ("text",),
    "label": ("label", "kto_tag", "desirable", "is_desirable"),
    "score": ("score", "rating", "reward", "overall_score", "helpfulness"),
    "answers": (
        *("completions", "responses", "answers", "generations", "candidates", "outputs", "output"),
        *("candidates_completions",),
    ),
    "scores": ("scores", "ratings", "rewards", "rating"),
    "ranks": ("ranks", "rankings", "ranking"),
    "preferred": (
        *("preferred", "preference", "winner", "better", "better_response", "preferred_response"),
        *("choice", "best", "label", "human_preference", "verdict"),
    ),
}
# Two more spellings that pairs of scores come in: `score_chosen`, `chosen-rating`, …
SCORE_PAIRS = (
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("chosen_reward", "rejected_reward"),
)
# Last words of names of facts about a record. An English name's last word is what the thing is:
# a `prompt_id` is an id, a `system_prompt` is a prompt.
FACT_WORDS = """
    id ids uuid guid hash sha sha1 sha256 md5 digest key index idx number num count counts
    len length lengths tokens date datetime time times timestamp tstamp created updated day
    year duration seconds ms latency cost price model models policy policies generator
    engine provider backend source sources origin dataset datasets subset corpus collection
    split fold config version revision file filename path url uri link domain website site
    subreddit license score scores rating ratings rank ranks ranking reward rewards grade
    grades confidence probability prob probs logprob logprobs logps margin margins weight
    weights quality helpfulness correctness coherence complexity verbosity harmlessness
    harmfulness honesty truthfulness toxicity safety severity difficulty level label labels
    category categories tag tags type types kind class genre lang language languages locale
    country region annotator annotators annotation annotations worker workers rater raters
    reviewer judge judges author editor owner username email team batch project comment
    comments note notes remark remarks feedback critique critiques rationale rationales
    reasoning reason reasons explanation explanations justification analysis review reviews
    judgement judgment judgements verdict statement elaboration evaluation evaluations
    preference preferences unprocessed choice winner better safer vote votes ratio metadata
    meta info extra extras misc attributes properties stats statistics settings
    params parameters flag flags status state moderation order side
    principle principles harmful toxic safe truncated finished anony redacted strength
    agreement uncertainty percentile mask masks attention usage name names group cluster
    field skill ability capability taxonomy bucket stage phase
    theme topic topics chosen rejected response responses completion completions answer
    answers output outputs generation generations reply solution reference references target
    gold edit edits edited candidate candidates prediction predictions refusal original tie
"""
# Last words of names of what a model may be asked or told, whatever text they hold.
ASKED_WORDS = """
    prompt prompts question questions query queries instruction instructions input inputs
    context contexts history system problem problems request requests message
    messages conversation conversations dialogue dialog chat trajectory background passage
    passages document documents article articles evidence premise hypothesis scenario
    persona post body description abstract paragraph story schema table hint hints
    constraint constraints guideline guidelines rules knowledge text content human facts
    steps prefix suffix preamble example examples demonstrations fewshot shots
"""
# Facts although their last word says otherwise, by the data sets that have them.
FACT_NAMES = frozenset(
    [
        # distilabel and argilla: templates as they went to each candidate model.
        *("generation_prompt", "raw_generation_responses", "skip_prompt_formatting"),
        *("gen_input_configs", "custom_instruction", "original_prompt_id", "input_token_length"),
        # HelpSteer2 and 3: what each annotator said.
        *("three_most_similar_preferences", "all_preferences_unprocessed", "individual_preference"),
        # Chatbot Arena's filters.
        *("openai_moderation", "toxic_chat_tag", "conv_metadata", "is_code", "dedup_tag"),
        # OpenAI's summaries: more about the comparison.
        *("extra", "tokens_0", "tokens_1", "quotes_0", "quotes_1"),
    ]
)
# Parts of a prompt that only a model with other inputs can be asked.
NOT_TEXT_WORDS = """
    image images video videos audio audios picture pictures pixel_values
"""
# First words of names of what a judge was asked or said.
JUDGE_WORDS = """
    judge judging judgement judgment labelling labeling labeler annotation annotator evaluation
    evaluator eval grading grader rating rater critique reviewer feedback rubric
"""

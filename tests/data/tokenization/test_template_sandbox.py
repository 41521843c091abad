"""Templates that would never end, or write without end, are stopped; others are not touched."""

import concurrent.futures

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.pair_encoding import EncodedPair
from jaxdpo.data.tokenization.template_sandbox import Template, TemplateLimit
from jaxdpo.errors import UserError

THOUSAND = "range(1000)"
BOMBS = {
    "loops": "{% for i in R %}{% for j in R %}{% for k in R %}{% endfor %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "macro": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(40) }}",
    "times": "{{ 'a' * 2000000000 }}",
    "times a variable": "{% set n = 2000000000 %}{{ n * messages[0].content }}",
    "lists": "{{ ([0] * 100000000) | length }}",
    "power": "{% set n = 10 %}{{ n ** (n ** n) }}",
    "squares": "{% set ns = namespace(n=3) %}{% for i in R %}{% set ns.n = ns.n * ns.n %}"
    "{% endfor %}",
    "doubling": "{% set ns = namespace(s='ab') %}{% for i in R %}{% set ns.s = ns.s + ns.s %}"
    "{% endfor %}",
    "doubling by ~": "{% set ns = namespace(s='ab') %}{% for i in R %}{% set ns.s = ns.s ~ ns.s %}"
    "{% endfor %}",
    "nested lists": "{% set ns = namespace(s=['ab']) %}{% for i in R %}"
    "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "nested objects": "{% set ns = namespace(s='ab') %}{% for i in R %}"
    "{% set ns.s = {'a': ns.s, 'b': ns.s} %}{% endfor %}{{ ns.s | tojson }}",
    "padding": "{{ 'a'.ljust(2000000000) }}",
    "format": "{{ '{:>2000000000}'.format(1) }}",
    "format by a number": "{{ '{:>{}}'.format(1, 2000000000) }}",
    "percent": "{{ '%2000000000d' % 1 }}",
    "percent filter": "{{ '%2000000000d' | format(1) }}",
    "replace": "{% set s = 'a' * 100000 %}{{ s.replace('a', s) }}",
    "replace filter": "{% set s = 'a' * 100000 %}{{ s | replace('a', s) }}",
    "join": "{% set s = 'a' * 100000 %}{{ s.join(R) }}{{ s | join(s) }}",
    "indent": "{{ messages | tojson(indent=2000000000) }}",
    "indent filter": "{{ messages | tojson | indent(2000000000) }}",
    "indent by text": "{% set s = 'a\n' * 10000 %}{{ s | indent(s) }}",
    "center": "{{ 'a' | center(2000000000) }}",
    "batch": "{{ [1] | batch(2000000000, 0) | list }}",
    "slice": "{{ [1] | slice(2000000000) | list }}",
    "wordwrap": "{% set s = 'a' * 100000 %}{{ s | wordwrap(1, true, s) }}",
    "urlize": "{% set s = 'http://a.b ' * 20000 %}{{ s | urlize(rel=s) }}",
    "pprint": "{% set s = ['a'] * 1000000 %}{{ s | pprint }}",
    "strftime": "{{ strftime_now('%2000000000d') }}",
    "output": "{% set s = 'a' * 1000000 %}{% for i in R %}{{ s }}{% endfor %}",
    "map": "{% for i in R %}{% for j in R %}{% for x in R | map('string') %}{% endfor %}"
    "{% endfor %}{% endfor %}",
}
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.fixture(autouse=True)
def small_budget(monkeypatch):
    """The same limit sooner: the tests take no longer than they must."""
    monkeypatch.setattr("jaxdpo.data.tokenization.template_sandbox.BUDGET", 2**24)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_that_would_not_end_is_stopped(bomb):
    template = Template(BOMBS[bomb].replace("R", THOUSAND))
    with pytest.raises((TemplateLimit, RecursionError)):
        template.render({"messages": MESSAGES})


def test_limits_hold_in_any_thread_and_for_each_rendering_anew():
    busy = Template(
        "{% for i in " + THOUSAND + " %}{% for j in range(300) %}{% endfor %}{% endfor %}"
    )
    endless = Template(BOMBS["loops"].replace("R", THOUSAND))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        fine = [pool.submit(busy.render, {}) for _ in range(6)]
        stopped = [pool.submit(endless.render, {}) for _ in range(2)]
        assert [each.result() for each in fine] == [""] * 6
        assert all(isinstance(each.exception(), TemplateLimit) for each in stopped)


def test_a_stopped_template_is_the_pairs_or_the_users_error(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    some = "{% if messages | length > 2 %}" + BOMBS["loops"].replace("R", THOUSAND) + "{% endif %}"
    chat = Chat(tokenizer, some + tokenizer.chat_template)
    user, answer = MESSAGES
    short = PreferencePair((user,), (answer,), ({**answer, "content": "No"},), "TRAIN")
    long = PreferencePair((user, answer, user), (answer,), short.rejected, "TRAIN")
    fine, bad = chat.encode_pairs([short, long])
    assert isinstance(fine, EncodedPair)
    assert isinstance(bad, BadPair)
    assert bad.code == "template-limit"
    assert "does not come to an end" in bad.reason
    assert "use another template (data.chat_template)" in bad.reason
    assert len(fine.tokens.prompt_ids)
    with pytest.raises(UserError, match=r"chat template cannot be used: .*does not come to an end"):
        Chat(tokenizer, BOMBS["loops"].replace("R", THOUSAND))


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include 'x' %}",
        "{{ lipsum(100) }}",
    ],
)
def test_there_is_no_way_out_of_the_sandbox(escape):
    with pytest.raises((jinja2.TemplateError, TypeError)):
        Template(escape).render({"messages": MESSAGES})


def test_what_chat_templates_use_is_there():
    source = (
        "{%- macro say(m) %}{{ m.role | upper }}: {{ m['content'] | trim }}{% endmacro -%}\n"
        "{% set ns = namespace(n=0, last='') %}\n"
        "{% for m in messages if m.role != 'system' %}\n"
        "    {% if loop.index0 == 1 %}{% continue %}{% endif %}\n"
        "{{ say(m) }}{% if not loop.last %}|{% endif %}{% set ns.n = ns.n + 1 %}\n"
        "{% endfor %}\n"
        "{% generation %}[{{ ns.n * 2 }}]{% endgeneration %}"
        "{{ messages | map(attribute='role') | unique | join(', ') }} "
        "{{ {'a': [1, 'é<']} | tojson }} {{ 'a-b'.replace('-', '+') }} {{ '%s!' % 'x' }} "
        "{{ '{}?'.format('y') }} {{ messages[::-1][0].content[:1] ~ 1 }} {{ 'a b'.split()[-1] }} "
        "{{ tools is none }} {{ undefined_name is defined }} {{ dict(a=1).items() | list }}"
    )
    messages = [{"role": r, "content": f" {r[0]} "} for r in ("system", "user", "user", "tool")]
    variables = {"messages": messages, "tools": None}
    expected = (
        'USER: u|TOOL: t[4]system, user, tool {"a": [1, "é<"]} a+b x! y?  1 b True False '
        "[('a', 1)]"
    )
    assert Template(source).render(variables) == expected


# Filters and functions of Jinja and transformers, on values that chat templates have.
EXPRESSIONS = [
    "'one two three four' | truncate(9)",
    "'one two three' | truncate(9, true, '…')",
    "'one two three four five' | wordwrap(9)",
    "'a\nb\n\nc' | indent",
    "'a\nb\n\nc' | indent(2, true, true)",
    "'a\nb' | indent('> ', first=true)",
    "'mid' | center(9)",
    "[1, 2, 3, 4, 5] | batch(2, 0) | list",
    "[1, 2, 3, 4, 5] | slice(2) | list",
    "messages | map(attribute='role') | batch(2) | list",
    "{'b': 1, 'a': [1, 2]} | pprint",
    "{'b': 1, 'a': 'x'} | xmlattr",
    "'see http://a.b or c.de' | urlize",
    "'see http://a.b' | urlize(5, nofollow=true, target='_blank')",
    "[7] | random",
    "messages | tojson(indent=2)",
    "messages | groupby('role') | list | length",
    "'a-b' | replace('-', '+') | upper | title | capitalize",
    "dict(a=1, b=2).items() | list",
    "dict.fromkeys(['a', 'b']) | tojson",
    "messages | selectattr('role', 'equalto', 'user') | list | length",
    "'%05.1f|%s' | format(3.14159, 'x')",
    "'x' * 3 ~ 2 ** 5",
    "[3, 1, 2] | sort(reverse=true) | join('-')",
    "[[1, 2], [3]] | sum(start=[])",
    "'a b' | wordcount, 'a&b' | e, 12345 | filesizeformat, 2.567 | round(1)",
    "joiner('|')(), cycler('a', 'b').next()",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_are_rendered_as_transformers_renders_them(expression):
    source = "{{ " + expression + " }}"
    [theirs], _ = render_jinja_template([MESSAGES], chat_template=source)
    assert Template(source).render({"messages": MESSAGES}) == theirs


def test_a_generation_block_is_a_scope_as_in_transformers():
    source = (
        "{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = 2 %}{{ m.role }}{{ x }}"
        "{{ loop.index }}{% endgeneration %}{{ x }}{% endfor %}"
    )
    [theirs], _ = render_jinja_template([MESSAGES], chat_template=source)
    assert Template(source).render({"messages": MESSAGES}) == theirs == "user211assistant221"


def test_every_code_of_strftime_is_written():
    """26 July 2024 is a Friday, the 208th day, in week 29 (Sunday first) and 30 (ISO)."""
    codes = "%a %A %d %-d %b %B %m %y %Y %H %I %p %M %S %f %j %U %V %% %F %T"
    expected = (
        "Fri Friday 26 26 Jul July 07 24 2024 00 12 AM 00 00 000000 208 29 30 % 2024-07-26 00:00:00"
    )
    assert Template("{{ strftime_now('" + codes + "') }}").render({}) == expected

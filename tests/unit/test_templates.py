"""Templates of others give what Jinja gives, and where they ask for too much one error, soon."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from latentbench_adapters.jinja_sandbox import BUDGET, MAX_TEMPLATE, ImmutableSandbox, task_templates, unusable

DOCUMENT: dict[str, Any] = {"q": "what?", "c": ["a", "b"], "long": "y" * 1_000_000, "people": 8_000_000_000, "k": 3}

USUAL = [
    "{{q}}",
    "{{ c | join(', ') }}",
    "{{ ', '.join(c) }}",
    "{% for x in c %}{{ loop.index }}/{{ loop.length }}{{ x }}{{ ',' if not loop.last }}{% endfor %}",
    "{{ 'x' * 3 }}{{ 2 * 3 }}{{ 2 ** 5 }}{{ 1.5 * 2 }}{{ 3 % 2 }}{{ c + c }}{{ 2 * c }}",
    "{{ q ~ '!' ~ 3 ~ c }}",
    "{{ 'A {} {:>5}'.format(q, k) }}{{ '{} men'.format(people) }}",
    "{{ '%s-%d of %d' % (q, 3, people) }}{{ '%s' | format(q) }}",
    "{{ q | replace('w', 'W') }}{{ q.replace('w', 'W') }}{{ (long | replace('y', 'zz')) | length }}",
    "{{ people | default(1) }}{{ nothing | default('none') }}",
    "{{ q.center(9) }}{{ q | center(9) }}{{ q | indent(2, true) }}{{ q.zfill(7) }}",
    "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}{{ m(q) }}",
    "{% set ns = namespace(a=0) %}{% for i in range(5) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}",
    "{% set t %}{{ q }}!{% endset %}{{ t }}{% filter upper %}{{ q }}{% endfilter %}",
    "{{ [q, 'b'] | map('upper') | join }}{{ range(20) | batch(7, 'x') | list }}{{ c | slice(2) | list }}",
    "{{ long[:3] }}{{ long | length }}{{ c | tojson }}{{ {'a': people} | tojson(indent=2) }}",
    "{% if c | length > 1 and 'a' in c %}{{ c[0] | upper }}{% else %}none{% endif %}\n",
    "{{ c | sort(reverse=true) | first }}{{ range(3) | sum }}{{ k | string | length }}{{ 7 // 2 }}",
]
TOO_MUCH = [
    "{{ 'x' * 10**9 }}",
    "{{ 10**9 * 'x' }}",
    "{{ [1] * 10**9 }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ 'x' | center(10**9) }}",
    "{{ 'x' | indent(10**9, true) }}",
    "{{ 'x'.zfill(10**10) }}",
    "{{ '\t'.expandtabs(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ c | tojson(indent=10**9) }}",
    "{{ 'a' | batch(10**9, 'b') | list }}",
    "{{ 'ab' | slice(10**9) | list }}",
    "{{ 'aaa'.translate({97: long}) * 1000 }}",
    "{{ range(10**30) | length }}",
    "{{ 2 ** 10**7 }}{{ (10 ** 9999) * (10 ** 99999) }}",
    "{{ range(99999) | map('center', 99999) | list | length }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ long }}{% endfor %}",
    "{% set z %}{% for i in range(99999) %}{{ long }}{% endfor %}{% endset %}",
    "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('x', 'xx') %}{% endfor %}",
    "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
]


def plain() -> SandboxedEnvironment:
    return SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


@pytest.mark.parametrize("template", USUAL)
def test_usual_templates_give_what_jinja_gives(template: str) -> None:
    assert unusable(template) is None
    expected = plain().from_string(template).render(**DOCUMENT)
    for environment in (task_templates(), ImmutableSandbox(keep_trailing_newline=True)):
        assert environment.from_string(template).render(**DOCUMENT) == expected


@pytest.mark.parametrize("template", TOO_MUCH)
def test_what_would_fill_a_machine_is_one_error(template: str) -> None:
    started = time.perf_counter()
    for environment in (task_templates(), ImmutableSandbox()):
        made = environment.from_string(template)
        with pytest.raises(TemplateError, match="asks for too much"):
            made.render(**DOCUMENT)
    assert time.perf_counter() - started < 20


def test_macros_that_call_themselves_end() -> None:
    template = "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}"
    with pytest.raises((TemplateError, RecursionError)):
        task_templates().from_string(template).render()


def test_every_rendering_has_a_budget_of_its_own() -> None:
    template = task_templates().from_string("{{ long * 50 }}")
    for _ in range(4):
        assert 3 * len(template.render(**DOCUMENT)) > BUDGET


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ q.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ (q | map('attr', '__class__') | list)[0] }}",
        "{{ q['__class__'] }}",
        "{{ lipsum(5) }}",
    ],
)
def test_python_is_out_of_reach(template: str) -> None:
    with pytest.raises(TemplateError):
        task_templates().from_string(template).render(**DOCUMENT)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ q", "not a Jinja template: .*line 1"),
        ("a\n{% for %}", "line 2"),
        ("{{ q | f }}", "No filter named 'f'"),
        ("{% for x in c recursive %}{% endfor %}", "recursive loops"),
        ("{{ " + "(" * 5000, "not a Jinja template"),
        ("x" * (MAX_TEMPLATE + 1), "at most 100,000"),
    ],
)
def test_templates_that_cannot_be_used_are_known_before_they_are(template: str, said: str) -> None:
    import re

    found = unusable(template)
    assert found
    assert re.search(said, found, re.DOTALL), found
    assert "\n" not in found


def test_no_template_is_rendered_to_be_checked() -> None:
    started = time.perf_counter()
    assert all(unusable(template) is None for template in TOO_MUCH)
    assert time.perf_counter() - started < 10


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.lists(st.text(max_size=8), max_size=4), st.integers(-5, 40))
def test_any_text_is_treated_as_jinja_does(text: str, parts: list[str], width: int) -> None:
    template = (
        "{{ t }}{{ t ~ w }}{{ p | join(t) }}{{ t.join(p) }}{{ t | replace('a', t) }}{{ t.center(w) }}{{ t * w }}"
        "{% for x in p %}{{ loop.index0 }}{{ x }}{% else %}-{% endfor %}{{ '%s|%s' % (t, w) }}{{ '{}'.format(t) }}"
    )
    given_ = {"t": text, "p": parts, "w": width}
    assert task_templates().from_string(template).render(given_) == plain().from_string(template).render(given_)


def test_filters_are_those_of_lm_eval() -> None:
    from lm_eval import utils

    assert set(utils.env.filters) <= set(task_templates().filters)

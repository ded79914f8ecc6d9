"""A key is struck out whole, in part, masked and encoded; text that does not show it stays."""

from __future__ import annotations

import html
import json
import string
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentbench.core.protocols import Reply
from latentbench_adapters.judges.secret import Secret

KEY = "sk-proj-Zq8'w+R/1&<tK=\"9vLm\\2xYb7Hc4Nd6Pf"
PRINTABLE = st.text(alphabet=[c for c in string.printable if c.isprintable()], min_size=12, max_size=80)

FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "upper case": str.upper,
    "address": lambda key: quote(key, safe=""),
    "JSON": lambda key: json.dumps(key)[1:-1],
    "Python": lambda key: repr(key)[1:-1],
    "HTML": html.escape,
    "hexadecimal": lambda key: key.encode().hex(),
    "base64": lambda key: b64encode(key.encode()).decode().rstrip("="),
    "base64 of an address": lambda key: urlsafe_b64encode(key.encode()).decode().rstrip("="),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_key_is_struck_however_it_is_written(form: str) -> None:
    written = FORMS[form](KEY)
    said = Secret(KEY).struck(f"the key <{written}> is wrong")
    # The last character of base64 also holds bits of what follows.
    assert said.removeprefix("the key <").removesuffix("> is wrong")[:5] == "[key]"
    assert len(said) <= len("the key <[key]> is wrong") + 1


@given(key=PRINTABLE, before=st.binary(max_size=9), after=st.binary(max_size=9))
def test_in_base64_no_run_of_the_key_is_left_wherever_it_stands(key: str, before: bytes, after: bytes) -> None:
    whole = b64encode(before + key.encode() + after).decode()
    said = Secret(key).struck(whole)
    first, last = -(-8 * len(before) // 6), 8 * (len(before) + len(key)) // 6
    assert "[key]" in said
    assert not any(whole[start : start + 8] in said.replace("[key]", "\n") for start in range(first, last - 7))


@given(key=PRINTABLE, text=st.text(max_size=60), data=st.data())
def test_of_any_8_characters_of_a_key_none_are_left(key: str, text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(key) - 8))
    stop = data.draw(st.integers(start + 8, len(key)))
    place = data.draw(st.integers(0, len(text)))
    said = Secret(key).struck(text[:place] + key[start:stop] + text[place:])
    left = said.replace("[key]", "\n")
    assert "[key]" in said
    assert not any(key[i : i + 8].lower() in left.lower() for i in range(len(key) - 7))


@given(st.text(max_size=200))
def test_other_text_stays(text: str) -> None:
    key = "Q7ZKXW2VJ9PB4TRM8HNC"
    assert any(key[i : i + 4] in text.upper() for i in range(17)) or Secret(key).struck(text) == text
    assert Secret(None).struck(text) == text


@pytest.mark.parametrize(
    ("said", "struck"),
    [
        ("Incorrect API key provided: sk-a-sec****************7391.", "[key]"),
        ("sk-a...7391", "[key]"),
        ("sk-…7391.", "[key]"),
        ("****7391", "[key]"),
        ("sk-a-s•••", "[key]"),
        ("sk-axxxxxxxx7391", "[key]"),
        ("key=sk-***must***7391", "[key]"),
        ("sk-...", "sk-..."),
        ("sk-...8391", "sk-...8391"),
        ("sk-***muss***7391", "sk-***muss***7391"),
        ("words...that go on... and on", "words...that go on... and on"),
        ("*" * 500, "*" * 500),
        ("", ""),
    ],
)
def test_masked_keys(said: str, struck: str) -> None:
    made = Secret("sk-a-secret-that-must-not-be-seen-7391").struck(said)
    assert made == struck if struck != "[key]" else "[key]" in made and "7391" not in made and "sk-a" not in made


def test_a_masked_key_needs_its_pieces_in_order_and_apart() -> None:
    secret = Secret("abcdefgh")
    assert secret.struck("ab..cd..gh") == "[key]"
    assert secret.struck("ab..ef..cd..gh") == "ab..ef..cd..gh"
    assert secret.struck("abcde..defgh") == "abcde..defgh"


def test_a_short_key_is_struck_whole_and_its_encodings_are_not_looked_for() -> None:
    secret = Secret("abc")
    assert secret.struck("abc, ab, YWJj, 616263") == "[key], ab, YWJj, 616263"


def test_places_in_a_struck_text_are_forgotten() -> None:
    secret = Secret("sk-a-secret-7391")
    assert secret.struck_from(Reply("[1]", ones={1: 0.5})).ones == {1: 0.5}
    struck = secret.struck_from(Reply("sk-a-secret-7391 [1]", ones={18: 0.5}))
    assert (struck.text, struck.ones) == ("[key] [1]", None)


def test_megabytes_are_looked_through_in_seconds() -> None:
    start = time.monotonic()
    Secret(KEY).struck("x" * 2_000_000 + "." * 2_000_000 + "ab*" * 500_000)
    assert time.monotonic() - start < 30

"""Names from files on a terminal."""

import pytest

from libra_det.terminal import printable, say, short, shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("red cell", "red cell"),
        ("\x1b[2Jcat", r"\x1b[2Jcat"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x7f\x9b31m", r"\x7f\x9b31m"),
        ("safe\u202egpj.exe", r"safe\u202egpj.exe"),
        ("\ud800", r"\ud800"),
        ("\u2028", r"\u2028"),
        ("日本\u3000語 é 🙂", "日本\u3000語 é 🙂"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown


def test_messages_keep_their_lines(capsys):
    say("first\nsecond", "\x1b]0;title\x07")
    assert capsys.readouterr().out == "first\nsecond \\x1b]0;title\\x07\n"


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", ["a" * 10**6, "\x1b" * 10**6, 10**4000, nested(5000), [["a" * 1000] * 1000] * 1000, {"a" * 1000: "b"}]
)
def test_values_of_any_size_are_short_in_messages(value):
    for text in (short(value), shown(value)):
        assert 10 < len(text) <= 1000 and text.isprintable()


def test_small_values_are_shown_whole():
    assert (short("a\nb"), shown("a\nb"), short(3), shown([1, None])) == (r"a\nb", r"'a\nb'", "3", "[1, None]")
    assert short("ab" * 500, longest=20) == "abababababababa...babab (1000 characters)"

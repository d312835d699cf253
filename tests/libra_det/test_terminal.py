"""Names from files on a terminal."""

import pytest

from libra_det.terminal import printable, say


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

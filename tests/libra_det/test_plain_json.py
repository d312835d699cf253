"""JSON that was written to hurt is refused with a sentence."""

import math

import pytest

from libra_det.plain_json import parse_json


def test_values_are_those_of_json():
    assert parse_json('{"a": [1, 2.5, null]}') == parse_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    assert math.isnan(parse_json("NaN")) and parse_json("1e400") == math.inf
    assert parse_json("1" + 400 * "0") == 10**400
    assert parse_json(r'"\ud800\u0000"') == "\ud800\0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (100_000 * "[", "nested too deeply"),
        (100_000 * "[" + 100_000 * "]", "nested too deeply"),
        (100_000 * '{"a":' + "1" + 100_000 * "}", "nested too deeply"),
        (100_000 * "9", "thousands of digits"),
        ("-" + 5_000 * "9", "thousands of digits"),
        ("{", "Expecting property name"),
        (b"\xff\xfe\xfd", "codec can't decode"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_no_plain_json_is_a_value_error(text, message):
    for form in (text, text.encode()) if isinstance(text, str) else (text,):
        with pytest.raises(ValueError, match=message) as error:
            parse_json(form)
        assert len(str(error.value)) < 200

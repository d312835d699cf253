"""JSON that anybody may have written: a value, or a ValueError that says why not.

Python's parser answers some texts with a RecursionError, and a whole number of many digits with advice about Python.
"""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. NaN and Infinity are read too, as Python writes them.

    Whole numbers may be larger than any float: `float` and `math.isfinite` refuse those from 2^1024 on with an
    OverflowError, so compare their size first. Text may hold halves of surrogate pairs, which no file name can.

    Args:
        text: bytes are UTF-8, or UTF-16 and UTF-32 as far as their first bytes tell.

    Raises:
        ValueError: it is no JSON, is no text, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # the limit of Python's int, which protects from hours of work
        raise ValueError("it holds a whole number of thousands of digits") from None

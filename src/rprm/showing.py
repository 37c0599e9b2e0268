"""What people are shown: no control character of a text reaches a terminal, and no key a message, a file or a log."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any

#: Control and format characters, line separators, half surrogate pairs: all that moves a cursor, turns the direction of
#: writing, or cannot be seen. What shapes words is left: a joiner after a character beyond ASCII (emoji, Persian),
#: variation selectors, the signs that enclose Arabic numbers.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    r"\ud800-\udfff\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
#: Keys that this process uses, which nothing shows, and the variables that hold those of libraries.
KEYS: set[str] = set()
_KEY_VARIABLES = ("OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
#: How a server, a URL, JSON or HTML may write a character of a key: beside itself.
_CODED = re.compile(r"[%\\&](?:[2-7][0-9A-Fa-f]|u00|x|/|#)")
#: Credentials by their place: of a URL, and of options and fields that are named so.
_USER = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_NAMED = re.compile(
    r"(\bBearer\s|\b(?:[\w-]{0,40}(?:api[_-]?key|password|secret)|(?:api|access|auth|hf|hub)[_-]?token|authorization"
    r"|(?<=[?&])(?:key|token|sig|signature|awsaccesskeyid|x-(?:amz|goog)-(?:credential|signature|security-token)))(?:=|[\"']\s?:\s?)[\"']?)(?:Bearer\s)?[^\s\"'&;]+",
    re.IGNORECASE,
)


def escaped(text: str) -> str:
    """A text fit for a terminal: what would be hidden is shown as JSON writes it, `\\u001b`, so that JSON stays JSON.
    Line ends and tabs stay."""

    def show(match: re.Match[str]) -> str:
        before = text[match.start() - 1 : match.start()]
        return match[0] if match[0] in "\u200c\u200d" and not before.isascii() else json.dumps(match[0])[1:-1]

    return text if text.isprintable() else _HIDDEN.sub(show, text)


def shown(text: str) -> str:
    """A text as it is printed: `escaped`, without keys."""
    return escaped(without_keys(text))


def one_line(text: str) -> str:
    """A text as it is printed, line ends escaped too: no name of a file looks like a line of ours."""
    return shown(text).replace("\n", "\\n")


def message(text: str) -> str:
    """The text of an error as it is printed: without keys and passwords; only indented lines are lines of their own."""
    return re.sub(r"\n(?!  )", r"\\n", shown(without_credentials(text)))


def without_credentials(text: str) -> str:
    """A text with *** for what stands where a URL, an option or a field of JSON has a user, a password or a key."""
    return _NAMED.sub(r"\1***", _USER.sub("***", text))


def without_keys(text: str, *, same_length: bool = False) -> str:
    """A text with *** in place of each key of 8 characters or more (`EMPTY` is none), in any case, percent-encoded, or
    escaped as in JSON or HTML; a mask of the `same_length` moves nothing."""
    for key in {*KEYS, *(os.environ.get(name, "").strip() for name in _KEY_VARIABLES)}:
        if len(key) >= 8 and (key.lower() in text.lower() or _CODED.search(text)):
            text = _pattern(key).sub(lambda match: "*" * len(match[0]) if same_length else "***", text)
    return text


@cache
def _pattern(key: str) -> re.Pattern[str]:
    # Bounded, so that no text takes quadratic time.
    slashes, zeros = r"\\{0,4}", "0{0,4}"
    ways = (
        rf"(?:{slashes}(?:{re.escape(one)}|\\u00{ord(one):02x}|\\x{ord(one):02x})|%(?:25){{0,3}}{ord(one):02x}"
        rf"|&#(?:x{zeros}{ord(one):x}|{zeros}{ord(one)});)"
        for one in key
    )
    return re.compile("".join(ways), re.IGNORECASE)


class _Shown:
    """A stream of text to which all is written as `shown`. A console of rich writes past it: `terminal.Terminal`."""

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def guard() -> None:
    """Let this process print nothing but what is `shown`, libraries and tracebacks too, and leave no core file, which
    would hold its keys."""
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is not None:
            with suppress(AttributeError):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _Shown(stream))
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

"""Damages to the files of a run folder: what a disk, an editor or a mistaken copy leaves."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

#: Of a file's bytes, by name; `other` is the file of that name in another run.
Change = Callable[[bytes, random.Random], bytes]


def _lines(change: Callable[[list[bytes], random.Random], None]) -> Change:
    def of(content: bytes, rng: random.Random) -> bytes:
        lines = content.splitlines(keepends=True) or [b""]
        change(lines, rng)
        return b"".join(lines)

    return of


def _swap(lines: list[bytes], rng: random.Random) -> None:
    if len(lines) > 1:
        first, second = rng.sample(range(len(lines)), 2)
        lines[first], lines[second] = lines[second], lines[first]


def _at(place: Callable[[list[bytes], int], object]) -> Change:
    def change(lines: list[bytes], rng: random.Random) -> None:
        place(lines, rng.randrange(len(lines)))

    return _lines(change)


def _replaced(pattern: bytes, new: Callable[[re.Match[bytes]], bytes]) -> Change:
    """One match of a pattern, drawn at random."""

    def change(content: bytes, rng: random.Random) -> bytes:
        found = list(re.finditer(pattern, content))
        if not found:
            return content
        match = rng.choice(found)
        return content[: match.start()] + new(match) + content[match.end() :]

    return change


def _flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return content
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def _put(new: bytes) -> Change:
    def change(content: bytes, rng: random.Random) -> bytes:
        place = rng.randint(0, len(content))
        return content[:place] + new + content[place:]

    return change


def _other_digit(match: re.Match[bytes]) -> bytes:
    return str((int(match[0]) + 1) % 10).encode()


CHANGES: dict[str, Change] = {
    "cut": lambda content, rng: content[: rng.randrange(len(content) + 1)],
    "cut to whole lines": _lines(lambda lines, rng: lines.__delitem__(slice(rng.randrange(len(lines)), None))),
    "emptied": lambda content, rng: b"",
    "a bit flipped": _flip,
    "a line removed": _at(lambda lines, place: lines.pop(place)),
    "a line repeated": _at(lambda lines, place: lines.insert(place, lines[place])),
    "two lines swapped": _lines(_swap),
    "a line at the end again": _at(lambda lines, place: lines.append(lines[place])),
    "a blank line": _at(lambda lines, place: lines.insert(place, b"\n")),
    "ends of lines of Windows": lambda content, rng: content.replace(b"\n", b"\r\n"),
    "no last newline": lambda content, rng: content.removesuffix(b"\n"),
    "a torn line at the end": lambda content, rng: content + b'{"id": "s',
    "a whole line of nonsense at the end": lambda content, rng: content + b'{"id": "s"}\n',
    "NUL bytes within": _put(bytes(64)),
    "NUL bytes at the end": lambda content, rng: content + bytes(4096),
    "a byte of Latin-1": _put(b"\xe9"),
    "a byte order mark": lambda content, rng: b"\xef\xbb\xbf" + content,
    "in UTF-16": lambda content, rng: content.decode(errors="replace").encode("utf-16"),
    "a huge number": _replaced(rb"\d+", lambda match: b"9" * 5000),
    "an infinite number": _replaced(rb"\d+", lambda match: b"1e999"),
    "NaN": _replaced(rb"\d+(\.\d+)?", lambda match: b"NaN"),
    "another digit": _replaced(rb"\d", _other_digit),
    "another digit in a number": _replaced(rb"(?<=0\.)\d", _other_digit),
    "true for false": _replaced(rb"true|false", lambda match: b"false" if match[0] == b"true" else b"true"),
    "null for a number": _replaced(rb"(?<=:)\d+(\.\d+)?", lambda match: b"null"),
    "a key renamed": _replaced(rb'"(\w+)"(?=:)', lambda match: b'"x"'),
    "a word changed": _replaced(rb"[a-z]{3,}", lambda match: match[0][::-1] + b"q"),
    "nested too deep": _at(lambda lines, place: lines.insert(place, b"[" * 99_999 + b"]" * 99_999 + b"\n")),
    "a line of megabytes": _at(lambda lines, place: lines.insert(place, b'"' + b"x" * 3_000_000 + b'"\n')),
    "no checksum": _replaced(rb',\s*"crc":\s*"\w+"', lambda match: b""),
    "no checksums at all": lambda content, rng: re.sub(rb',\s*"crc":\s*"\w+"', b"", content),
    "another checksum": _replaced(rb'(?<="crc":")\w', lambda match: b"0" if match[0] != b"0" else b"1"),
    "formatted": lambda content, rng: content.replace(b'":"', b'": "').replace(b'":{', b'": {'),
}  # fmt: skip


def _instead(make: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    def damage(path: Path, other: Path) -> None:
        path.unlink(missing_ok=True)
        make(path, other)

    return damage


def _beside(make: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    return lambda path, other: _instead(make)(path.with_name(f"{path.name}.partial"), other)


#: What stands in a file's place.
PLACES: dict[str, Callable[[Path, Path], object]] = {
    "gone": _instead(lambda path, other: None),
    "a folder": _instead(lambda path, other: path.mkdir()),
    "a folder with files": _instead(lambda path, other: (path / "x").mkdir(parents=True)),
    "a pipe": _instead(lambda path, other: os.mkfifo(path)),
    "a link to itself": _instead(lambda path, other: path.symlink_to(path.name)),
    "a link to nothing": _instead(lambda path, other: path.symlink_to("nothing.here")),
    "a link to zeros without end": _instead(lambda path, other: path.symlink_to("/dev/zero")),
    "of another run": _instead(lambda path, other: shutil.copy(other, path) if other.exists() else None),
    "half of another run": lambda path, other: path.write_bytes(_halves(path, other)),
    "a partial that is a pipe": _beside(lambda partial, other: os.mkfifo(partial)),
    "a partial that is a folder": _beside(lambda partial, other: (partial / "x").mkdir(parents=True)),
    "a partial that leads elsewhere": _beside(lambda partial, other: partial.symlink_to(other)),
}  # fmt: skip


def _halves(path: Path, other: Path) -> bytes:
    first, second = (file.read_bytes().splitlines(keepends=True) if file.exists() else [] for file in (path, other))
    return b"".join(first[: len(first) // 2] + second[len(first) // 2 :])


def damage(folder: Path, file: str, name: str, rng: random.Random, other: Path) -> bool:
    """Damage a file of a folder; whether that changes anything. `other` is a run of the same stage."""
    path = folder / file
    before = path.read_bytes() if path.is_file() else None
    if name in CHANGES:
        changed = CHANGES[name](before or b"", rng)
        if changed == before:
            return False
        path.write_bytes(changed)
    else:
        PLACES[name](path, other / file)
    return True


def as_older(folder: Path) -> None:
    """Make a run folder one of a version without checksums, in which an edit is not noticed by itself."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["crc"]
    manifest.pop("files", None)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for path in (folder / "results.jsonl", *folder.glob("journal-*.jsonl")):
        if path.exists():
            path.write_text(re.sub(r',"crc":"[0-9a-f]{8}"\}\n', "}\n", path.read_text()))

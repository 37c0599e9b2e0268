"""Rows of published tables, each reproduced by commands of this package in a run folder of its own, `ROOT/TABLE/ROW`,
with a folder for each stage. No figure is computed here: ours are read from the `measurement.json` of the stages. The
rows are in `reproduce.toml`, which says how to read them."""

from __future__ import annotations

import os
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rprm.benchmarks import Figure
from rprm.benchmarks.mathematics import AVERAGE, SETS
from rprm.errors import InputError
from rprm.files import read_json
from rprm.runs import MANIFEST, Run, versions
from rprm.showing import message
from rprm.subcommands import Subcommand, is_complete

MEASUREMENT = "measurement.json"
_SETS = [name for name in SETS if name != "gsm8k"]  #: of the paper's tables


@dataclass(frozen=True)
class PublishedTable:
    """Rows of one source that are had by the same commands."""

    about: str
    source: str
    settings: str  #: threshold and sampling
    items: int  #: of the whole benchmark
    figures: Sequence[str]
    stages: Mapping[str, str]
    policy: str = "vllm:Qwen/Qwen2.5-7B-Instruct"
    training: Sequence[str] = ()  #: commands that make the models that are not released
    differs: Sequence[str] = ()


@dataclass(frozen=True)
class PublishedRow:
    """A row: its figures by name, and what its commands take."""

    name: str  #: TABLE/ROW
    table: PublishedTable
    model: str | None
    published: Mapping[str, float]
    options: Sequence[str]
    notes: Sequence[str]

    @property
    def needs_model(self) -> bool:
        return self.model is None and any("{model}" in command for command in self.table.stages.values())


@cache
def published_rows() -> dict[str, PublishedRow]:
    """Every row by its name, in order."""
    tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    words, defaults = tables.pop("words"), tables.pop("defaults")
    found: dict[str, PublishedRow] = {}
    for group, given in ((name, {**defaults, **one}) for name, several in tables.items() for one in several):
        lines = given.pop("rows").strip().split("\n")
        columns = [[*_SETS, AVERAGE] if "*" in one else [""] for one in given["figures"]]
        pairs = zip(given["figures"], columns, strict=True)
        given["figures"] = [one.replace("*", column) for one, several in pairs for column in several]
        table = PublishedTable(**given)
        for line, below in zip(lines, [*lines[1:], ""], strict=True):
            told, _, note = line.partition("#")
            if not told:
                continue
            notes = [text.strip("# ") for text in (note, below if below.startswith("#") else "") if text]
            name, *rest = told.split()
            model, *others = (part for word in rest for part in shlex.split(words.get(word, word)))
            figures, options = others[: len(table.figures)], others[len(table.figures) :]
            published = {one: float(text) for one, text in zip(table.figures, figures, strict=True) if text != "-"}
            row = PublishedRow(f"{group}/{name}", table, None if model == "-" else model, published, options, notes)
            found[row.name] = row
    return found


@dataclass(frozen=True)
class Reproduction:
    """A row to run below the folder `root`: with a judge and a policy in place of its own, on data of one's own, the
    first `limit` items alone, with further options of the command that judges (or samples)."""

    row: PublishedRow
    root: Path
    model: str | None = None
    policy: str | None = None
    data: str | None = None
    limit: int | None = None
    options: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.root / self.row.name

    @property
    def before(self) -> Reproduction | None:
        """The row whose first stage is the first of this one."""
        first = next(iter(self.row.table.stages.values()))
        return replace(self, row=published_rows()[first[1:]], model=None, options=()) if first[0] == "@" else None

    def commands(self, threshold: Callable[[], str] = lambda: "THRESHOLD") -> Iterator[tuple[Path, list[str]]]:
        """The folder and the words of each stage's command; a `threshold` that an earlier one finds is asked for in
        its turn."""
        made = self.model is not None and any(map(os.path.isfile, (self.model, os.path.join(self.model, MANIFEST))))
        scores = self.model if made else None
        data = [] if self.data is None else ["--data", self.data]
        limit = [] if self.limit is None else ["--limit", str(self.limit)]
        options = [*self.row.options, *self.options]
        values: dict[str, list[str]] = {
            "{model}": ["--scores" if scores else "--model", self.model or self.row.model or "MODEL"],
            "{policy}": ["--policy", self.policy or self.row.table.policy],
            "{options}": options,
            "{data}": [*data, *limit],
            "{given}": [*options, *data, *limit],
            "{missing}": [one for one in self.options if one == "--allow-missing"],
            "{sets}": [",".join(_SETS)],
        }
        for stage, command in self.row.table.stages.items():
            folder = self.folder / stage
            if self.before is not None and command[0] == "@":
                folder, _ = next(self.before.commands())
            else:
                words = shlex.split(command)
                values |= {"{threshold}": [threshold()]} if "{threshold}" in words else {}
                yield folder, [part for word in words for part in values.get(word, [word])]
            values[f"{{{stage}}}"] = [scores or str(folder)]

    def run(self, on_stage: Callable[[list[str]], None] = lambda words: None) -> dict[str, Any]:
        """Run what is not complete yet; returns ours beside the published figures, which `summary.json` keeps. An
        `InputError` where the row has no model and none is given, `SettingsChanged` where the folder was begun with
        other commands, `RunError` where a stage failed: it has its command and its last words."""
        if self.row.needs_model and self.model is None:
            why = "; ".join(self.row.notes) or self.row.table.settings
            raise InputError(f"{self.row.name}: it has no model of its own, give --model SPEC ({why})")
        if self.before is not None:
            self.before.run(on_stage)
        commands = [message(shlex.join(words)) for _, words in replace(self, root=Path("OUTPUT")).commands()]
        settings = {"row": self.row.name, "commands": commands}
        with Run(self.folder, stage="reproduce", settings=settings, session={"versions": versions()}) as run:
            for folder, words in self.commands(self._best_threshold):
                is_measured = words[0] == "bench"
                if not ((folder / MEASUREMENT).exists() if is_measured else is_complete(folder)):
                    on_stage([*words, "--output", str(folder)])
                    Subcommand(folder, words, attached=True).wait()
            found = self._compared()
            run.complete(found, {})
        return found

    def _best_threshold(self) -> str:
        """The threshold with the highest F1 on GSM8K in the curve of the stage `judge`, of equal ones the nearest to
        0.5, which it is where no F1 is defined."""
        curve = read_json(self.folder / "judge" / MEASUREMENT)["curve"]
        pairs = zip(curve["f1"].get("gsm8k", []), curve["threshold"], strict=False)
        known = [(f1, -abs(threshold - 0.5), threshold) for f1, threshold in pairs if f1 is not None]
        return str(max(known, default=(0.0, 0.0, 0.5))[-1])

    def _compared(self) -> dict[str, Any]:
        *_, last = stages = list(self.row.table.stages)
        paths = {stage: self.folder / stage / MEASUREMENT for stage in stages}
        measured = {stage: read_json(path) for stage, path in paths.items() if path.exists()}
        figures = {}
        for name, published in self.row.published.items():
            stage, _, figure = name.rpartition(":")
            ours = _figure(measured[stage or last], figure)
            figures[name] = {"published": published, "ours": ours and ours.as_dict()}
        return {"row": self.row.name, "figures": figures, "differs": list(map(message, self._differs(measured)))}

    def _differs(self, measured: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """In what ours is not the published row, as far as it is known."""
        row, first = self.row, next(iter(measured.values()))
        if self.model is not None:
            yield f"{self.model} in place of {row.model or 'a model that is not released'}"
        if self.policy is not None:
            yield f"the policy {self.policy} in place of {row.table.policy}"
        sets = first["sets"].values() if "sets" in first else [{"problems": first["items"]}]
        number, data = sum(one["problems"] for one in sets), "" if self.data is None else f", from {self.data}"
        if data or number != row.table.items:
            yield f"{number:,} of {row.table.items:,} items{data}"
        if self.options:
            yield f"further options: {shlex.join(self.options)}"
        if rejected := first.get("rejected_rows"):
            yield f"{rejected:,} rows of the data could not be used"
        if missing := max(len(one.get("missing_items", ())) for one in measured.values()):
            yield f"{missing:,} items have no prediction, and count as wrong"
        yield from (*row.table.differs, *row.notes)


def _figure(measurement: Mapping[str, Any], name: str) -> Figure | None:
    """A figure of a benchmark (`math.f1`), a curve by K (`K=8`) or a method on a mathematics set (`pass@1/amc23`); None
    where it was not measured."""
    if "points" in measurement:
        found = next((point for point in measurement["points"] if name == f"K={point['k']}"), None)
    elif "rows" in measurement:
        method, _, column = name.partition("/")
        rows = (row["accuracy"].get(column) for row in measurement["rows"] if row["method"].startswith(method))
        found = next(rows, None)
    else:
        found = measurement["figures"]
        for part in name.split("."):
            found = (found or {}).get(part)
    return found and Figure(found["value"], found["low"], found["high"])

"""Rows of published tables, each reproduced by commands of this package in a run folder of its own, `ROOT/TABLE/ROW`,
with a folder for each stage. No figure is computed here: ours are read from the `measurement.json` of the stages. The
rows are in `reproduce.toml`, which says how to read them."""

from __future__ import annotations

import hashlib
import os
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rprm.benchmarks import Figure
from rprm.benchmarks.cost import Cost, cost_of
from rprm.benchmarks.mathematics import AVERAGE, SETS
from rprm.errors import InputError, RunError
from rprm.prompts.library import CRITICS, PROMPTS
from rprm.rewarders import is_classifier, load_critic, load_judge
from rprm.runs import MANIFEST, MEASUREMENT, RESULTS, Run, read_manifest, read_measurement, versions
from rprm.showing import message
from rprm.subcommands import Subcommand, is_done

#: Options of the command that judges, and the names that Python has for them.
_OPTIONS = {
    "-k": "num_analyses", "--procedure": "procedure", "--temperature": "temperature", "--top-p": "top_p",
    "--max-tokens": "max_tokens",
}  # fmt: skip
#: Settings of a run that make a difference to a figure, in words.
_WORDS = {
    "num_analyses": "K =", "threshold": "threshold", "temperature": "temperature", "top_p": "top-p",
    "max_tokens": "longest analysis in tokens:", "second_pass": "P(Yes) by a second pass:",
    "force_verdict": "a missing verdict is asked for:",
}  # fmt: skip
_SETS = [name for name in SETS if name != "gsm8k"]  #: of the paper's tables


def _content(name: str) -> str | None:
    """The hash of a file that is given, of the files in a folder, or of a run's rows; None of what is on the hub."""
    path = Path(name.partition("?")[0])
    path = path / RESULTS if (path / MANIFEST).is_file() else path
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    digests = [f"{one.relative_to(path)} {hashlib.sha256(one.read_bytes()).hexdigest()}" for one in files]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest() if digests else None


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
    def settings(self) -> str:
        """Those of its table, behind a threshold of its own."""
        own = [f"threshold {value}; of other rows: " for flag, value in _pairs(self.options) if flag == "--threshold"]
        return f"{''.join(own)}{self.table.settings}"

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
        scores, options, at = self._scores, [*self.row.options], list[str]()
        if scores is not None:
            # What is judged already is measured; of a run that stopped early at its own threshold alone.
            at = [] if self._settled else ["--threshold", f"{self._wanted['threshold']:g}"]
            options = ["--strictly-above"] * ("--strictly-above" in options) + at
        data = [] if self.data is None else ["--data", self.data]
        limit = [] if self.limit is None else ["--limit", str(self.limit)]
        options += self.options
        values: dict[str, list[str]] = {
            "{model}": ["--scores" if scores else "--model", self.model or self.row.model or "MODEL"],
            "{policy}": ["--policy", self.policy or self.row.table.policy],
            "{options}": options,
            "{data}": [*data, *limit],
            "{given}": [*options, *data, *limit],
            "{at}": at,
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

    @property
    def _scores(self) -> str | None:
        """The run folder or the file of scores that is given in place of a model."""
        paths = [] if self.model is None else [self.model, os.path.join(self.model, MANIFEST)]
        return self.model if any(map(os.path.isfile, paths)) else None

    @property
    def cost(self) -> Cost:
        """Of the run of `rprm bench` that the figures are of; its time is not of the results."""
        folder = Path(self._scores or self.folder / "judge")
        return cost_of(folder) if (folder / MANIFEST).exists() else Cost()

    @property
    def _settings(self) -> Mapping[str, Any]:
        """Those of the run of `rprm bench` that the figures are of; empty where they are of none."""
        folder = Path(self._scores or self.folder / "judge")
        return read_manifest(folder)["settings"] if (folder / MANIFEST).exists() else {}

    @property
    def _settled(self) -> bool:
        """Whether decisions of the run stand at its own threshold alone."""
        settings = self._settings
        return settings.get("stopping", "none") != "none" or bool(settings.get("first_error_exit"))

    @property
    def _wanted(self) -> dict[str, Any]:
        """How the row is judged, by the names of a run's settings; of what writes no analyses the threshold alone."""
        given, model = dict(_pairs(self.row.options)), self.row.model or ""
        options: dict[str, Any] = {name: given[flag] for flag, name in _OPTIONS.items() if flag in given}
        wanted: dict[str, Any] = {"threshold": float(given.get("--threshold", 0.5))}
        is_critic = model.startswith("critic:")
        if not (model or options) or (model and is_classifier(model) and not is_critic):
            return wanted
        made = (load_critic if is_critic else load_judge)("scripted:", **options)
        wanted |= {name: getattr(made.sampling, name) for name in ("temperature", "top_p", "max_tokens")}
        wanted |= {"num_analyses": made.rule.num_analyses, "force_verdict": bool(made.force_verdict)}
        return wanted | {"second_pass": getattr(made, "second_pass", False)}

    def run(self, on_stage: Callable[[list[str]], None] = lambda words: None) -> dict[str, Any]:
        """Run what is not complete yet; returns ours beside the published figures, which `summary.json` keeps. An
        `InputError` where the row has no model and none is given, `SettingsChanged` where the folder was begun with
        other commands, `RunError` where a stage failed: it has its command and its last words."""
        if self.row.needs_model and self.model is None:
            why = "; ".join(self.row.notes) or self.row.table.settings
            raise InputError(f"{self.row.name}: it has no model of its own, give --model SPEC: {why}")
        if self.before is not None:
            self.before.run(on_stage)
        if not any((self.folder / stage).exists() for stage in self.row.table.stages):
            # No stage came to anything: what it was started with binds nobody.
            for name in (MANIFEST, *(f"{stage}.log" for stage in self.row.table.stages)):
                (self.folder / name).unlink(missing_ok=True)
        commands = [message(shlex.join(words)) for _, words in replace(self, root=Path("OUTPUT")).commands()]
        settings: dict[str, Any] = {"row": self.row.name, "commands": commands}
        settings |= {f"content of {name}": _content(name) for name in (self.data, self._scores) if name}
        with Run(self.folder, stage="reproduce", settings=settings, session={"versions": versions()}) as run:
            for folder, words in self.commands(self._best_threshold):
                if not is_done(folder, words):
                    on_stage([*words, "--output", str(folder)])
                    Subcommand(folder, words, attached=True).wait()
            found = self._compared()
            run.complete(found, {})
        return found

    def _best_threshold(self) -> str:
        """The threshold with the highest F1 on GSM8K in the curve of the stage `judge`, of equal ones the nearest to
        0.5, which it is where no F1 is defined."""
        curve = read_measurement(self.folder / "judge")["curve"]
        pairs = zip(curve["f1"].get("gsm8k", []), curve["threshold"], strict=False)
        known = [(f1, -abs(threshold - 0.5), threshold) for f1, threshold in pairs if f1 is not None]
        return str(max(known, default=(0.0, 0.0, 0.5))[-1])

    def _compared(self) -> dict[str, Any]:
        *_, last = stages = list(self.row.table.stages)
        folders = {stage: self.folder / stage for stage in stages}
        measured = {stage: read_measurement(one) for stage, one in folders.items() if (one / MEASUREMENT).exists()}
        if last not in measured:
            raise RunError(f"{folders[last]}: the command made no figures; see {last}.log beside it")
        figures = {}
        for name, published in self.row.published.items():
            stage, _, figure = name.rpartition(":")
            ours = _figure(measured[stage or last], figure)
            figures[name] = {"published": published, "ours": ours and ours.as_dict()}
            figures[name]["position_only"] = _at(measured[stage or last].get("position_only"), figure)
        # What stands beside the figures, of the stage that judged.
        first = measured[next(stage for stage in stages if stage in measured)]
        beside = {"false_alarm_rate": _at(first.get("figures"), "false_alarm_rate")}
        beside |= {"tokens": (first.get("usage") or {}).get("tokens")}
        differs = list(map(message, self._differs(measured)))
        return {"row": self.row.name, "figures": figures, "beside": beside, "differs": differs}

    def _differs(self, measured: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """In what ours is not the published row, as far as it is known."""
        row, first, settings = self.row, next(iter(measured.values())), self._settings
        if self.model is not None:
            engine = settings.get("engine") or {}
            by = f", judged by {settings.get('rewarder')} {engine.get('kind')}:{engine.get('model')}"
            place = f" in place of {row.model}" if row.model else ""
            yield f"{self.model}{by * bool(self._scores and settings)}{place}"
        wanted = self._wanted
        judged = dict(settings) if "num_analyses" in settings else {}
        judged |= {"threshold": first.get("threshold")}
        for name, word in _WORDS.items():
            ours, theirs = judged.get(name), wanted.get(name)
            if isinstance(theirs, bool) and bool(ours) is not theirs and judged.keys() > {"threshold"}:
                yield f"{word} {'no' if theirs else 'yes'}"
            elif not isinstance(theirs, bool) and None not in (ours, theirs) and ours != theirs:
                yield f"{word} {ours} in place of {theirs}"
        if self._scores and self._settled and judged["threshold"] != wanted["threshold"]:
            yield "the run stopped early at its threshold: another needs --stopping none --all-steps"
        if settings.get("stopping") == "confident":
            yield f"early stopping at a confidence of {settings.get('confidence')}"
        if (prompt := (settings.get("prompt") or {}).get("name")) in (*PROMPTS.names(), *CRITICS.names()):
            yield f"the prompt is the built-in {prompt!r}, not the published one (-- --prompt FILE gives another)"
        numbers = any("without step numbers" in one["digest"] for one in first.get("data", ()))
        if settings and numbers is not ("--strip-step-numbers" in row.options):
            yield f"steps are judged with{'out' * numbers} their numbers"
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
        yield from (*row.table.differs, *(note for note in row.notes if not note.startswith("give ")))


def _pairs(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options with what follows each."""
    return zip_longest(options, options[1:], fillvalue="")


def _at(tree: Any, name: str) -> Any:
    """What stands in nested figures under `math.f1`; None where nothing does."""
    for part in name.split("."):
        tree = (tree or {}).get(part)
    return tree


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
        found = _at(measurement["figures"], name)
    return found and Figure(found["value"], found["low"], found["high"])

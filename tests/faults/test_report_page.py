"""`rprm report`: what a page says of runs, that it is whole and harmless whatever texts they hold, and how it fails."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commands import Done, rprm, warm

from rprm.benchmarks import PROCESSBENCH, BenchmarkItems, Figure, ProcessBenchItem
from rprm.records import Analysis, Solution, SolutionReward, StepReward
from rprm.report.charts import STYLE, Chart, Line
from rprm.report.reported import MAX_STEPS, MAX_TEXT, Example, Reported, Shown, _charts, _example

EXCERPTS = Path(__file__).parents[1] / "excerpts"
HOSTILE = "<script>alert('1')</script>]]>\"'\u202e\x1b[2J\x00{{ 7 * 7 }}&amp;"
#: How a page writes it: no direction is turned, no control character is left, and no tag begins.
HARMLESS = "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;]]&gt;&#34;&#39;\\u202e\\u001b[2J\\u0000{{ 7 * 7 }}&amp;amp;"


def analysis(p_yes: float | None, text: str = "", **fields: Any) -> Analysis:
    verdict = None if p_yes is None else p_yes >= 0.5
    known = {"text": text, "verdict": verdict, "p_yes": p_yes, "p_yes_source": None, "num_tokens": 5}
    return Analysis(**known, finish_reason="stop", **fields)


def reward(name: str, label: int | None, values: Sequence[float | None], text: str = "", k: int = 2) -> SolutionReward:
    """A solution judged at 0.5, every step by k analyses that agree; None: no verdict, and no reward."""
    steps = [
        StepReward(
            step_index=at, reward=value, vote=None, analyses=(analysis(value, text),) * k, num_requested=k,
            failure=None if value is not None else "none of these analyses reached a verdict",
        )
        for at, value in enumerate(values)
    ]  # fmt: skip
    found = next((at for at, value in enumerate(values) if value is None or value < 0.5), -1)
    unknown = found >= 0 and values[found] is None
    first_error = None if unknown else found
    return SolutionReward(id=name, num_steps=len(values), first_error=first_error, steps=tuple(steps), label=label)


def write_run(
    folder: Path, rewards: Sequence[SolutionReward], problem: str = "p", step: str = "s", **manifest: Any
) -> Path:
    """A run of `rprm judge` as a version without checksums wrote it, with its data beside it."""
    folder.mkdir(parents=True)
    rows = [{"id": one.id, "problem": problem, "steps": [step] * one.num_steps, "label": one.label} for one in rewards]
    data = folder.parent / f"{folder.name[:20]}.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows) or "\n")
    digest = f"sha256:{hashlib.sha256(data.read_bytes()).hexdigest()}"
    settings = {"input": digest, "row_format": 2, "rewarder": "r-prm", "threshold": 0.5, "stopping": "none"}
    settings |= {"engine": {"kind": "openai", "model": "m"}, "num_analyses": 2} | manifest.pop("settings", {})
    sessions = [{"input": str(data), "seconds": 2.0}]
    found = {"stage": "judge", "settings": settings, "sessions": sessions, "status": "complete"} | manifest
    (folder / "manifest.json").write_text(json.dumps(found))
    (folder / "results.jsonl").write_text("".join(f"{one.model_dump_json()}\n" for one in rewards))
    (folder / "summary.json").write_text(json.dumps({"num_solutions": len(rewards)}))
    return folder


class Page(HTMLParser):
    """A page's elements and their attributes; its tags must be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.elements, self.open = text, [], []  # type: ignore[var-annotated]
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    @property
    def words(self) -> str:
        """What a reader sees."""
        return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", self.text, flags=re.DOTALL).split())


def read(path: Path) -> Page:
    """A page, which must be whole, harmless and alone."""
    page = Page(path.read_bytes().decode("utf-8"))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed", "form", "base", "image", "use", "a2"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcdoc")]
        assert (attributes.get("href") or "#").startswith("#")
    (style,) = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
    assert not re.search(r"url\(|@import|@font-face", style)
    (policy,) = (one["content"] for _, one in page.elements if one.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    ids = [one["id"] for _, one in page.elements if "id" in one]
    assert len(ids) == len(set(ids))
    targets = [one["href"] or "" for _, one in page.elements if "href" in one]
    targets += [f"#{one['for']}" for _, one in page.elements if "for" in one]
    targets += [f"#{one['aria-labelledby']}" for _, one in page.elements if "aria-labelledby" in one]
    assert {target.removeprefix("#") for target in targets} <= set(ids)
    assert not re.search(r"\bnan\b|\binf\b", " ".join(one.get("d") or "" for _, one in page.elements).lower())
    return page


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm()
    import jinja2  # noqa: F401

    import rprm.report.page  # noqa: F401


def report(folder: Path, *arguments: object, code: int = 0, before: Callable[[], object] = lambda: None) -> Done:
    done = rprm("report", *arguments, "-o", "page.html", "--resamples", 20, folder=folder, before=before)
    assert done.code == code, done.err
    return done


def test_the_figures_of_a_benchmark_stand_beside_published_ones(tmp_path: Path) -> None:
    def publish() -> None:
        import rprm.report.page as page

        known = page.Published("R-PRM-7B-DPO", {"gsm8k.f1": 80.7, "average.f1": 70.4}, "arXiv 2503.21295, table 1")
        weak = page.Published("Weak", {"gsm8k.f1": 20.0, "average.f1": 90.0}, "nowhere")
        page.published = lambda benchmark: iter([weak, known] if benchmark == "processbench" else [])

    data = EXCERPTS / "processbench" / "gsm8k.jsonl"
    full = ("-k", 4, "--stopping", "none", "--all-steps", "--resamples", 20)
    done = rprm("bench", "processbench", "--data", data, "-m", "scripted:", *full, "-o", "run", folder=tmp_path)
    assert done.code == 0, done.err
    curve = json.loads(rprm("bench", "curve", "run", "--resamples", 20, "--json", folder=tmp_path).out)
    assert report(tmp_path, "run", "--figures", "figures", before=publish).out.startswith(
        "page.html: 20 of 20 solutions shown"
    )
    page, measured = read(tmp_path / "page.html"), json.loads((tmp_path / "run" / "measurement.json").read_text())
    for name in ("error_acc", "correct_acc", "f1"):
        figure = measured["figures"]["gsm8k"][name]
        assert f"{figure['value']:.1f} {figure['low']:.1f} to {figure['high']:.1f}" in page.words
    assert f"the index of a step, of 20 items {measured['position_only']['gsm8k']['f1']:.1f}" in page.words
    # Published, by the F1 of the one subset, which stands first; what a source does not give is a dash.
    assert page.words.index("R-PRM-7B-DPO") < page.words.index("Weak nowhere 20.0 – –")
    assert "R-PRM-7B-DPO arXiv 2503.21295, table 1 80.7 – –" in page.words
    assert f"{measured['usage']['tokens']:,}" in page.words
    pictures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert pictures == [f"figure-0{n}-{name}.svg" for n, name in
                        enumerate(("thresholds", "k", "reliability", "positions"), 1)]  # fmt: skip
    # K = 1, 2, 4: three marks, in the picture and among its numbers.
    by_k = ET.parse(tmp_path / "figures" / pictures[1]).getroot()
    assert sum(one.tag.endswith("circle") for one in by_k.iter()) == 3
    assert [point["k"] for point in curve["points"]] == [1, 2, 4]
    for point in curve["points"]:
        assert f"{point['k']} {point['value']:.1f} {point['low']:.1f} to {point['high']:.1f}" in page.words


def test_many_published_rows_are_folded(tmp_path: Path) -> None:
    """Every row of the tables stands on the page, the highest beside the run; two runs of one name by their folders."""
    data, names = EXCERPTS / "processbench" / "gsm8k.jsonl", ("a/judge", "b/judge")
    for name in names:
        full = ("-k", 1, "--stopping", "none", "--all-steps", "--resamples", 10, "--limit", 9, "-o", name)
        assert rprm("bench", "processbench", "--data", data, "-m", "scripted:", *full, folder=tmp_path).code == 0
    report(tmp_path, *names)
    words = read(tmp_path / "page.html").words
    beside, folded = words.split("published rows Table", 1)
    assert "1: a/judge" in beside
    assert "2: b/judge" in beside
    assert "o1-mini critics of whole solutions, majority of 8" in beside
    assert "qwen2-7b critics of whole solutions, majority of 8" not in beside
    assert "qwen2-7b critics of whole solutions, majority of 8" in folded
    assert "critics of whole solutions, majority of 8: arXiv 2412.06559" in folded


def test_what_became_of_a_solution() -> None:
    """Labelled 1: found there; none found; found at 0. Without an error: none found; found. Not known; no label."""
    cases = [
        (1, [0.9, 0.1], "right"), (1, [0.9, 0.9], "missed"), (1, [0.1, 0.1], "early"), (-1, [0.9, 0.9], "right"),
        (-1, [0.9, 0.1], "alarm"), (1, [None, 0.1], "open"), (-1, [0.9, None], "open"),
        (None, [0.9, 0.1], "unlabelled"),
    ]  # fmt: skip
    for label, values, kind in cases:
        item = ProcessBenchItem("math", Solution(id="a", problem="p", steps=("s", "t"), label=label), label or 0)
        assert _example(reward("a", label, values), item).kind == kind, (label, values)


def test_reliability_and_positions_by_hand() -> None:
    """Steps known: a's 0 and 1 (1 is its error, what follows is not known), b's all. Bin 0.9: 0.9 and 0.95, right; bin
    0.2: 0.25, wrong, and 0.25, right. Calibration error: (|2 * 92.5 - 200| + |2 * 25 - 100|) / 4 = 16.25."""
    solutions = {"a": 1, "b": -1}
    items = [
        ProcessBenchItem("math", Solution(id=name, problem="p", steps=("s",) * 3, label=label), label)
        for name, label in solutions.items()
    ]
    rewards = [reward("a", 1, [0.9, 0.25, 0.7]), reward("b", -1, [0.95, 0.25, None]), reward("other", 0, [0.5])]
    reliability, positions = _charts("run", PROCESSBENCH, BenchmarkItems(tuple(items)), rewards, "")
    low, high = reliability.lines[0].points
    assert (low[0], low[1].value, high[0], high[1].value) == (25.0, 50.0, pytest.approx(92.5), 100.0)
    # Wilson's interval of 2 of 2, z = 1.96: from n / (n + z^2) = 2 / 5.8416 to 1; of 1 of 2 symmetric around a half.
    assert (high[1].low, high[1].high) == (pytest.approx(100 * 2 / 5.8416), pytest.approx(100.0))
    assert (low[1].low or 0) + (low[1].high or 0) == pytest.approx(100.0)
    assert "Expected calibration error: 16.2 points" in reliability.note
    assert reliability.shares == [(90.0, 100.0, 0.5), (20.0, 30.0, 0.5)]
    right, wrong, share = ({at: figure.value for at, figure in line.points} for line in positions.lines)
    assert (right, wrong, share) == ({1: pytest.approx(92.5), 2: 25.0}, {1: None, 2: 25.0}, {1: 100.0, 2: 50.0})


def test_a_gap_is_no_number_and_names_are_text() -> None:
    name = f"{HOSTILE}\uffff"
    lines = [Line(name, [(1, Figure(None)), (2, Figure(-100.0, -100.0, 0.0)), (4, Figure(7.0))]), Line("b", [])]
    chart = Chart("k", name, name, lines, [1, 2, 4], is_logarithmic=True)
    for picture in (chart.svg(), chart.svg(STYLE), Chart("empty", "", "", [], [1.0]).svg()):
        root = ET.fromstring(picture)
        assert not re.search(r"nan|None|inf", " ".join(one.get("d", "") for one in root.iter()))
    paths = [one for one in ET.fromstring(chart.svg()).iter() if one.get("class") == "line"]
    assert paths[0].get("d", "").startswith("M")
    assert paths[0].get("d", "").count("L") == 1
    assert next(line.cells for line in chart.table().lines if line) == [Figure(None), Figure(None)]


def test_hostile_texts_are_shown_and_harmless(tmp_path: Path) -> None:
    """In ids, problems, steps, analyses, reasons, settings and the run's own name; a text of a million is cut."""
    long = "<b>" * 333_334
    rewards = [reward(HOSTILE, -1, [0.9, 0.1], HOSTILE), reward("'\"><b>", 1, [0.9, 0.1, None], long)]
    name = HOSTILE.replace("/", "").replace("\x00", "")
    run = write_run(tmp_path / name, rewards, HOSTILE, HOSTILE, settings={HOSTILE: HOSTILE})
    done = report(tmp_path, run, "--figures", "figures")
    assert "\u202e" not in done.out
    page = read(tmp_path / "page.html")
    # The first solution: id, problem, two steps, two analyses each of which; the second: problem and three steps.
    assert page.text.count(HARMLESS) >= 1 + 1 + 2 + 4 + 1 + 3
    assert not {"\u202e", "\x1b", "\x00"} & set(page.text)
    assert len(page.text) < 300_000
    assert f"({len(long) - MAX_TEXT:,} more characters)" in page.text
    for path in (tmp_path / "figures").iterdir():
        assert {one.tag.rpartition("}")[2] for one in ET.parse(path).iter()} <= {
            "svg", "title", "style", "rect", "path", "text", "g", "circle",
        }  # fmt: skip


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    """Two of its three solutions are judged, one of them without a reward: not judged, never right."""
    run = write_run(tmp_path / "run", [reward("a", 0, [0.1]), reward("b", -1, [None]), reward("c", -1, [0.9])],
                    status="running", sessions=[{"input": str(tmp_path / "run.jsonl")}])  # fmt: skip
    rows = (run / "results.jsonl").read_text().splitlines()
    (run / "results.jsonl").write_text("\n".join([*rows[:2], rows[2][:9]]))
    report(tmp_path, run)
    words = read(tmp_path / "page.html").words
    assert "not finished: all figures are of the rows that it has so far" in words
    assert "not judged 1 right 1" in words
    assert "r-prm openai:m, K = 2; 2 solutions" in words
    # Accuracy on wrong solutions 1 of 1; on right ones 0 of 1, as b is not judged.
    assert re.search(r"100\.0 100\.0 to 100\.0 0\.0 0\.0 to 0\.0 0\.0", words)
    assert "seconds at least 0.0" in words


def test_runs_without_anything_to_measure(tmp_path: Path) -> None:
    write_run(tmp_path / "empty", [], status="running")
    write_run(tmp_path / "unlabelled", [reward("a", None, [0.9, 0.1])])
    report(tmp_path, "empty", "unlabelled")
    words = read(tmp_path / "page.html").words
    assert "1: empty has no figures: no solution is judged yet" in words
    assert "2: unlabelled has no figures: no solution that is judged has a label" in words
    assert "no label 1" in words


@pytest.mark.parametrize("damage", ["row", "manifest", "missing"])
def test_a_damaged_run_is_one_line(damage: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [reward("a", 0, [0.1])])
    if damage == "row":
        (run / "results.jsonl").write_text('{"id": "a", "num_steps": "many"}\n')
    else:
        (run / "manifest.json").write_text("{}" if damage == "manifest" else "")
    if damage == "missing":
        (run / "manifest.json").unlink()
    done = report(tmp_path, run, code=1)
    assert len(done.err.strip().splitlines()) == 1
    assert "Traceback" not in done.err
    assert "run" in done.err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("engine", 3), ("engine", "m"), ("engine", ["m"]), ("max_tokens", "9"), ("row_format", {}), ("threshold", "half"),
     ("threshold", None), ("benchmark", 3), ("limit", "all")],
)  # fmt: skip
def test_a_setting_of_another_type_is_a_damaged_run(name: str, value: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [reward("a", 0, [0.1])], settings={name: value})
    done = report(tmp_path, run, code=1)
    (line,) = done.err.splitlines()
    assert line.startswith(f"rprm: {run / 'manifest.json'} is damaged (its setting {name!r} is {value!r})")


@pytest.mark.parametrize("session", [{"seconds": "2"}, {"seconds": [2]}, {}])
def test_sessions_that_do_not_tell_their_seconds(session: dict[str, Any], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [reward("a", 0, [0.1])])
    manifest = json.loads((run / "manifest.json").read_bytes())
    manifest["sessions"] += [{"input": manifest["sessions"][0]["input"]} | session]
    (run / "manifest.json").write_text(json.dumps(manifest))
    report(tmp_path, run)
    assert "at least 2.0" in (tmp_path / "page.html").read_text()


def test_data_are_known_by_their_hash(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [reward("a", 0, [0.1])])
    moved, other = (tmp_path / "run.jsonl").rename(tmp_path / "moved.jsonl"), tmp_path / "other.jsonl"
    other.write_text('{"id": "a", "problem": "of others", "steps": ["s"], "label": 0}\n')
    assert "--data" in report(tmp_path, run, code=1).err
    assert "its hash differs" in report(tmp_path, run, "--data", other, code=1).err
    report(tmp_path, run, "--data", other, "--data", moved)
    # Nothing asks the hub for a file that is gone.
    assert "data/run.jsonl: no such file" in report(tmp_path, run, "--data", "data/run.jsonl", code=1).err
    assert "of others" not in read(tmp_path / "page.html").words


def test_only_so_much_is_shown(tmp_path: Path) -> None:
    """50 right and 30 missed solutions of 3 steps by 10 analyses: 20 of each kind, 4 analyses a step."""
    rewards = [reward(f"r{n}", -1, [0.9] * 3, f"text {n} ", k=10) for n in range(50)]
    rewards += [reward(f"m{n}", 1, [0.9] * 3, f"text {n} ", k=10) for n in range(30)]
    run = write_run(tmp_path / "run", rewards)
    assert "40 of 80 solutions shown" in report(tmp_path, run).out
    page = read(tmp_path / "page.html")
    assert "missed 30 (20 shown) right 50 (20 shown)" in page.words
    assert sum("solution" in (one.get("class") or "").split() for _, one in page.elements) == 40
    assert page.words.count("4 of 10 analyses") == 40 * 3
    assert not [one for tag, one in page.elements if tag == "details" and "open" in one]
    report(tmp_path, run, "--solutions", 0, "--analyses", 0)
    assert "Solutions of run: 0 of 80 shown" in read(tmp_path / "page.html").words


def test_a_page_is_bounded_whatever_the_texts(tmp_path: Path) -> None:
    """Of 100 steps, the 90th of which is wrong, the first 60, that one and the last. Three examples of 62 steps of
    4,000 characters and a problem of 10 fit into 800,000 characters, a fourth does not."""
    run = Reported("run", write_run(tmp_path / "run", []), "Solutions", Shown(9, 1, 800_000))
    example = Example("right", "a", "", "p" * 10, ["s" * 10_000] * 100, {}, {89: "first error"})
    assert example.indices == [*range(MAX_STEPS), 89, 99]
    for _ in range(5):
        run.add(example)
    assert (len(run.examples), run.kinds) == (3, [("right", "right", 5, 3)])


def test_a_critic_has_no_threshold(tmp_path: Path) -> None:
    data = EXCERPTS / "processbench" / "math.jsonl"
    done = rprm(
        "bench", "processbench", "--data", data, "-m", "critic:scripted:", "--limit", 4, "-o", "critic", folder=tmp_path
    )
    assert done.code == 0, done.err
    done = rprm("bench", "prmbench", "--data", EXCERPTS / "prmbench" / "sample.jsonl", "-m", "scripted:", "--limit", 1,
                "--strip-step-numbers", "--strictly-above", "-k", 2, "-o", "prm", folder=tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    report(tmp_path, "critic", "prm")
    words = read(tmp_path / "page.html").words
    assert "The curve by threshold is not known: a critic names first errors itself" in words
    assert "analysis 1: first error: step" in words or "analysis 1: no error" in words
    # Two benchmarks are two parts; what the flags of the second one's command did holds on the page.
    assert "ProcessBench 1: critic PRMBench 2: prm" in words
    measured = json.loads((tmp_path / "prm" / "measurement.json").read_text())
    assert measured["strictly_above"]
    assert f" {measured['figures']['overall']['value']:.1f} " in words
    assert "The curve by threshold is not known: early stopping settled" in words


def test_searches(tmp_path: Path) -> None:
    """Of two problems' candidates, right and wrong, and right and right, three of four are right: pass@1 is 75."""
    right, wrong = "2 + 2.\n\nIt is \\boxed{4}.", "It is \\boxed{5}."
    rows = {
        "problems": [{"id": name, "problem": "2 + 2?", "answer": "4"} for name in "ab"],
        "candidates": [{"id": "a", "solutions": [right, wrong]}, {"id": "b", "solutions": [right, f"{right}!"]}],
    }
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in some))
    of = ("--problems", "problems.jsonl", "-m", "scripted:", "-k", 2)
    for name, more in (("best-of-n", ("--candidates", "candidates.jsonl")), ("guided", ("-p", "scripted:"))):
        done = rprm("search", name, *of, *more, "-o", name, folder=tmp_path)
        assert done.code == 0, done.err
    report(tmp_path, "best-of-n", "guided")
    words = read(tmp_path / "page.html").words
    assert re.search(r"pass@1 \S*candidates.jsonl 75\.0 ", words)
    assert "Solutions of 1: best-of-n: 4 of 4 shown all not solved 1 solved 3" in words
    assert re.search(r"not solved a candidate 2 of 2(, chosen)?, reward .*?; gold answer 4 2 \+ 2\?", words)
    # Guided search by an engine that writes no mathematics: no answer, which is a wrong one.
    assert "Solutions of 2: guided: 2 of 2 shown all not solved 2" in words
    assert re.search(r"guided search \(\d+ steps a round, last\) scripted:pseudo-random 0\.0 0\.0 to 0\.0", words)


@pytest.mark.parametrize(("arguments", "word"), [
    (["run", "run"], "twice"), (["run", "-o", "run/results.jsonl"], ".html"), (["other"], "evolve"),
])  # fmt: skip
def test_what_is_refused(arguments: list[str], word: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", [reward("a", 0, [0.1])])
    write_run(tmp_path / "other", [], stage="evolve")
    before = (tmp_path / "run" / "results.jsonl").read_bytes()
    done = rprm("report", *arguments, folder=tmp_path)
    assert (done.code, word in done.err) == (1, True), done.err
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == before


def test_without_jinja2(tmp_path: Path) -> None:
    def hide() -> None:
        import sys

        sys.modules["jinja2"] = None  # type: ignore[assignment]

    run = write_run(tmp_path / "run", [reward("a", 0, [0.1])])
    assert "pip install" in report(tmp_path, run, code=1, before=hide).err

"""Rows of published tables: what they say, the commands that make them, and ours beside them."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from rprm.benchmarks.mathematics import SETS
from rprm.cli.app import app
from rprm.errors import CorruptRun, InputError, RunError, SettingsChanged
from rprm.files import read_json
from rprm.models import MODELS
from rprm.reproduce import MEASUREMENT, PublishedRow, Reproduction, published_rows
from tests.conftest import EXCERPTS
from tests.warm import warm_cli

ROWS = published_rows()
#: The first row of each table.
FIRST = list({id(row.table): row.name for row in reversed(ROWS.values())}.values())[::-1]
LONG = [pytest.mark.slow, pytest.mark.long]
SETS_OF_SIX = [name for name in SETS if name != "gsm8k"]


@pytest.fixture(autouse=True)
def stages(monkeypatch: pytest.MonkeyPatch) -> None:
    warm_cli().take_stages(monkeypatch)


@pytest.fixture(scope="module")
def mathematics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three problems of each of the six sets."""
    folder = tmp_path_factory.mktemp("sets")
    for name in SETS_OF_SIX:
        rows = [{"id": n, "problem": f"{name}: what is {n} + 5?", "answer": str(n + 5)} for n in range(3)]
        rows = [row | {"final_answer": [row["answer"]]} for row in rows] if name == "olympiadbench" else rows
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def reproduction(name: str, root: Path, mathematics: Path, **more: Any) -> Reproduction:
    """A row on stand-ins: the scripted engine on two items of each subset, class or set."""
    group = name.partition("/")[0]
    data = {"processbench": EXCERPTS / "processbench", "prmbench": EXCERPTS / "prmbench" / "sample.jsonl"}
    is_critic = str(ROWS[name].model).startswith("critic:")
    given = {
        "model": "critic:scripted:" if is_critic else "scripted:", "policy": "scripted:?noise=0.5",
        "data": str(data.get(group, mathematics)), "limit": 2,
    }  # fmt: skip
    return Reproduction(ROWS[name], root, **given | more)


# What the rows say


def _groups(row: PublishedRow) -> Mapping[str, list[str]]:
    """Figures that are means of others."""
    if row.name.startswith("prmbench/"):
        names = row.table.figures
        return {names[2]: list(names[:2]), names[7]: list(names[3:7]), names[11]: list(names[8:11])}
    if "average.f1" in row.table.figures:
        return {"average.f1": [name for name in row.table.figures if name != "average.f1"]}
    methods = {name.partition("/")[0] for name in row.table.figures if name.endswith("/average")}
    return {f"{method}/average": [f"{method}/{one}" for one in SETS_OF_SIX] for method in methods}


def test_published_averages_are_those_of_their_figures() -> None:
    """A mistyped figure would not average to what is printed, but for rounding: 0.05 of the figures, 0.05 of their
    average. One row of the paper's table 4 does not: (13.3 + 57.5 + 80 + 44.5 + 43.5 + 43) / 6 = 46.97, not 47.7."""
    checked, off = 0, {}
    for row in ROWS.values():
        for name, parts in _groups(row).items():
            if {name, *parts} <= row.published.keys():
                checked += 1
                difference = mean(row.published[part] for part in parts) - row.published[name]
                if abs(difference) > 0.1 + 1e-9:
                    off[row.name, name] = round(difference, 2)
    assert checked > 80
    assert off == {("best-of-8/qwen-prm800k-7b", "Best-of-8/average"): -0.73}


def test_rows_name_their_source_and_known_models() -> None:
    assert len(ROWS) > 90
    assert {name.partition("/")[0] for name in ROWS} == {
        "processbench", "prmbench", "sampling", "best-of-8", "guided", "aime24",
    }  # fmt: skip
    for row in ROWS.values():
        assert row.table.source
        assert row.table.settings
        assert row.published
    # Of a released model with options of its own for a benchmark, these.
    for model in MODELS:
        if (options := model.options.get("processbench")) is not None:
            assert ROWS[f"processbench/{model.alias}"].model == f"{model.alias}?{options}"
    assert ROWS["processbench/r-prm-7b-dpo"].published["average.f1"] == 70.4
    assert ROWS["prmbench/r-prm-7b-dpo"].published["overall"] == 66.8
    assert [*ROWS["processbench/r-prm-7b-dpo-by-k"].published.values()][:6] == [61.3, 62.8, 67.6, 69.7, 70.8, 71.7]
    assert ROWS["guided/r-prm-7b-dpo"].published["guided/average"] == 49.4


# Their commands


@pytest.mark.parametrize("name", ROWS)
def test_every_command_is_one_that_can_be_typed(name: str, tmp_path: Path) -> None:
    chosen = Reproduction(ROWS[name], tmp_path, data="DATA", limit=2, options=("--seed", "1"))
    commands = [words for _, words in chosen.commands(lambda: "0.5")]
    for words in commands:
        command: Any = typer.main.get_command(app)
        context = typer.Context(command)
        while hasattr(command, "list_commands"):
            word, *words = words
            assert word in command.list_commands(context), word
            command = command.get_command(context, word)
        # Parsed, with its ranges and choices, not run.
        command.make_context(name, [*words, "--output", "OUT"])
    assert all("{" not in word for words in commands for word in words)
    for line in ROWS[name].table.training:
        assert shlex.split(line)[0] == "rprm"


def test_a_dry_run_prints_the_commands_and_runs_none(tmp_path: Path) -> None:
    done = warm_cli().run(
        [sys.executable, "-m", "rprm", "reproduce", "best-of-8/qwen-prm-7b", "--dry-run", "-o", str(tmp_path / "out")]
    )
    assert done.returncode == 0, done.stderr
    sampled, judged = f"{tmp_path}/out/sampling/qwen2.5-7b", f"{tmp_path}/out/best-of-8/qwen-prm-7b"
    sets = "aime24,amc23,math500,olympiadbench,college_math,minerva_math"
    assert done.stdout.splitlines() == [
        f"rprm search sample --policy vllm:Qwen/Qwen2.5-7B-Instruct --set {sets} -n 8 --policy-temperature 1.0 "
        f"--output {sampled}/candidates",
        f"rprm bench mathematics {sampled}/candidates --output {sampled}/measured",
        f"rprm search best-of-n --candidates {sampled}/candidates --model qwen-prm-7b --output {judged}/chosen",
        f"rprm bench mathematics {judged}/chosen --output {judged}/measured",
        "# add --data FOLDER with the six sets: some are on no hub (docs/reproduce.md)",
    ]
    assert not (tmp_path / "out").exists()


def test_a_row_that_needs_training_prints_how(tmp_path: Path) -> None:
    name = "processbench/r-prm-7b-sft-12.8k"
    lines = CliRunner().invoke(app, ["reproduce", name, "--dry-run"]).stdout.splitlines()
    *lines, what = lines
    assert [line.split()[1:3] for line in lines] == [["data", "import"], ["train", "sft"], ["bench", "processbench"]]
    assert "--model MODEL" in lines[-1]
    assert what == "# MODEL: not released; which 12.8K: not stated"
    with pytest.raises(InputError, match="give --model SPEC"):
        Reproduction(ROWS[name], tmp_path).run()
    # With a model it is the measurement alone.
    lines = CliRunner().invoke(app, ["reproduce", name, "--dry-run", "--model", "vllm:mine"]).stdout.splitlines()
    assert [line.split()[1:5] for line in lines] == [["bench", "processbench", "--model", "vllm:mine"]]


def test_no_password_is_printed_or_kept(tmp_path: Path) -> None:
    spec = "critic:openai:m@http://me:hidden@localhost:9/v1"
    arguments = ["reproduce", "processbench/gpt-4o", "--model", spec, "--dry-run"]
    assert "hidden" not in CliRunner().invoke(app, arguments).stdout
    data = str(EXCERPTS / "processbench")
    with pytest.raises(RunError) as caught:
        Reproduction(ROWS["processbench/gpt-4o"], tmp_path, model=spec, data=data, limit=1).run()
    kept = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    assert "hidden" not in "".join([str(caught.value), *kept])


def test_mistakes() -> None:
    done = warm_cli().run([sys.executable, "-m", "rprm", "reproduce", "processbench/r-prm"])
    assert done.returncode == 1
    assert "rprm reproduce list" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_list_names_every_row() -> None:
    told = json.loads(CliRunner().invoke(app, ["reproduce", "list", "--json"]).stdout)
    assert [row["name"] for row in told] == list(ROWS)
    shown = CliRunner().invoke(app, ["reproduce", "list"], env={"COLUMNS": "200"}).stdout
    assert all(name in shown for name in ROWS)
    assert "47.9 29.5 24.8 23.8 31.5" in shown
    of_one = json.loads(CliRunner().invoke(app, ["reproduce", "prmbench", "--json"]).stdout)
    assert [row["name"] for row in of_one] == [name for name in ROWS if name.startswith("prmbench/")]


# On stand-ins


@pytest.mark.parametrize(
    "name",
    # The first of each table; all others on demand.
    [
        pytest.param(name, marks=() if name == "sampling/qwen2.5-7b" else [pytest.mark.slow] if name in FIRST else LONG)
        for name in ROWS
    ],
)
def test_a_row_on_stand_ins(name: str, tmp_path: Path, mathematics: Path) -> None:
    chosen, ran = reproduction(name, tmp_path, mathematics), []
    found = chosen.run(ran.append)
    # Every stage was a command, in a folder of its own.
    assert [words[:-2] for words in ran][-1] == list(chosen.commands(chosen._best_threshold))[-1][1]
    assert found["figures"].keys() == chosen.row.published.keys()
    for figure, both in found["figures"].items():
        assert both["published"] == chosen.row.published[figure]
        assert both["ours"] is not None, figure
    assert any(text.startswith("the policy scripted") or "scripted:" in text for text in found["differs"])
    assert any(" of " in text and " items, from " in text for text in found["differs"])
    # Complete: nothing runs again, and the same comes out.
    ran.clear()
    assert chosen.run(ran.append) == found
    assert not ran
    assert read_json(chosen.folder / "summary.json") == found


def json_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def scored(tmp_path: Path) -> dict[str, str]:
    """Scores of five solutions in GSM8K, which stand below 0.3 at the first error of `wrong`, and of two in MATH."""
    labels = {"gsm8k-0": 1, "gsm8k-1": 1, "gsm8k-2": -1, "gsm8k-3": -1, "gsm8k-4": -1, "math-0": 0, "math-1": -1}
    p_yes = {
        "gsm8k-0": [0.9, 0.2], "gsm8k-1": [0.9, 0.4], "gsm8k-2": [0.9, 0.35], "gsm8k-3": [0.9, 0.6],
        "gsm8k-4": [0.9, 0.9], "math-0": [0.1, 0.9], "math-1": [0.9, 0.45],
    }  # fmt: skip
    items = [{"id": id, "problem": "P?", "steps": ["a", "b"], "label": label} for id, label in labels.items()]
    scores = [{"id": id, "p_yes": values} for id, values in p_yes.items()]
    data, model = tmp_path / "items.jsonl", tmp_path / "scores.jsonl"
    return {"data": json_lines(data, items), "model": json_lines(model, scores)}


def test_ours_beside_the_published(scored: dict[str, str], tmp_path: Path) -> None:
    """At 0.5 both errors in GSM8K are found, and two of three right solutions are: F1 = 2 * 1 * 2/3 / (5/3) = 80. In
    MATH the one error, and not the one right solution (0.45): F1 = 0. The average of the two is 40."""
    found = Reproduction(ROWS["processbench/math-shepherd-7b"], tmp_path / "out", **scored).run()
    ours = {name: both["ours"] and both["ours"]["value"] for name, both in found["figures"].items()}
    expected = {"gsm8k.f1": 80.0, "math.f1": 0.0, "olympiadbench.f1": None, "omnimath.f1": None, "average.f1": 40.0}
    assert ours == pytest.approx(expected)
    assert f"7 of 3,400 items, from {scored['data']}" in found["differs"]
    shown = warm_cli().run(
        [sys.executable, "-m", "rprm", "reproduce", "processbench/math-shepherd-7b", "-o", str(tmp_path / "out"),
         "--model", scored["model"], "--data", scored["data"]], env={"COLUMNS": "120", "PATH": ""},
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    lines = {line.split()[0]: line for line in shown.stdout.splitlines() if ".f1" in line}
    # 80 - 47.9 = 32.1.
    assert "47.9" in lines["gsm8k.f1"]
    assert "80.0" in lines["gsm8k.f1"]
    assert "+32.1" in lines["gsm8k.f1"]
    assert "not measured" in lines["omnimath.f1"]


def test_a_run_in_place_of_a_model(tmp_path: Path, mathematics: Path) -> None:
    """It is measured, and nothing is judged again."""
    data = str(EXCERPTS / "processbench" / "gsm8k.jsonl")
    first = reproduction("processbench/r-prm-7b-dpo", tmp_path, mathematics, data=data, limit=6)
    judged = str(first.folder / "judge")
    ours = {name: both["ours"] for name, both in first.run()["figures"].items()}
    again = Reproduction(ROWS["processbench/qwen-prm-7b"], tmp_path, model=judged, data=data, limit=6)
    assert next(again.commands())[1][2:4] == ["--scores", judged]
    assert {name: both["ours"] for name, both in again.run()["figures"].items()} == ours


def test_what_a_run_differs_in_is_named(tmp_path: Path) -> None:
    """K = 2 of 10, another threshold, no second pass. One that drew everything is measured at the row's threshold, one
    that stopped early at its own, 0.3. What says how to judge is not sent with a run that is there."""
    data = str(EXCERPTS / "processbench" / "gsm8k.jsonl")
    row, told = ROWS["processbench/r-prm-7b-dpo"], {}
    for name, drawn in (("full", ["--stopping", "none", "--all-steps"]), ("early", [])):
        judged = str(tmp_path / name)
        command = [
            "bench",
            "processbench",
            "--model",
            "scripted:?noise=0.3",
            "--data",
            data,
            "--limit",
            "20",
            "-k",
            "2",
        ]
        assert CliRunner().invoke(app, [*command, "--threshold", "0.3", *drawn, "-o", judged]).exit_code == 0
        chosen = Reproduction(row, tmp_path / "out" / name, model=judged, data=data, limit=20)
        (words,) = [words for _, words in chosen.commands()]
        assert "-k" not in words
        assert "--procedure" not in words
        told[name] = chosen.run()
        assert f"{judged}, judged by r-prm scripted:pseudo-random in place of r-prm-7b" in told[name]["differs"]
        assert {"K = 2 in place of 10", "P(Yes) by a second pass: no", "a missing verdict is asked for: no"} <= {
            *told[name]["differs"]
        }
        assert any("built-in 'critique'" in text for text in told[name]["differs"])
        threshold = read_json(chosen.folder / "judge" / MEASUREMENT)["threshold"]
        assert threshold == (0.5 if name == "full" else 0.3)
    assert not any("threshold" in text for text in told["full"]["differs"])
    assert "threshold 0.3 in place of 0.5" in told["early"]["differs"]
    assert any("stopped early" in text for text in told["early"]["differs"])
    # Beside the figures: tokens, of two analyses a step, and the share of right solutions called wrong.
    assert told["full"]["beside"]["tokens"] > 0
    assert told["full"]["beside"]["false_alarm_rate"]["value"] is not None


def test_a_row_as_published_differs_in_nothing_that_is_not_said(tmp_path: Path) -> None:
    """The settings of a row are those that its options make: a run by them differs in engine, prompt and items."""
    data = str(EXCERPTS / "processbench" / "gsm8k.jsonl")
    chosen = Reproduction(ROWS["processbench/r-prm-7b-dpo"], tmp_path, model="scripted:", data=data, limit=1)
    first, *rest = chosen.run()["differs"]
    assert first == "scripted: in place of r-prm-7b"
    assert ["prompt" in text or "items" in text for text in rest] == [True, True]


def test_a_row_whose_first_stage_failed_takes_other_data(scored: dict[str, str], tmp_path: Path) -> None:
    row = ROWS["processbench/qwen-prm-7b"]
    with pytest.raises(RunError, match="no such file"):
        Reproduction(row, tmp_path / "out", model=scored["model"], data=str(tmp_path / "typo.jsonl")).run()
    assert Reproduction(row, tmp_path / "out", **scored).run()["row"] == row.name


def test_a_threshold_of_its_own_stands_first() -> None:
    assert ROWS["prmbench/r-prm-7b-sft"].settings.startswith("threshold 0.61; of other rows: a step is right at 0.5")
    assert ROWS["prmbench/r-prm-7b-dpo"].settings.startswith("a step is right at 0.5")


@pytest.mark.slow
def test_the_threshold_is_chosen_on_gsm8k(scored: dict[str, str], tmp_path: Path) -> None:
    """Errors score 0.2 and 0.4, the right solutions 0.35, 0.6 and 0.9 at their lowest. A threshold in (0.2, 0.35] gives
    F1 = 2 * 1/2 * 1 / (3/2) = 67, one in (0.4, 0.6] 80: of these 0.5. With 0.45 in place of 0.35 one in (0.4, 0.45]
    gives 100: of these 0.45 is the nearest to 0.5."""
    row = ROWS["processbench/skywork-prm-7b"]
    commands: list[list[str]] = []
    Reproduction(row, tmp_path / "one", **scored).run(commands.append)
    assert commands[-1][commands[-1].index("--threshold") + 1] == "0.5"
    Path(scored["model"]).write_text(Path(scored["model"]).read_text().replace("0.35", "0.45"))
    found = Reproduction(row, tmp_path / "two", **scored).run(commands.append)
    assert commands[-1][commands[-1].index("--threshold") + 1] == "0.45"
    assert found["figures"]["gsm8k.f1"]["ours"]["value"] == pytest.approx(100.0)


def test_a_folder_of_other_settings_is_refused(scored: dict[str, str], tmp_path: Path) -> None:
    row = ROWS["processbench/qwen-prm-7b"]
    Reproduction(row, tmp_path / "out", **scored).run()
    with pytest.raises(SettingsChanged, match="--limit 1"):
        Reproduction(row, tmp_path / "out", **scored, limit=1).run()


def test_a_stage_that_fails_ends_the_row(scored: dict[str, str], tmp_path: Path) -> None:
    row = ROWS["processbench/qwen-prm-7b"]
    partly = Path(scored["model"])
    partly.write_text("".join(partly.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(RunError, match="math-1"):
        Reproduction(row, tmp_path / "out", **scored).run()
    assert not (tmp_path / "out" / row.name / "summary.json").exists()
    # The missing one counts as wrong where that is asked for, a row that cannot be used not at all; both are said.
    with Path(scored["data"]).open("a") as stream:
        stream.write('{"id": "math-2", "problem": "P?", "steps": [], "label": -1}\n')
    told = Reproduction(row, tmp_path / "two", **scored, options=("--allow-missing",)).run()["differs"]
    assert "1 items have no prediction, and count as wrong" in told
    assert "1 rows of the data could not be used" in told


@pytest.mark.slow
def test_a_killed_row_is_resumed(tmp_path: Path) -> None:
    """Killed while it judges, with its stage, it resumes to the bytes of one that ran undisturbed, and asks for
    what was not answered alone."""
    log = tmp_path / "log"

    def command(root: str, delay: str) -> list[str]:
        model = f"scripted:?concurrency=4&log={log}&delay={delay}"
        data = EXCERPTS / "processbench" / "gsm8k.jsonl"
        return [
            sys.executable, "-m", "rprm", "reproduce", "processbench/r-prm-7b-dpo", "--model", model, "--data",
            str(data), "--limit", "4", "--output", str(tmp_path / root), "--json", "--", "-k", "3",
        ]  # fmt: skip

    folder = tmp_path / "killed" / "processbench" / "r-prm-7b-dpo"
    results = folder / "judge" / "results.jsonl"
    with warm_cli().start(command("killed", "0.02")) as process:
        deadline = time.monotonic() + 60
        while not (results.exists() and results.read_bytes().count(b"\n") >= 1) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "judge" / MEASUREMENT).exists()
    assert not (folder / "summary.json").exists()
    num_paid = len(log.read_text().splitlines())
    # Its stage ends with it.
    for _ in range(200):
        resumed = warm_cli().run(command("killed", "0.02"))
        if "in use" not in resumed.stderr:
            break
        time.sleep(0.05)
    assert resumed.returncode == 0, resumed.stderr
    num_resumed = len(log.read_text().splitlines()) - num_paid
    whole = warm_cli().run(command("whole", "0.02"))
    assert results.read_bytes() == (tmp_path / "whole" / "processbench/r-prm-7b-dpo/judge/results.jsonl").read_bytes()
    told = [json.loads(done.stdout) for done in (resumed, whole)]
    assert all(one.pop("time")["seconds"] is not None for one in told)
    assert told[0] == told[1]
    num_whole = len(log.read_text().splitlines()) - num_paid - num_resumed
    # What was under way is asked for again, and no more.
    assert num_resumed < num_whole <= num_paid + num_resumed


@pytest.mark.slow
def test_k_figures_are_subsets_of_one_run(tmp_path: Path, mathematics: Path) -> None:
    """K = 32 is the run itself."""
    data = str(EXCERPTS / "processbench" / "gsm8k.jsonl")
    found = reproduction("processbench/r-prm-7b-dpo-by-k", tmp_path, mathematics, data=data, limit=6).run()
    folder = tmp_path / "processbench" / "r-prm-7b-dpo-by-k"
    points = read_json(folder / "curve" / MEASUREMENT)["points"]
    assert [point["k"] for point in points] == [1, 2, 4, 8, 16, 32]
    ours = {name: both["ours"] and both["ours"]["value"] for name, both in found["figures"].items()}
    assert [ours[f"K={point['k']}"] for point in points] == [point["value"] for point in points]
    assert ours["K=32"] == read_json(folder / "judge" / MEASUREMENT)["figures"]["average"]["f1"]["value"]


@pytest.mark.slow
def test_thirty_guided_steps_and_then_freely(tmp_path: Path, mathematics: Path) -> None:
    """Every one of the 16 completions begins with the guided steps, and avg@16 is their share of right answers. Two
    rounds here: the scripted policy ends at the second step or later."""
    name = "aime24/r1-distill-7b-guided"
    chosen = reproduction(name, tmp_path, mathematics, options=("--max-rounds", "2", "-k", "2"), limit=3)
    found = chosen.run()
    trees = [json.loads(line) for line in (chosen.folder / "guided" / "results.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (chosen.folder / "completed" / "results.jsonl").read_text().splitlines()]
    assert {bool(tree["finished"]) for tree in trees} == {False, True}
    for tree, row in zip(trees, rows, strict=True):
        texts = [candidate["text"] for candidate in row["candidates"]]
        assert len(texts) == 16
        assert all(text.startswith(tree["text"]) for text in texts)
        if tree["finished"]:
            # It has ended: there is nothing to write on.
            assert set(texts) == {tree["text"]}
            assert {candidate["num_tokens"] for candidate in row["candidates"]} == {0}
        else:
            assert len(set(texts)) > 1
            assert all("boxed" in text.removeprefix(tree["text"]) for text in texts)
    right = [f"{n + 5}" for n in range(3)]
    shares = [
        mean(f"\\boxed{{{answer}}}" in candidate["text"] for candidate in row["candidates"])
        for answer, row in zip(right, rows, strict=True)
    ]
    assert found["figures"]["pass@1/aime24"]["ours"]["value"] == pytest.approx(100 * mean(shares))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda judge: rewrite(judge / MEASUREMENT, b'"items": ', b'"items": 9'), "its checksum does not fit"),
        (lambda judge: (judge / MEASUREMENT).write_text("{}"), "its checksum does not fit"),
        (lambda judge: (judge / MEASUREMENT).write_text("[]"), "is damaged"),
        (lambda judge: rewrite(judge / "results.jsonl", b"0.9", b"0.1"), r"line \d+ is damaged"),
        (lambda judge: (judge / "results.jsonl").unlink(), "rows are missing at its end"),
    ],
)
def test_figures_are_those_of_the_rows(tmp_path: Path, mathematics: Path, damage: Any, said: str) -> None:
    """What was edited, or is of other rows, is told; nothing is reported."""
    chosen = reproduction("processbench/r-prm-7b-dpo", tmp_path, mathematics, options=("-k", "2"))
    chosen.run()
    damage(chosen.folder / "judge")
    with pytest.raises(CorruptRun, match=said):
        chosen.run()


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def test_lost_figures_are_measured_again(tmp_path: Path, mathematics: Path) -> None:
    chosen = reproduction("processbench/r-prm-7b-dpo", tmp_path, mathematics, options=("-k", "2"))
    found = chosen.run()
    before = (chosen.folder / "judge" / MEASUREMENT).read_bytes()
    (chosen.folder / "judge" / MEASUREMENT).unlink()
    assert chosen.run() == found
    assert (chosen.folder / "judge" / MEASUREMENT).read_bytes() == before


def test_other_content_under_a_known_name_is_another_run(tmp_path: Path, mathematics: Path) -> None:
    data, scores = tmp_path / "gsm8k.jsonl", tmp_path / "scores.jsonl"
    rows = (EXCERPTS / "processbench" / "gsm8k.jsonl").read_text().splitlines()[:3]
    data.write_text("\n".join(rows))
    items = [json.loads(row) for row in rows]
    scores.write_text("\n".join(json.dumps({"id": one["id"], "p_yes": [0.9] * len(one["steps"])}) for one in items))
    chosen = reproduction(
        "processbench/r-prm-7b-dpo", tmp_path / "root", mathematics, data=str(data), model=str(scores)
    )
    chosen.run()
    scores.write_text(scores.read_text().replace("0.9", "0.1"))
    with pytest.raises(SettingsChanged, match=r"scores\.jsonl"):
        chosen.run()
    scores.write_text(scores.read_text().replace("0.1", "0.9"))
    chosen.run()
    data.write_text("\n".join(reversed(rows)))
    with pytest.raises(SettingsChanged, match=r"gsm8k\.jsonl"):
        chosen.run()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["processbench/r-prm-7b-dpo", "--policy", "scripted:"], "no policy writes"),
        (["processbench/r-prm-7b-dpo", "--model", ""], "leave out what is empty"),
        (["processbench/r-prm-7b-dpo", "--", "--help"], "--help after --"),
        (["processbench/r-prm-7b-dpo", "--", "--model=scripted:"], "--model=scripted: after --"),
        (["list", "--limit", "3"], "no options but --json"),
    ],
)
def test_options_that_make_no_sense_are_refused(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["reproduce", *words, "--dry-run"])
    assert isinstance(done.exception, InputError)
    assert said in str(done.exception)


def test_a_curve_does_not_overwrite_a_runs_own_figures(tmp_path: Path, mathematics: Path) -> None:
    chosen = reproduction("processbench/r-prm-7b-dpo", tmp_path, mathematics, options=("-k", "2"))
    chosen.run()
    run = str(chosen.folder / "judge")
    done = CliRunner().invoke(app, ["bench", "curve", run, "--output", run])
    assert "name another folder" in str(done.exception)

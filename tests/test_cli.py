"""The command line, as a person uses it: in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rprm.cli.app import app
from rprm.cli.bench import _agreed
from rprm.errors import BenchmarkError, MissingPredictions
from rprm.runs import read_measurement
from tests.faults.folder_damages import as_older
from tests.warm import warm_cli

EXAMPLES = Path(__file__).parents[1] / "src" / "rprm" / "examples" / "solutions.jsonl"


def rprm(*arguments: object, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rprm", *map(str, arguments)]
    return warm_cli().run(command, input=stdin, env={**os.environ, "COLUMNS": "100", **environment})


def test_help_names_every_command() -> None:
    done = rprm("--help")
    assert done.returncode == 0
    for command in ("judge", "bench", "prompts", "engines"):
        assert command in done.stdout


def test_version() -> None:
    assert rprm("--version").stdout.startswith("rprm 0.")


def test_judge_prints_steps_rewards_and_the_first_error() -> None:
    done = rprm("judge", EXAMPLES, "--model", "scripted:?yes_rate=0&noise=0")
    assert done.returncode == 0, done.stderr
    assert "bakery" in done.stdout
    assert done.stdout.count("✗ first error") == 5
    assert "first error: step 1  (labelled: none)" in done.stdout
    assert "5 with an error, 0 without" in " ".join(done.stdout.split())
    # No progress line where standard error is no terminal.
    assert done.stderr == ""


def test_judge_json_is_one_object_a_solution(tmp_path: Path) -> None:
    done = rprm("judge", EXAMPLES, "--model", "scripted:", "--json", "--output", tmp_path / "run")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["id"] for row in rows] == ["bakery", "train", "quadratic", "marbles", "garden"]
    # As they are kept, but for the checksum of each.
    assert done.stdout == re.sub(r',"crc":"\w{8}"\}\n', "}\n", (tmp_path / "run" / "results.jsonl").read_text("utf-8"))
    # Begun again, it prints the same without judging.
    assert rprm("judge", EXAMPLES, "--model", "scripted:", "--json", "--output", tmp_path / "run").stdout == done.stdout


@pytest.mark.slow
def test_judge_from_standard_input_goes_on_with_the_same_text(tmp_path: Path) -> None:
    text = EXAMPLES.read_text()
    first = rprm("judge", "-", "--model", "scripted:", "--json", "-o", tmp_path / "run", "--limit", 5, stdin=text)
    again = rprm("judge", "-", "--model", "scripted:", "--json", "-o", tmp_path / "run", "--limit", 5, stdin=text)
    assert first.stdout == again.stdout != ""
    other = rprm("judge", "-", "--model", "scripted:", "-o", tmp_path / "run", "--limit", 5, stdin=text + "\n")
    assert other.returncode == 1
    assert "with other settings" in other.stderr


def test_bad_records_are_told_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(EXAMPLES.read_text() + '{"problem": "p"}\n')
    done = rprm("judge", path, "--model", "scripted:", "-q")
    assert done.returncode == 3
    assert "in.jsonl, line 6: 'steps' is missing" in " ".join(done.stderr.split())
    assert "1 rejected rows" in " ".join(done.stdout.split())
    strict = rprm("judge", path, "--model", "scripted:", "-q", "--strict")
    assert strict.returncode == 1
    assert strict.stderr.startswith("rprm: ")
    assert "line 6" in strict.stderr


def test_a_run_in_which_nothing_could_be_judged_fails_and_says_why(tmp_path: Path) -> None:
    model = "scripted:?context_length=70"
    done = rprm("judge", EXAMPLES, "--model", model, "--json")
    assert done.returncode == 1
    assert {json.loads(line)["first_error"] for line in done.stdout.splitlines()} == {None}
    assert "no step of any solution could be judged" in done.stderr
    assert "context" in done.stderr
    shown = rprm("judge", EXAMPLES, "--model", model)
    assert "no error found" not in shown.stdout
    assert shown.stdout.count("could not be judged") == 6  # five panels and the summary
    assert "0 with an error, 0 without, 5 could not be judged" in shown.stdout
    # The reason stands under the first step, in the summary and in the message; the others have but other lengths.
    assert (shown.stdout + shown.stderr).count("which leaves 0") == 3
    num_steps = sum(len(json.loads(line)["steps"]) for line in done.stdout.splitlines())
    assert shown.stdout.count("unscored, as above") == num_steps - 1
    data = tmp_path / "gsm8k.jsonl"
    item = {"id": "gsm8k-0", "problem": "p", "steps": ["one", "two"], "label": -1, "final_answer_correct": True}
    data.write_text(json.dumps(item | {"generator": "g"}) + "\n")
    bench = rprm("bench", "processbench", "--data", data, "--model", model, "--allow-missing")
    assert bench.returncode == 1
    assert "context" in bench.stderr
    assert "--allow-missing" not in bench.stderr


def test_rewards_full_and_the_published_procedure(tmp_path: Path) -> None:
    question = tmp_path / "question.txt"
    question.write_text("So, is this step right?\n")
    runs = {
        "lean": [],
        "full": ["--rewards", "full"],
        "published": ["--procedure", "published", "--ask", question],
    }
    rows = {}
    for name, options in runs.items():
        done = rprm("judge", EXAMPLES, "--model", "scripted:?lost=0.2", "-k", 4, "--json", *options)
        assert done.returncode == 0, done.stderr
        rows[name] = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows["full"] + rows["published"]:
        assert [len(step["analyses"]) for step in row["steps"]] == [4] * row["num_steps"]
    sources = {a["p_yes_source"] for row in rows["published"] for step in row["steps"] for a in step["analyses"]}
    assert "second pass" in sources
    forced = [a for row in rows["published"] for step in row["steps"] for a in step["analyses"] if a["forced"]]
    assert forced
    assert all("So, is this step right? " in analysis["text"] for analysis in forced)
    # An exact run predicts what the full one does.
    assert [row["first_error"] for row in rows["lean"]] == [row["first_error"] for row in rows["full"]]
    contradictory = rprm("judge", EXAMPLES, "--model", "scripted:", "--ask", "x", "--no-force-verdict")
    assert contradictory.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["judge", "missing.jsonl", "--model", "scripted:"], "missing.jsonl: no such file"),
        (["judge", str(EXAMPLES), "--model", "gpt"], "unknown engine 'gpt'; write KIND:TARGET with one of embedded"),
        (["judge", str(EXAMPLES), "--model", "gpt"], "classifier; or name a known model (`rprm models`): r-prm-7b, qw"),
        (["judge", str(EXAMPLES), "--model", "scripted:?delay=slow"], "option delay='slow'"),
        (["judge", str(EXAMPLES), "--model", "scripted:", "--prompt", "nope"], "nope"),
        (["bench", "processbench"], "say what to measure"),
        (["bench", "processbench", "--model", "scripted:", "--scores", "s"], "leave out --model to measure s, or --"),
        (["bench", "compare", str(EXAMPLES), str(EXAMPLES)], "give --benchmark"),
        (["bench", "compare", str(EXAMPLES), "missing"], "missing: no such run folder or scores file"),
    ],
)
def test_what_a_person_did_wrong_is_one_message(arguments: list[str], message: str) -> None:
    done = rprm(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_hostile_text_reaches_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    row = {"problem": "[red]markup[/red] \x1b[2J\x07", "steps": ["\x1b]0;title\x07 [bold]x[/bold] [/]", "‮reversed"]}
    path.write_text(json.dumps(row) + "\n")
    done = rprm("judge", path, "--model", "scripted:", "--analyses")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout
    assert "‮" not in done.stdout
    # Markup is text, not colour.
    assert "[red]markup[/red]" in done.stdout


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(EXAMPLES.read_text() * 200)
    command = f"'{sys.executable}' -m rprm judge '{path}' --model scripted: --json | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert json.loads(done.stdout)["id"] == "bakery"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def write_items(folder: Path) -> Path:
    folder.mkdir()
    for subset in ("gsm8k", "math"):
        rows: list[dict[str, Any]] = [
            {
                "id": f"{subset}-{number}",
                "generator": "g",
                "problem": f"Problem {number}",
                "steps": [f"Step {number}.{index}" for index in range(4)],
                "final_answer_correct": number % 2 == 0,
                "label": -1 if number % 2 == 0 else number % 4,
            }
            for number in range(20)
        ]
        (folder / f"{subset}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.slow
def test_bench_judges_measures_and_compares(tmp_path: Path) -> None:
    data = write_items(tmp_path / "data")
    reports = []
    for name, rate in (("a", 0.9), ("b", 0.5)):
        done = rprm(
            "bench", "processbench", "--data", data, "--model", f"scripted:?yes_rate={rate}",
            "--output", tmp_path / name, "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))
        # Resumed to the same bytes, the file has no time: that is in the manifest.
        time = reports[-1].pop("time")
        assert (time["seconds"] > 0, time["sessions"], time["untimed_sessions"]) == (True, 1, 0)
        kept = read_measurement(tmp_path / name)
        assert {name: value for name, value in kept.items() if name not in ("crc", "of_rows")} == reports[-1]
    figures = reports[0]["figures"]
    assert set(figures) == {"gsm8k", "math", "average", "false_alarm_rate"}
    f1 = figures["average"]["f1"]
    assert f1["low"] <= f1["value"] <= f1["high"]
    # The average is the unweighted mean of the subsets' F1.
    assert f1["value"] == pytest.approx((figures["gsm8k"]["f1"]["value"] + figures["math"]["f1"]["value"]) / 2)
    assert reports[0]["usage"]["tokens"] > 0

    # The run's rewards as a scores file measure alike.
    scores = tmp_path / "scores.jsonl"
    rows = [json.loads(line) for line in (tmp_path / "a" / "results.jsonl").read_text().splitlines()]
    scores.write_text(
        "".join(
            json.dumps({"id": row["id"], "p_yes": [step["reward"] for step in row["steps"]]}) + "\n" for row in rows
        )
    )
    again = rprm("bench", "processbench", "--data", data, "--scores", scores, "--json")
    assert json.loads(again.stdout)["figures"] == figures

    compared = rprm("bench", "compare", tmp_path / "a", tmp_path / "b", "--json")
    assert compared.returncode == 0, compared.stderr
    found = json.loads(compared.stdout)
    first, second = (report["figures"]["average"]["f1"]["value"] for report in reports)
    assert found["difference"]["average"]["f1"]["value"] == pytest.approx(second - first)
    assert 0.0 <= found["p_value"] <= 1.0
    assert "paired" in rprm("bench", "compare", tmp_path / "a", tmp_path / "b").stdout

    # A run knows its data. The measurement of scores makes its folder, and does not take that of another run.
    known = rprm("bench", "processbench", "--scores", tmp_path / "a", "--output", tmp_path / "new" / "one", "--json")
    assert json.loads(known.stdout)["figures"] == figures
    assert json.loads((tmp_path / "new" / "one" / "measurement.json").read_text())["figures"] == figures
    before = (tmp_path / "b" / "measurement.json").read_bytes()
    refused = rprm("bench", "processbench", "--data", data, "--scores", scores, "--output", tmp_path / "b")
    assert (refused.returncode, (tmp_path / "b" / "measurement.json").read_bytes()) == (1, before)
    assert "holds another run" in refused.stderr
    lost = rprm("bench", "processbench", "--data", data, "--scores", tmp_path / "lost", "--output", tmp_path / "b")
    assert "lost: no such run folder or scores file" in lost.stderr

    # Its limit too, but where its data are named: then all of them are meant.
    limited = ("bench", "processbench", "--data", data, "--json")
    done = rprm(*limited, "--model", "scripted:", "--limit", 2, "--output", tmp_path / "limited")
    assert json.loads(done.stdout)["items"] == 4
    assert json.loads(rprm("bench", "processbench", "--json", "--scores", tmp_path / "limited").stdout)["items"] == 4
    assert "36 of 40 items have no prediction" in rprm(*limited, "--scores", tmp_path / "limited").stderr

    # A run of the older row format is read too: its rewards meant the same.
    as_older(tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["settings"].pop("row_format") == 2
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    older = rprm("bench", "processbench", "--data", data, "--scores", tmp_path / "a", "--json")
    assert json.loads(older.stdout)["figures"] == figures

    # Other data under the same name is noticed.
    (data / "math.jsonl").write_text((data / "math.jsonl").read_text().replace("Step 1.1", "Step one"))
    changed = rprm("bench", "compare", tmp_path / "a", tmp_path / "b")
    assert changed.returncode == 1
    assert "judged on other data" in changed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ask", "./missing.txt"], "--ask ./missing.txt: no sentence, and no file"),
        (["--model", "transformers:./no_folder"], "there is no such folder or file"),
        (["--model", "classifier:./no_folder"], "there is no such folder or file"),
        (["--output", EXAMPLES], "solutions.jsonl"),
    ],
)
def test_a_path_that_is_none_is_told_in_one_line(arguments: list[object], message: str) -> None:
    done = rprm("judge", EXAMPLES, "--model", "scripted:", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_input_without_a_solution_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    done = rprm("judge", tmp_path / "empty.jsonl", "--model", "scripted:")
    assert (done.returncode, done.stderr) == (1, f"rprm: {tmp_path}/empty.jsonl: holds no solution\n")


def test_runs_that_differ_are_told_in_their_order() -> None:
    runs = [{"benchmark": name} for name in ("steps", "prmbench", "openings", "processbench")]
    with pytest.raises(BenchmarkError, match=r"\(steps, prmbench, openings, processbench\): name one with --benchmark"):
        _agreed("benchmark", None, *runs, {})


def test_bench_names_missing_predictions(tmp_path: Path) -> None:
    data = write_items(tmp_path / "data")
    scores = tmp_path / "scores.jsonl"
    rows = [{"id": f"gsm8k-{number}", "p_yes": [0.9] * 4} for number in range(20)]
    rows += [{"id": f"math-{number}", "p_yes": [0.9] * 4} for number in range(18)]
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = rprm("bench", "processbench", "--data", data, "--scores", scores)
    assert done.returncode == 1
    assert "math-18, math-19" in done.stderr
    allowed = rprm("bench", "processbench", "--data", data, "--scores", scores, "--allow-missing", "--json")
    assert json.loads(allowed.stdout)["missing_items"] == ["math-18", "math-19"]


def test_scores_without_a_score_are_no_measurement(tmp_path: Path) -> None:
    """Whatever is allowed to be missing: there is nothing to measure, and the exit code says so."""
    data, steps = write_items(tmp_path / "data"), tmp_path / "steps.jsonl"
    ids = [f"{subset}-{number}" for subset in ("gsm8k", "math") for number in range(20)]
    steps.write_text(
        "".join(json.dumps({"id": name, "problem": name, "step": "s", "label": True}) + "\n" for name in ids)
    )
    for name, scores in (("none", {one: [None] for one in ids}), ("others", {f"x{one}": [0.5] for one in ids})):
        (tmp_path / name).write_text("".join(json.dumps({"id": i, "p_yes": p}) + "\n" for i, p in scores.items()))
        (tmp_path / f"{name}-4").write_text(
            "".join(json.dumps({"id": i, "p_yes": p * 4}) + "\n" for i, p in scores.items())
        )
        for command in (
            ["steps", steps, "--scores", tmp_path / name],
            ["processbench", "--data", data, "--scores", tmp_path / f"{name}-4"],
            ["compare", tmp_path / f"{name}-4", tmp_path / f"{name}-4", "--benchmark", "processbench", "--data", data],
            ["compare", tmp_path / name, tmp_path / name, "--benchmark", "steps", "--data", steps],
        ):
            for allowed in ([], ["--allow-missing"]):
                with pytest.raises(MissingPredictions, match=r"40 of 40 items .* there is no score of any item"):
                    CliRunner().invoke(app, ["bench", *map(str, command), *allowed], catch_exceptions=False)


def test_bench_curve_and_held_out_need_full_rewards(tmp_path: Path) -> None:
    data = write_items(tmp_path / "data")
    done = rprm("bench", "processbench", "--data", data, "--model", "scripted:", "--curve", "--held-out", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"curve", "held_out"} <= set(report)
    refused = rprm("bench", "processbench", "--data", data, "--model", "scripted:", "--curve", "--stopping", "exact")
    assert refused.returncode == 1
    assert "leave out --stopping" in refused.stderr


def test_bench_sets_bad_rows_aside(tmp_path: Path) -> None:
    data = write_items(tmp_path / "data")
    with (data / "math.jsonl").open("a") as stream:
        stream.write("{torn\n")
    done = rprm("bench", "processbench", "--data", data, "--model", "scripted:", "-o", tmp_path / "run", "--json")
    assert json.loads(done.stdout)["rejected_rows"] == 1
    rejected = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert rejected[0]["line"] == 21


@pytest.mark.slow
def test_prmbench_golden_figures(real_data: Path) -> None:
    golden = json.loads((real_data / "prmbench" / "golden.json").read_text())
    folder = real_data / "prmbench"
    for threshold, expected in golden.items():
        done = rprm(
            "bench", "prmbench", "--data", folder / "sample.jsonl", "--scores", folder / "released_scores.jsonl",
            "--threshold", threshold, "--resamples", 10, "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        figures = json.loads(done.stdout)["figures"]
        for name, value in expected.items():
            assert figures[name]["value"] == pytest.approx(value, abs=1.0001e-4), (threshold, name)

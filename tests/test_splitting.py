"""Solutions cut into steps."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm.splitting import split_steps


@pytest.mark.parametrize(
    ("solution", "steps"),
    [
        ("First.\n\nSecond.\n \nThird.", ["First.", "Second.", "Third."]),
        ("One\ntwo\nthree", ["One", "two", "three"]),
        ("a\nb\n\nc", ["a\nb", "c"]),
        ("only one", ["only one"]),
        ("  \n\n ", []),
        ("a\r\n\r\nb", ["a", "b"]),
        ("We get\n\\[\nx = 1\n\n+ 2\n\\]\nso done.\n\nEnd.", ["We get\n\\[\nx = 1\n\n+ 2\n\\]\nso done.", "End."]),
        ("See\n$$\na\n$$\nnext", ["See", "$$\na\n$$", "next"]),
        (
            "\\begin{align}\na\n\n\\begin{matrix}1\\end{matrix}\n\\end{align}\n\nb",
            ["\\begin{align}\na\n\n\\begin{matrix}1\\end{matrix}\n\\end{align}", "b"],
        ),
        ("```\na\n\nb\n```\n\nc", ["```\na\n\nb\n```", "c"]),
        ("unclosed $$ a\n\nb", ["unclosed $$ a", "b"]),
        # Numbered headings decide, however the text under them is spaced.
        ("Step 1: Let x = 1.\n\n  y = 2\n\nStep 2: So 3.", ["Step 1: Let x = 1.\n\n  y = 2", "Step 2: So 3."]),
        ("Step 1. a\nb\nStep 2. c", ["Step 1. a\nb", "Step 2. c"]),
        ("Step 1\n\na\n\nStep 2\n\nb", ["Step 1\n\na", "Step 2\n\nb"]),
        ("STEP 1 - a\n\nx\n\nStep 2 (sum) : b", ["STEP 1 - a\n\nx", "Step 2 (sum) : b"]),
        ("**Step 1: A**\n\nx\n\n**Step 2** B\n\ny", ["**Step 1: A**\n\nx", "**Step 2** B\n\ny"]),
        ("To begin.\n\nIt is easy.\n\nStep 1: a\n\nStep 2: b", ["To begin.", "It is easy.", "Step 1: a", "Step 2: b"]),
        ("### Step 1: x = 1\n### Step 2: y = 2", ["### Step 1: x = 1", "### Step 2: y = 2"]),
        # Headings of the same level end a step, deeper ones do not.
        (
            "## Step 1\n\na\n\n### Note\n\nb\n\n## Step 2\n\nc\n\n## End\n\nd",
            ["## Step 1\n\na\n\n### Note\n\nb", "## Step 2\n\nc", "## End\n\nd"],
        ),
        (
            "# Case 1\n\n## Step 1: a\n\n## Step 2: b\n\n# Case 2\n\n## Step 1: c",
            ["# Case 1\n\n## Step 1: a", "## Step 2: b", "# Case 2\n\n## Step 1: c"],
        ),
        # Steps that are only spoken of are no headings, nor is one alone.
        ("Step 1 gives x.\n\nStep 2 gives y.\n\nz", ["Step 1 gives x.", "Step 2 gives y.", "z"]),
        ("Step 1: a\n\nb", ["Step 1: a", "b"]),
        ("By Step 1: x. By Step 2: y.", ["By Step 1: x. By Step 2: y."]),
        ("Step 1: a. Step 2: b. Step 3: c", ["Step 1: a.", "Step 2: b.", "Step 3: c"]),
        ("Step 1: a, as in Step 1: a", ["Step 1: a, as in Step 1: a"]),
        # Other headings belong to what follows them, rules to nothing.
        ("# Solution\n\nFirst.\n\nSecond.", ["# Solution\n\nFirst.", "Second."]),
        ("a\n\n---\n\nb\n\n***", ["a", "b"]),
        ("## Step 1: a\n\n---\n\n## Step 2: b", ["## Step 1: a", "## Step 2: b"]),
        ("1. a\n\n2. b", ["1. a", "2. b"]),
        # Tags of process reward models.
        ("Step 1: a ки\nStep 2: b ки", ["Step 1: a", "Step 2: b"]),
        ("Let a. ки So b. ки", ["Let a.", "So b."]),
        ("a<extra_0>b<extra_0>", ["a", "b"]),
        ("a\n\nb ки", ["a", "b"]),
        ("книги\n\nруки", ["книги", "руки"]),
        # Line ends that are spelled out, but no TeX.
        (r"Step 1: a\n\nStep 2: b", ["Step 1: a", "Step 2: b"]),
        (r"First x \neq 1.\r\n\r\nthen y \ne 2, \norm{z}.", [r"First x \neq 1.", r"then y \ne 2, \norm{z}."]),
        (r"First.\nSecond.", ["First.", "Second."]),
        (r"x \neq 1, \nu, \nabla f, \notin A, \nRightarrow", [r"x \neq 1, \nu, \nabla f, \notin A, \nRightarrow"]),
        (r"x \\n = 3 \\N", [r"x \\n = 3 \\N"]),
        (r"the \nth term", [r"the \nth term"]),
        ("a\\nB\nc", ["a\\nB", "c"]),
        # Line ends of other kinds; a form feed is a damaged \frac as likely as not.
        ("a\u2028b\x85c", ["a", "b", "c"]),
        ("a\u2029b\u2028c", ["a", "b\nc"]),
        ("a\n\t\u200b \nb", ["a", "b"]),
        ("a\n\x0c\nx = \x0crac{1}{2}", ["a", "x = \x0crac{1}{2}"]),
        # What is never cut, and what only looks like it.
        ("\\[ a \\\\[4pt]\n\nb \\\\\\]\n\nc", ["\\[ a \\\\[4pt]\n\nb \\\\\\]", "c"]),
        ("a \\\\[4pt] b\n\nc \\] d", ["a \\\\[4pt] b", "c \\] d"]),
        ("[asy]\ndraw(a);\n\ndraw(b);\n[/asy]\n\nc", ["[asy]\ndraw(a);\n\ndraw(b);\n[/asy]", "c"]),
        ("~~~\na\n\nb\n~~~\n\nc", ["~~~\na\n\nb\n~~~", "c"]),
        ("a~~~b\n\nc~~~d", ["a~~~b", "c~~~d"]),
        ("```\nStep 1: a\n\nStep 2: b\n```\n\nc", ["```\nStep 1: a\n\nStep 2: b\n```", "c"]),
        ("\\end{align}\n\na \\end{align}", ["\\end{align}", "a \\end{align}"]),
        # Thinking is no step.
        ("<think>\nhm\n\nno\n</think>\n\na\n\nb", ["a", "b"]),
        ("hm\n\nno\n</think>\n\na\n\nb", ["a", "b"]),
        ("<think>\nhm\n\nStep 1: a", []),
        ("---", []),
    ],
)
def test_splitting(solution: str, steps: list[str]) -> None:
    assert split_steps(solution) == steps


@given(st.lists(st.text(alphabet="ab $\\[]\n\r`{}é", max_size=20), max_size=10))
def test_splitting_loses_nothing_but_space(pieces: list[str]) -> None:
    solution = "\n\n".join(pieces)
    assert "".join("".join(split_steps(solution)).split()) == "".join(solution.split())


def test_cases_from_public_reports(real_cases: Path) -> None:
    cases = real_cases / "steps.jsonl"
    rows = [json.loads(line) for line in cases.read_text().splitlines()]
    assert len(rows) >= 13
    assert [row["id"] for row in rows if len(split_steps(row["text"])) != row["num_steps"]] == []


def test_real_solutions_without_headings_are_cut_at_blank_lines_or_lines(real_data: Path) -> None:
    """Of 640 solutions of a real policy, the others have numbered steps (64) or Markdown headings (16)."""
    num_solutions, num_other = {"excerpts": (64, 4), "data": (640, 64 + 16 + 5)}[real_data.name]
    samples = real_data / "policy_samples"
    olympiad = (samples / "olympiadbench_qwen2.5-7b_n8.jsonl").read_text().splitlines()
    solutions = [steps for line in olympiad for steps in json.loads(line)["steps"]]
    assert len(solutions) == num_solutions
    # The file's own steps: its authors cut at blank lines, five times inside of display mathematics.
    same = sum(split_steps("\n\n".join(steps)) == [step.strip() for step in steps] for steps in solutions)
    assert same >= num_solutions - num_other
    for line in (samples / "gsm8k_gpt3_n4.jsonl").read_text().splitlines():
        for model in ("6b_finetuning", "175b_verification"):
            text = json.loads(line)[model]["solution"]
            assert split_steps(text) == [line.strip() for line in text.split("\n") if line.strip()]


@pytest.mark.parametrize(
    "text",
    [
        "\\begin{a}" * 30_000,
        "".join(f"\\begin{{a{number}}}\n\n" for number in range(20_000)),
        "$$\n\n```\n\n\\[\n\n" * 20_000,
        "Step 1: a\nStep 2: b\n" * 20_000,
        "---\n\n" * 50_000 + "Step 1:\nStep 2:",
        "# a\n\n" * 50_000,
        "\\" * 300_000,
        "\\n" * 150_000 + "A",
        "a" + "\n" * 300_000 + "b",
        "a\n" + " " * 300_000 + "b",
        "<think>\n" * 40_000,
    ],
)
def test_hostile_text_is_cut_in_linear_time(text: str) -> None:
    start = time.perf_counter()
    split_steps(text)
    # A second or two on a busy core; anything quadratic takes minutes.
    assert time.perf_counter() - start < 20

"""Deriving a template from training rows: made-up layouts, hostile content, missing evidence."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from rprm.errors import InputError, PromptError
from rprm.prompts import ImportedTemplate, PromptTemplate, import_template, load_template

WORDS = ["alpha", "beta", "let", "find", "number", "sum", "of", "the", "x", "is", "we", "that", "so", "prime", "value"]


def layout(user: str, **changes: Any) -> PromptTemplate:
    return PromptTemplate("true", user, **changes)


LAYOUTS = {
    # The published shape: fixed text before, between and after; the step to judge numbered like the others.
    "separate": layout(
        "You mark homework.\n1. Read.\n2. Think: {x} {{open_braces}}y}} \\boxed{}.\nStep 1: look. Step 2: decide.\n\n"
        "Exercise:\n{{problem}}\n\nWritten so far:\n{{previous_steps}}\n\nLine to mark:\nStep {{step_number}}: {{step}}"
        "\n\nMark it. Is it good (Yes/No)?",
        step_separator="\n",
        no_previous_steps="Nothing has been written.",
    ),
    "newline after each step": layout(
        "Mark.\n\n[Exercise] {{problem}}\n[Before]\n{{previous_steps}}[Now]\nStep {{step_number}}: {{step}}\n[End]",
        step_format="Step {{number}}: {{step}}\n",
        step_separator="",
        no_previous_steps="No line. ",
    ),
    "one line": layout(
        "Exercise: {{problem}} Before: {{previous_steps}} Now: ({{step_number}}) {{step}} Your mark?",
        step_format="({{number}}) {{step}}",
        step_separator=" ",
        no_previous_steps="nothing",
    ),
    "tags and Windows line ends": layout(
        "<task>{{problem}}</task>\r\n<before>\r\n{{previous_steps}}</before>\r\n<now id={{step_number}}>\r\n{{step}}"
        "\r\n</now>\r\nMark <now>, line {{step_number}} of the work.",
        step_format='<line id="{{number}}">{{step}}</line>\r\n',
        step_separator="",
        no_previous_steps="<none/>",
    ),
    "number ahead, unnumbered step": layout(
        "You mark line {{step_number}} of this.\nExercise: {{problem}}\n\nBefore:\n\n{{previous_steps}}\n\n"
        "Current line:\n{{step}}\n\nGood or not?",
        step_format="**Étape {{number}}.** {{step}}",
        no_previous_steps="(rien)",
    ),
    "bare numbers, trailing spaces": layout(
        "## Exercise  \n{{problem}}\n## Before  \n{{previous_steps}}\n## Now  \n{{step_number}}. {{step}}\n## Mark  ",
        step_format="{{number}}. {{step}}",
        step_separator="\n",
        no_previous_steps="nothing  ",
    ),
    "quotes": layout(
        'Exercise: """{{problem}}"""\n\nBefore: "{{previous_steps}}"\n\nNow: "Line {{step_number}} - {{step}}"\nMark.',
        step_format="Line {{number}} - {{step}}",
        step_separator="; ",
        no_previous_steps="nothing",
    ),
    "a quote at the start of a line": layout(
        "Exercise:\n{{problem}}\n\nBefore:\n{{previous_steps}}\n\nNow judge Step {{step_number}}:\n"
        '"{{step}}"\nIs it right?',
    ),
    "full-width colons": layout(
        "問題：{{problem}}\n手順：\n{{steps}}\n判定せよ。", step_format="手順{{number}}：{{step}}", step_separator="\n"
    ),
    "one list": layout(
        "## Exercise\n{{problem}}\n## Lines\n{{steps}}\n## Mark {{step_number}}",
        step_format="- <{{number}}> {{step}}",
        step_separator="\n",
    ),
    "special tokens": layout(
        "<|im_start|>system\nYou mark.<|im_end|>\n<|im_start|>user\nExercise: {{problem}}\n\nBefore:\n"
        "{{previous_steps}}\n\nNow:\nStep {{step_number}}: {{step}}<|im_end|>\n<|im_start|>assistant\n",
        no_previous_steps="nothing",
        chat=False,
    ),
    **{name: load_template(name) for name in ("critique", "critique-brief", "teacher")},
}


def words(draw: random.Random, most: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))


def hostile_problem(draw: random.Random) -> str:
    text = draw.choice(["Let $x$ be ", "Let $x$ be ", "Find ", "If ", "How many ", "", "∑ 数学 "]) + words(draw, 25)
    trap = draw.random()
    if trap < 0.1:
        text += " as in Step 2: do it"
    elif trap < 0.14:
        text += "\n\nStep 1: foo\nStep 2: bar\n"
    elif trap < 0.18:
        text += " {{problem}} {{x}} {y} \\frac{1}{2} \\\\"
    elif trap < 0.22:
        text += "\n\nWritten so far:\n\nLine to mark:\nBefore:\n## Before  \n## Now\n[Now]\n"
    elif trap < 0.26:
        text = "1. foo\n2. bar (1) " + text
    elif trap < 0.3:
        text += "  "
    return text + draw.choice([".", ".", "?", ""])


def hostile_step(draw: random.Random) -> str:
    text = draw.choice(["We ", "Then ", "So $x", "\\[", "Hence", "", "∴ "]) + words(draw, 20)
    trap = draw.random()
    if trap < 0.1:
        text += "\n\n\\[ x = 3 \\]\nso"
    elif trap < 0.14:
        text += " by Step 1: that"
    elif trap < 0.16:
        text += "\nLine to mark:\n"
    elif trap < 0.18:
        text += "\r\n"
    return text + draw.choice([".", ".", ".", "$.", ":", ""])


def make_rows(template: PromptTemplate, count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        steps = [hostile_step(draw) for _ in range(draw.randint(1, 7))]
        prompt = template.render(hostile_problem(draw), steps, draw.randrange(len(steps)))
        answer = draw.choice(["Yes", "No"])
        ending = draw.choice(["The line holds. ", "**Result**: ", ""])
        row = {"instruction": prompt.messages[-1].content, "output": f"So.\n\n{ending}Is it good (Yes/No)? {answer}\n"}
        if template.system:
            row["system"] = template.system
        rows.append(row)
    return rows


def assert_renders_alike(derived: PromptTemplate, true: PromptTemplate) -> None:
    """Equal on content that no row held, at each position: the way to say a layout is not unique, what it does is."""
    steps = ["New\nstep 1:", "Step 7: {{problem}} '", "", 'last."']
    for problem in ("Fresh {{steps}}?", '"quoted"', "", "Two\n\nlines\r\n"):
        for index in range(len(steps)):
            assert derived.render(problem, steps, index).messages == true.render(problem, steps, index).messages
    assert derived.chat == true.chat


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("count", [60, 600])
def test_derives_very_different_layouts_from_hostile_rows(name: str, count: int):
    true = LAYOUTS[name]
    imported = import_template(make_rows(true, count), name="derived")
    assert_renders_alike(imported.template, true)
    assert (imported.num_rows, imported.num_exact, imported.differences) == (count, count, ())
    assert (imported.num_outputs, imported.num_verdicts) == (count, count)
    assert imported.template.verdict.marker == "Is it good (Yes/No)?"
    assert imported.template.name == "derived"


@pytest.mark.parametrize("words_before", ["Solve ", "Question ", "{{open_braces}}x}} "])
def test_words_with_no_mark_after_them_are_fixed_before_varied_values(words_before: str):
    true = layout(f"Mark.\n\n{words_before}{{{{problem}}}}\nBefore\n{{{{previous_steps}}}}\nNow {{{{step}}}}\nMark.")
    assert_renders_alike(import_template(make_rows(true, 300), name="derived").template, true)


def test_words_that_all_problems_share_under_a_heading_are_theirs():
    draw, rows, alphabet = random.Random(0), [], "abcdefghijklmnopqrstuvwxyz"
    true = layout("## Exercise\n{{problem}}\n\nSo far:\n\n{{steps}}\n\nWell?")
    for _ in range(120):
        steps = [draw.choice(alphabet) + words(draw, 9) for _ in range(draw.randint(1, 6))]
        rows.append(
            {"prompt": true.render(f"Exercise of {draw.choice(alphabet)}{words(draw, 20)}", steps, len(steps) - 1).text}
        )
    assert_renders_alike(import_template(rows, name="derived", marker="m").template, true)


def draw_layout(draw: random.Random) -> PromptTemplate:
    pick = draw.choice
    line = pick(["\n", "\n", "\r\n"])
    before_number, after_number = pick(
        [
            ("Step ", ": "),
            ("Step ", ":\n"),
            ("(", ") "),
            ("S", ". "),
            ("**Step ", ":** "),
            ("Étape ", ". "),
            ("#", ": "),
        ]
    )
    head = pick(["Task: ", "Task:" + line, "[Task]" + line, "<task>", 'Task: "', ""])
    foot = {"<task>": "</task>", 'Task: "': '"' + line, "": line * 2 + "~~~" + line}.get(head, line * 2)
    intro = pick(
        ["", "You mark.{0}{0}", "Do:{0}1. Read.{0}2. Mark {{{{step_number}}}}.{0}", "Step 1: read. Step 2: mark.{0}"]
    ).format(line)
    earlier = pick(["Earlier work:" + line, "Earlier work: ", "## Earlier" + line * 2])
    now = pick(["{0}{0}Now mark:{0}", "{0}Now mark: ", "{0}{0}## Now ({{{{step_number}}}}){0}"]).format(line)
    end = pick(["", "{0}{0}Say Yes or No.{0}", "{0}Is line {{{{step_number}}}} right (Yes/No)?"]).format(line)
    label = pick([before_number + "{{step_number}}" + after_number, "", "Current: "])
    listed = earlier + pick(["{{steps}}", "{{previous_steps}}" + now + label + "{{step}}"])
    return layout(
        intro + head + "{{problem}}" + foot + listed + end,
        step_format=before_number + "{{number}}" + after_number + "{{step}}" + pick(["", "", "", line, "</s>"]),
        step_separator=pick([line, line * 2, line * 3]),
        no_previous_steps=pick(["none", "There is nothing before." + line, "(empty)", "N/A."]),
    )


@pytest.mark.parametrize("seed", [*range(60), 86, 230, 234, 319, 555, 999999])
def test_derives_layouts_put_together_at_random(seed: int):
    true = draw_layout(random.Random(seed))
    imported = import_template(make_rows(true, 80, seed), name="derived", marker="m")
    assert imported.num_exact == 80
    assert_renders_alike(imported.template, true)


def test_uniform_toy_problems_keep_their_common_words():
    """All problems and steps begin and end alike; only the fixed text may be taken for fixed."""
    draw = random.Random(0)
    for name in ("separate", "newline after each step", "one list", "critique"):
        true = LAYOUTS[name]
        rows = []
        for _ in range(120):
            a, b, c = (draw.randint(1, 99) for _ in range(3))
            steps = [
                f"We compute {a} + {b} = {a + b}.",
                f"We compute {a + b} - {c} = {a + b - c}.",
                "We compute no more.",
            ]
            prompt = true.render(f"Let $x$ be {a}. What is $x + {b} - {c}$?", steps, draw.randrange(3))
            rows.append({"prompt": prompt.text})
        imported = import_template(rows, name="toy", marker="m")
        assert imported.num_exact == 120
        assert_renders_alike(imported.template, true)


@pytest.mark.long
@pytest.mark.slow
def test_real_problems_and_solutions(real_data: Path):
    items = [
        json.loads(line)
        for file in sorted((real_data / "processbench").glob("*.jsonl"))
        for line in file.read_text().split("\n")
        if line
    ]
    for name, true in LAYOUTS.items():
        draw = random.Random(name)
        rows = []
        for _ in range(500):
            item = draw.choice(items)
            prompt = true.render(item["problem"], item["steps"], draw.randrange(len(item["steps"])))
            rows.append({"instruction": prompt.messages[-1].content})
        imported = import_template(rows, name=name, marker="m")
        assert imported.num_exact == 500
        assert_renders_alike(imported.template, true)


def test_odd_rows_are_counted_and_shown():
    rows = make_rows(LAYOUTS["separate"], 300)
    rows[6] = {"instruction": "Write a poem.", "output": "Roses"}
    rows[41] = {"instruction": None, "output": "x"}
    rows[299]["instruction"] = rows[299]["instruction"].removesuffix("?")
    imported = import_template(rows, name="t")
    assert_renders_alike(imported.template, LAYOUTS["separate"])
    assert (imported.num_rows, imported.num_exact, imported.num_verdicts) == (300, 297, 298)
    assert [difference.line for difference in imported.differences] == [7, 42, 300]
    assert imported.differences[0].reason == (
        "at character 0 stands 'Write a poem.' instead of 'You mark homework.\\n1. Read.\\n2. Think: {x'"
    )
    assert "nothing stands in column 'instruction' or 'prompt'; its columns are instruction, output" in (
        imported.differences[1].reason
    )
    # The last 40 characters of the row, and the whole fixed text after the step.
    assert imported.differences[2].reason == (
        f"0 characters before its end stands {rows[299]['instruction'][-40:]!r} instead of "
        "'\\n\\nMark it. Is it good (Yes/No)?'"
    )


def test_too_many_odd_rows_are_an_error_unless_told_otherwise():
    rows = make_rows(LAYOUTS["separate"], 200)
    for index in range(0, 200, 20):
        rows[index]["instruction"] += " Thanks."
    with pytest.raises(PromptError) as caught:
        import_template(rows, name="t")
    # 10 of 200 rows: 95% follow, less than 99%.
    assert "only 190 of 200 rows follow the derived template, less than 99%" in str(caught.value)
    assert str(caught.value).count("\n  row ") == 5
    assert "\n  row 1: 0 characters before its end stands " in str(caught.value)
    imported = import_template(rows, name="t", min_share=0.95)
    assert imported.num_exact == 190
    assert len(imported.differences) == 5


def test_two_layouts_in_one_set_are_an_error():
    true = LAYOUTS["separate"]
    other = dataclasses.replace(true, user=true.user.replace("Written so far", "Already there"))
    rows = make_rows(true, 150, 1) + make_rows(other, 100, 2)
    with pytest.raises(
        PromptError, match=r"more than one layout: \d\d% of the problems end with|rows follow the derived"
    ):
        import_template(rows, name="t")


def rows_of_steps(true: PromptTemplate, *numbers: int) -> list[dict[str, str]]:
    draw = random.Random(0)
    rows = []
    for index in range(90):
        number = numbers[index % len(numbers)]
        prompt = true.render(words(draw, 20), [words(draw, 9) for _ in range(number)], number - 1)
        rows.append({"prompt": prompt.text, "chosen": "Is it good? Yes"})
    return rows


EVIDENCE = "numbered 1, 2, ...; among them rows that judge a first, second, third and later step"


@pytest.mark.parametrize("numbers", [(1,), (3,), (1, 2), (2, 3, 4)])
def test_missing_evidence_is_named(numbers: tuple[int, ...]):
    with pytest.raises(PromptError, match=EVIDENCE):
        import_template(rows_of_steps(LAYOUTS["separate"], *numbers), name="t")
    # The three kinds of rows that it takes are enough.
    assert import_template(rows_of_steps(LAYOUTS["separate"], 1, 2, 3), name="t").num_exact == 90


def test_a_list_needs_no_row_of_a_first_step():
    imported = import_template(rows_of_steps(LAYOUTS["one list"], 2, 3, 4), name="t")
    assert_renders_alike(imported.template, LAYOUTS["one list"])


def test_unnumbered_step_without_first_steps():
    true = LAYOUTS["number ahead, unnumbered step"]
    with pytest.raises(PromptError, match=EVIDENCE):
        import_template(rows_of_steps(true, 2, 3, 4, 5), name="t")


@pytest.mark.parametrize("user", [LAYOUTS["separate"].user, "{{problem}} So far {{previous_steps}} Now {{step}}"])
def test_one_problem_cannot_be_told_from_fixed_text(user: str):
    draw = random.Random(0)
    rows = []
    for _ in range(60):
        steps = [words(draw, 9) for _ in range(draw.randint(1, 5))]
        rows.append({"prompt": layout(user).render("What is 3 + 4?", steps, len(steps) - 1).text})
    with pytest.raises(PromptError, match="of several problems"):
        import_template(rows, name="t", marker="m")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "t: no row has an instruction: there are no rows"),
        ([{}], "nothing stands in column 'instruction' or 'prompt'; its columns are none"),
        ([{"text": "a"}], "its columns are text"),
        ([{"prompt": "a"}] * 50, "it needs 20 that differ"),
        ([{"prompt": f"{n} and words"} for n in range(50)], "t: no template can be derived from 50 rows"),
        ([{"prompt": "a" * n} for n in range(1, 50)], "with steps numbered 1, 2, ..."),
        ([{"prompt": 3}], "neither a text nor one user message"),
        ([{"prompt": [{"role": "user", "content": 3}]}], "neither a text nor one user message"),
        ([{"prompt": [{"role": "user", "content": "a"}] * 2}], "neither a text nor one user message"),
        ([{"prompt": [{"role": "tool", "content": "a"}]}], "neither a text nor one user message"),
        ([{"instruction": "a", "input": "b"}], "it has an 'input' beside its instruction"),
    ],
)
def test_rows_that_show_nothing(rows: list[dict[str, Any]], message: str):
    with pytest.raises(PromptError) as caught:
        import_template(rows, name="t", marker="m")
    assert message in str(caught.value)


def test_conversational_preference_rows_with_a_system_message():
    true = dataclasses.replace(LAYOUTS["separate"], system="You mark. {{name}}")
    rows = []
    for row in make_rows(true, 80):
        messages = [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["instruction"]}]
        rows.append(
            {
                "prompt": messages,
                "chosen": [{"role": "assistant", "content": row["output"]}],
                "rejected": [{"role": "assistant", "content": "I do not know."}],
            }
        )
    imported = import_template(rows, name="t")
    assert_renders_alike(imported.template, true)
    assert (imported.num_outputs, imported.num_verdicts) == (80, 80)


def test_system_column_and_named_columns():
    true = dataclasses.replace(LAYOUTS["separate"], system="You mark.")
    rows = [
        {"question": row["instruction"], "analysis": row["output"], "system": row["system"], "instruction": "no"}
        for row in make_rows(true, 80)
    ]
    imported = import_template(rows, name="t", instruction_column="question", output_column="analysis")
    assert imported.template.system == "You mark."
    assert imported.num_verdicts == 80
    for index, row in enumerate(rows):
        row["system"] = f"You mark sheet {index % 2}."
    with pytest.raises(PromptError, match="its system message is another"):
        import_template(rows, name="t", instruction_column="question", marker="m")


@pytest.mark.parametrize(
    ("outputs", "marker", "yes"),
    [
        (["So. Is it right? Yes", "Thus: Is it right? No."], "Is it right?", "Yes"),
        (["**Is it right?** Yes", "## **Is it right?** **No**"], "Is it right?", "Yes"),
        (["Verdict (yes or no): yes", "a\n\nVerdict (yes or no): no\n\n"], "Verdict (yes or no)", "yes"),
        (["<verdict>Yes</verdict>", "text\r\n<verdict>No</verdict>"], "<verdict", "Yes"),
        (["Answer: $\\boxed{Yes}$", "The Answer: $\\boxed{No}$"], "Answer: $\\boxed", "Yes"),
        (["Right (Yes/No)? Yes", "Right (Yes/No)? No", "cut off in the mid"], "Right (Yes/No)?", "Yes"),
    ],
)
def test_marker_is_what_the_last_lines_share(outputs: list[str], marker: str, yes: str):
    rows = make_rows(LAYOUTS["separate"], 60)
    for index, row in enumerate(rows):
        row["output"] = outputs[index % len(outputs)]
    imported = import_template(rows, name="t")
    assert imported.template.verdict.marker == marker
    assert imported.template.verdict.yes == yes
    ended = sum("cut off" not in output for output in outputs)
    assert imported.num_verdicts == 60 * ended // len(outputs)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("It is fine.", "0 of 60 outputs end in a line with Yes or No"),
        ("Yes", "no marker in common before it"),
        (None, "0 of 0 outputs"),
    ],
)
def test_marker_that_cannot_be_found(output: str | None, message: str):
    rows = [{**row, "output": output} for row in make_rows(LAYOUTS["separate"], 60)]
    with pytest.raises(PromptError) as caught:
        import_template(rows, name="t")
    assert message in str(caught.value)
    assert "name it with --marker" in str(caught.value)
    assert import_template(rows, name="t", marker="So:").template.verdict.marker == "So:"


def test_chat_can_be_told():
    rows = make_rows(LAYOUTS["separate"], 60)
    assert import_template(rows, name="t").template.chat
    assert not import_template(rows, name="t", chat=False).template.chat


# --- sources ------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    if ".json" in path.suffixes:
        text = json.dumps(rows, ensure_ascii=False)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("file", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.json.gz"])
def test_rows_from_files(tmp_path: Path, file: str):
    path = write_rows(tmp_path / file, make_rows(LAYOUTS["separate"], 120))
    imported = import_template(str(path), name="t", limit=100)
    assert_renders_alike(imported.template, LAYOUTS["separate"])
    assert (imported.num_rows, imported.num_exact, imported.source) == (100, 100, str(path))
    assert import_template(str(path), name="t", limit=None).num_rows == 120


def test_torn_lines_are_rows_that_differ(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in make_rows(LAYOUTS["separate"], 300)]
    path.write_text("\n".join([lines[0], "", '{"instruction": "cut', *lines[1:]]))
    imported = import_template(str(path), name="t")
    assert (imported.num_rows, imported.num_exact) == (301, 300)
    # The blank line is no row, but counts as a line of the file.
    assert [(difference.line, difference.reason) for difference in imported.differences] == [
        (3, "it is no JSON object")
    ]


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match="no such file"):
        import_template("nowhere.jsonl", name="t")


def test_rows_from_the_hub_are_streamed_at_a_pinned_revision(monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    hub = pytest.importorskip("huggingface_hub")
    rows = make_rows(LAYOUTS["separate"], 500)
    calls = []
    num_read = 0

    class Info:
        sha = "0123abc"

    class Api:
        def dataset_info(self, path: str, revision: str | None = None) -> Info:
            calls.append((path, revision))
            return Info()

    def load_dataset(path: str, config: str | None = None, **options: Any) -> Any:
        calls.append((path, config, options))

        def stream() -> Any:
            nonlocal num_read
            for row in rows:
                num_read += 1
                yield row

        return stream()

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    imported = import_template("someone/some-set?revision=v1&config=sft", name="t", limit=200)
    assert_renders_alike(imported.template, LAYOUTS["separate"])
    assert calls[0] == ("someone/some-set", "v1")
    assert calls[-1] == ("someone/some-set", "sft", {"split": "train", "revision": "0123abc", "streaming": True})
    assert imported.source == "someone/some-set@0123abc"
    assert (imported.num_rows, num_read) == (200, 200)


def test_imported_templates_survive_their_file():
    for name, true in LAYOUTS.items():
        imported: ImportedTemplate = import_template(make_rows(true, 60), name=name)
        assert PromptTemplate.from_toml(imported.template.to_toml(), "file.toml") == imported.template

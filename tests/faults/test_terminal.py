"""No control character of any source reaches a terminal or a log: every command, on hostile files, names and texts."""

from __future__ import annotations

import json
import logging
import re
import sys
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from commands import Done, forked, leaves, rprm, warm
from echoing import Reply, completion, serving

from rprm.prompts import PromptTemplate
from rprm.showing import escaped
from rprm.subcommands import Subcommand

#: Format characters that are seen: signs which enclose numbers, and marks.
VISIBLE = set(map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD)))
#: The title of the window; the screen is cleared; red by C1; DEL; the line again; directions; line and paragraph ends;
#: what has no width; a tag. Then markup and emoji of rich.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\r\u202e\u2066\u200e\u061c\u2028\u2029\u200b\ufeff\U000e0041[red]:smile:"
#: Of a file, as the command line has it: a byte that is no UTF-8, and a line that looks like one of ours.
NAME = f"{HOSTILE}\udcff\nrprm: spoofed"


def is_hidden(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in VISIBLE and character not in "\n\t"


def check(done: Done, *codes: int, styled: bool = False) -> str:
    """What a command printed, which must be harmless; it ended with one of the codes."""
    text = done.out + done.err
    if styled:
        text = re.sub(r"\x1b\[([\d;]*m|\?25[lh]|1A|2K)|\r", "", text)
    assert not set(filter(is_hidden, text)), ascii(text)
    assert "Traceback" not in text, text
    assert not [line for line in text.splitlines() if line.startswith("rprm: spoofed")], text
    assert done.code in (codes or (0, 1, 2, 3)), text
    return text


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of hostile files under a hostile name. What a command needs of another is made by it, in their order."""
    warm()
    made = tmp_path_factory.mktemp("terminal") / NAME
    made.mkdir()
    steps = ({"id": f"{HOSTILE}{n}", "problem": HOSTILE, "step": f"{HOSTILE}{n}", "label": n > 1} for n in range(4))
    bad = [
        {HOSTILE: 1},
        {"problem": HOSTILE, "steps": HOSTILE},
        {"problem": "\udcff", "steps": ["a"]},
        f"not JSON {HOSTILE}",
    ]
    solutions = [
        {"id": f"{HOSTILE}{n}", "problem": f"{HOSTILE} {n}", "steps": [f"{HOSTILE}{n}", "b\n"], "label": n % 3 - 1}
        for n in range(6)
    ]
    write(made / f"{NAME}.jsonl", *solutions, *bad)
    write(made / "steps.jsonl", *steps, *bad)
    write(made / "solved.jsonl", *(one | {"label": -1, "answer": "5"} for one in solutions), *bad)
    items = [one | {"generator": HOSTILE, "final_answer_correct": one["label"] < 0} for one in solutions]
    write(made / "items" / "math.jsonl", *items)
    write(made / "items" / f"{HOSTILE}.jsonl", *items)
    sample = (Path(__file__).parents[1] / "excerpts" / "prmbench" / "sample.jsonl").read_text().splitlines()
    prm = [json.loads(line) for line in sample[:4]]
    write(made / "prm.jsonl", *(row | {"idx": f"{HOSTILE}{row['idx']}", "question": HOSTILE} for row in prm), *bad)
    problems = [
        {"id": f"{HOSTILE}{n}", "problem": f"{HOSTILE} {n}", "answer": f"{HOSTILE}", "set": HOSTILE} for n in range(3)
    ]
    write(made / "problems.jsonl", *problems, *bad)
    write(made / "candidates.jsonl", *({"id": one["id"], "solutions": [HOSTILE, "b"]} for one in problems), *bad)
    template = PromptTemplate(HOSTILE, f"{HOSTILE} {{{{problem}}}} {{{{previous_steps}}}} {{{{step}}}}", system=HOSTILE)
    (made / "t.toml").write_text(template.to_toml())
    (made / "broken.toml").write_text(f'"{escaped(HOSTILE[:-14])}" = 1\n')
    rows = []
    for n in range(40):
        prompt = f"{HOSTILE}: problem {n}?\n\nStep 1: {n}"
        rows.append({"instruction": prompt, "output": f"{HOSTILE}\nIs it right? {'Yes' if n % 2 else 'No'}"})
    write(made / "rows.jsonl", *rows, {HOSTILE: HOSTILE})
    return made


#: A run of each command that goes as far as it can on hostile data, and its exit code.
RUNS: dict[str, tuple[list[str], int]] = {
    "judge": ([f"{NAME}.jsonl", "-m", "scripted:", "-o", f"judged {NAME}", "--analyses"], 3),
    "models": ([NAME], 1),
    "data steps": ([f"{NAME}.jsonl", "-o", f"steps {NAME}", "-x", "x=steps.jsonl", "--strict"], 1),
    "data rollouts": (["solved.jsonl", "-p", "scripted:", "-n", "2", "-o", f"rollouts {NAME}"], 1),
    "data agree": ([f"{NAME}.jsonl", "-m", "critic:scripted:", "-o", f"agreed {NAME}"], 3),
    "data inject": (["solved.jsonl", "-m", "scripted:", "-o", f"injected {NAME}"], 3),
    "data analyses": (["steps.jsonl", "-m", "scripted:", "-o", f"analyses {NAME}"], 3),
    "data cold-start": ([f"analyses {NAME}", "-o", f"cold {NAME}", "--prompt", "t.toml"], 0),
    "data pairs": ([f"analyses {NAME}", "-o", f"pairs {NAME}", "--prompt", "t.toml"], 1),
    "data import": (["rows.jsonl", "-o", f"imported {NAME}", "--prompt", "broken.toml"], 1),
    "bench processbench": (["--data", "items", "-m", "scripted:", "-o", f"bench {NAME}"], 0),
    "bench prmbench": (["--data", "prm.jsonl", "-m", "scripted:"], 3),
    "bench hard2verify": (["--data", f"{NAME}.jsonl", "-m", "scripted:"], 1),
    "bench steps": (["steps.jsonl", "-m", "scripted:"], 3),
    "bench compare": ([f"bench {NAME}", f"bench {NAME}"], 0),
    "bench curve": ([f"none {NAME}"], 1),
    "bench mathematics": (["--set", "math500", "--data", "problems.jsonl", "--candidates", "candidates.jsonl"], 3),
    "reproduce": ([NAME], 1),
    "serve": (["-m", NAME, "--policy", NAME], 1),
    "search sample": (["--problems", "problems.jsonl", "-p", "scripted:", "-n", "2", "-o", f"sampled {NAME}"], 3),
    "search best-of-n": (["--candidates", f"sampled {NAME}", "-m", "scripted:", "-o", f"chosen {NAME}"], 0),
    "search guided": (["--problems", "problems.jsonl", "-p", "scripted:", "-m", "scripted:", "-o", "guided"], 3),
    "search beam": (["--problems", "problems.jsonl", "-p", "scripted:", "-m", "scripted:", "-o", "beam"], 3),
    "search dvts": (["--problems", "problems.jsonl", "-p", "scripted:", "-m", "scripted:", "-o", "dvts"], 3),
    "search show": (["guided"], 0),
    "report": ([f"judged {NAME}", "--data", f"{NAME}.jsonl", "-o", f"{NAME}.html"], 0),
    "runs list": (["."], 0),
    "show": ([f"judged {NAME}", f"{HOSTILE}1", "--analyses"], 0),
    "export": ([f"judged {NAME}", "--to", f"{NAME}.csv"], 0),
    "prompts list": ([], 0),
    "prompts show": (["t.toml", "--example"], 0),
    "prompts import": (["rows.jsonl", "-o", f"{NAME}.toml"], 1),
    "engines check": (["scripted:"], 0),
    "train sft": ([NAME, "-m", NAME, "-o", "sft"], 1),
    "train dpo": ([NAME, "-m", NAME, "-o", "dpo"], 1),
    "train grpo": ([f"{NAME}.jsonl", "-m", NAME, "-o", "grpo"], 1),
    "train classifier": ([f"{NAME}.jsonl", "-m", NAME, "-o", "classifier"], 1),
    "evolve": ([NAME, "-m", NAME, "-o", "rounds"], 1),
    "lab world": (["-o", f"world {NAME}", "--steps", "4", "--test", "2"], 0),
    "lab base": ([NAME, "-o", "base"], 1),
    "lab steps": ([f"world {NAME}", "-o", f"taken {NAME}", "--count", "1"], 0),
    "lab critiques": (["steps.jsonl", "-m", f"lab:{NAME}", "-o", "critiques"], 1),
    "lab run": (["-o", f"lab {NAME}", "--dry-run", "--size", "tiny"], 0),
    "lab report": ([f"lab {NAME}"], 1),
    "lab pack": ([f"lab {NAME}", "-o", f"{NAME}.tar.xz"], 1),
}


#: Whose output a command reads.
NEEDS = {
    "data cold-start": "data analyses", "data pairs": "data analyses", "bench compare": "bench processbench",
    "runs list": "judge", "show": "judge", "export": "judge",
    "report": "judge", "search best-of-n": "search sample", "search show": "search guided", "lab steps": "lab world",
}  # fmt: skip


def test_every_command_has_a_run() -> None:
    assert set(leaves()) <= set(RUNS)


@pytest.fixture(scope="module")
def ran(folder: Path) -> Callable[[str], Done]:
    """What a command of `RUNS` came to; each is run once."""

    @cache
    def run(words: str) -> Done:
        if words in NEEDS:
            run(NEEDS[words])
        return rprm(*words.split(), *RUNS[words][0], folder=folder)

    return run


#: They load torch first, or have much in common with others.
SLOW = [
    "train sft",
    "train dpo",
    "train grpo",
    "train classifier",
    "search beam",
    "search dvts",
    "data pairs",
    "lab base",
    "lab pack",
]


@pytest.mark.parametrize(
    "words", [pytest.param(words, marks=pytest.mark.slow if words in SLOW else ()) for words in RUNS]
)
def test_a_command_on_hostile_data(words: str, ran: Callable[[str], Done]) -> None:
    if words.startswith("lab ") and words not in leaves():
        pytest.skip("rprm-lab is not installed")
    text = check(ran(words), RUNS[words][1])
    # Shown, not dropped, so that the row or the file can be found.
    if words not in ("prompts list", "engines check", "bench processbench", "data import"):
        assert re.search(r"\\(x1b|u001b)\]0;owned", "".join(text.split())), text


def test_json_on_a_terminal_is_harmless_and_says_the_same(ran: Callable[[str], Done], folder: Path) -> None:
    ran("judge")
    done = rprm("judge", *RUNS["judge"][0], "--json", folder=folder)
    check(done, 3)
    results = (folder / f"judged {NAME}" / "results.jsonl").read_bytes().splitlines()
    rows = [{name: value for name, value in json.loads(row).items() if name != "crc"} for row in results]
    assert list(map(json.loads, done.out.splitlines())) == rows
    assert HOSTILE in json.loads(done.out.splitlines()[0])["id"]


@pytest.mark.parametrize("words", ["judge", "search show", "bench steps", "models"])
def test_styling_is_the_only_control_sequence(words: str, ran: Callable[[str], Done], folder: Path) -> None:
    if words in NEEDS:
        ran(NEEDS[words])
    arguments = ["r-prm-7b"] if words == "models" else RUNS[words][0]
    done = rprm(*words.split(), *arguments, folder=folder, FORCE_COLOR="1", TERM="xterm-256color")
    check(done, styled=True)
    assert "\x1b[1m" in done.out or "\x1b[2m" in done.out
    assert r"\u001b[1m" not in done.out
    assert r"\u001b[2m" not in done.out


def test_a_template_that_is_shown_can_be_read_again(folder: Path) -> None:
    text = "\u202e\u2066\x1b[2J\x9b {{problem}}\n'''\\ {{previous_steps}}\n{{step}}\r\n\u2028"
    template = PromptTemplate("a", text, system="\u200f\n\u00ad")
    (folder / "again.toml").write_bytes(template.to_toml().encode())
    done = rprm("prompts", "show", "again.toml", folder=folder)
    check(done, 0)
    assert PromptTemplate.from_toml(done.out, "again.toml") == template


def test_logs_and_tracebacks_of_libraries(folder: Path) -> None:
    def fail() -> None:
        import rprm.reading

        def read(*_: Any, **__: Any) -> Any:
            logging.getLogger("a library").warning("odd: %s", HOSTILE)
            sys.stderr.writelines([f"{HOSTILE}\n"])
            raise ValueError(NAME)

        rprm.reading.read_solutions = read

    done = rprm("judge", f"{NAME}.jsonl", "-m", "scripted:", folder=folder, before=fail)
    text = done.out + done.err
    assert "Traceback" in text
    assert not set(filter(is_hidden, text)), ascii(text)
    assert text.count(r"\u001b]0;owned") == 3


@pytest.mark.parametrize("status", [200, 404, *(pytest.param(one, marks=pytest.mark.slow) for one in (400, 401, 500))])
def test_what_a_server_says(status: int, folder: Path) -> None:
    def answer(path: str, headers: dict[str, str], body: dict[str, Any]) -> Reply:
        if path.endswith("/models"):
            return Reply({"data": [{"id": HOSTILE}, {"id": f"{HOSTILE}2"}]})
        if status == 200:
            return Reply(completion(f"{HOSTILE}\nIs the step correct (Yes/No)? Yes", body))
        return Reply({"error": {"message": f"no {HOSTILE}", "code": HOSTILE}}, status)

    with serving(answer) as url:
        for command in (["judge", f"{NAME}.jsonl", "-k", "1", "--analyses", "-m"], ["engines", "check"]):
            done = rprm(*command, f"openai:{HOSTILE}@{url}?max_retries=0", folder=folder)
            check(done)
            assert (done.code in (0, 3)) == (status == 200), done.err


def test_damaged_and_foreign_run_folders(ran: Callable[[str], Done], folder: Path) -> None:
    ran("judge")
    run = folder / f"judged {NAME}"
    manifest, results = (run / "manifest.json").read_bytes(), (run / "results.jsonl").read_bytes()
    found = json.loads(manifest)

    def changed(**values: Any) -> bytes:
        return json.dumps(found | values).encode()

    cases = [
        ("manifest.json", changed(stage=HOSTILE)),
        ("manifest.json", changed(settings=found["settings"] | {"threshold": HOSTILE, HOSTILE: HOSTILE})),
        ("manifest.json", changed(status=HOSTILE)),
        ("manifest.json", HOSTILE.encode()),
        ("results.jsonl", results.replace(b'"id":"', b'"id":"\xe2\x80\xae', 1)),
        ("results.jsonl", f"{HOSTILE}\n".encode() + results),
        ("results.jsonl", json.dumps({HOSTILE: HOSTILE}).encode() + b"\n" + results),
    ]
    for name, content in cases:
        (run / name).write_bytes(content)
        check(rprm("judge", *RUNS["judge"][0], folder=folder), 1, 3)
        (run / "manifest.json").write_bytes(manifest)
        (run / "results.jsonl").write_bytes(results)


@pytest.mark.slow
def test_the_log_of_a_stage(folder: Path) -> None:
    """What a command of several stages keeps of each, and tells of one that fails."""
    done = forked(lambda: Subcommand(folder / "stage", ["judge", NAME]).wait())
    text = (folder / "stage.log").read_bytes().decode() + done.err
    assert not set(filter(is_hidden, text)), ascii(text)
    assert text.count(r"\u001b]0;owned") >= 3
    assert "its log ends" in done.err


def test_every_hidden_character_is_escaped_and_no_other() -> None:
    known = [one for one in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(one) != "Cn"]
    wrong = [ascii(one) for one in known if (escaped(f"a{one}") != f"a{one}") != is_hidden(one)]
    assert wrong == []
    # Joiners shape words and emoji, and hide nothing there.
    for text in ("\u0645\u06cc\u200c\u062e\u0648\u0627", "\U0001f469\u200d\U0001f4bb", "\u0915\u094d\u200d\u0937"):
        assert escaped(text) == text
    assert escaped("a\u200db") == r"a\u200db"


@pytest.mark.slow
def test_every_option_with_a_value(ran: Callable[[str], Done], folder: Path, figures: Callable[..., None]) -> None:
    """A hostile value of each, where the command could do its work but for it; of options of one name one."""
    seen: set[str] = set()
    for words, command in leaves().items():
        for parameter in command.params:
            name = parameter.opts[0]
            if parameter.param_type_name == "argument" or parameter.is_flag or words in SLOW or name in seen:
                continue
            seen.add(name)
            if words in NEEDS:
                ran(NEEDS[words])
            check(rprm(*words.split(), *RUNS[words][0], name, NAME, folder=folder))
    assert len(seen) > 50
    figures(commands=len(leaves()), options_with_hostile_values=len(seen))

"""The page, in a real browser: `playwright` from PyPI and the system's Chromium, where both are there."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import Serve

from rprm.cli.runs import ShownRuns
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.reading import Source, read_solutions
from rprm.rewarders import load_rewarder
from rprm.rewarders.base import judge_source

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> & \u202egnp"


def test_every_part_of_the_page_is_the_servers_own(serve: Serve) -> None:
    client = serve()
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for name in ("page.css", "page.js", "events.js", "runs.js"):
        assert client.get(f"/page/{name}").status_code == 200
        assert "http" not in client.get(f"/page/{name}").text
    assert "http" not in page.text
    assert "innerHTML" not in client.get("/page/page.js").text
    for name in ("..%2fapp.py", "%2e%2e/app.py", "nothing.js"):
        assert client.get(f"/page/{name}").status_code == 404


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


def is_fault(message: Any) -> bool:
    return message.type == "error" and "the server responded with a status of 422" not in message.text


@pytest.fixture
def page(serve: Serve, browser: Any) -> Iterator[Any]:
    """The page of a judge that calls steps wrong which say so, and repeats hostile text in its analyses."""

    def reply(prompt: Any, sampling: Any) -> ScriptedReply:
        judged = prompt.messages[-1].content.rpartition("judge")[2]
        p_yes = None if "lost" in judged else 0.1 if "wrong" in judged else 0.9
        return ScriptedReply(f"I read: {HOSTILE}", p_yes, 12)

    client = serve(judge=ScriptedEngine(reply=reply, delay=0.05), num_analyses=2)
    opened = browser.new_page(viewport={"width": 390, "height": 844})
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if is_fault(message) else None)
    opened.goto(str(client.base_url))
    yield opened
    assert errors == []
    opened.close()


@pytest.mark.slow
def test_typed_in_judged_and_read(page: Any) -> None:
    page.locator("#problem").fill(f"What is 1 + 1? {HOSTILE}")
    page.locator("#solution").fill(f"One and one. {HOSTILE}\n\nIt is 2.")
    page.keyboard.press("Control+Enter")
    page.locator("#status", has_text="analyses").wait_for()
    assert page.locator(".step").count() == 2
    assert HOSTILE in page.locator(".step .text").first.text_content()
    assert page.locator(".problem").text_content() == f"What is 1 + 1? {HOSTILE}"
    assert "2 steps judged, 4 analyses" in page.locator("#status").text_content()
    assert page.locator("#model").text_content() == "judge"
    # By keyboard: to the first step, on to the second, its analyses opened.
    page.locator(".step").first.focus()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    opened = page.locator(".step").nth(1).locator("details")
    assert opened.get_attribute("open") is not None
    assert HOSTILE in opened.locator("pre").first.text_content()
    assert page.title() == "rprm"
    # Nothing is wider than a phone.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_a_file_and_a_file_that_is_none(page: Any, tmp_path: Path) -> None:
    rows = [{"id": f"row {number}", "problem": "p", "steps": ["a", "b"], "label": 1} for number in range(3)]
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("\n".join(map(json.dumps, rows)))
    bad.write_text('{"problem": "p", "steps": ["a"]}\nnothing')
    page.set_input_files("#file", good)
    page.locator("#status", has_text="analyses").wait_for()
    assert page.locator(".step.right, .step.wrong").count() == 6
    assert page.locator("h2").all_text_contents() == ["row 0", "row 1", "row 2"]
    assert page.locator(".verdict").first.text_content().endswith("; the label says step 2")
    page.set_input_files("#file", bad)
    page.locator("#status.failed").wait_for()
    assert "bad.jsonl: line 2 is not JSON" in page.locator("#status").text_content()
    # Nothing of the file before is left.
    assert page.locator(".solution").count() == 0
    (tmp_path / "rows.csv").write_text("problem,solution\np,s\n")
    page.set_input_files("#file", tmp_path / "rows.csv")
    page.locator("#status", has_text="rows.csv: the page takes .jsonl, .json and .txt").wait_for()
    chat = [{"role": "user", "content": "1 + 1 = ?"}, {"role": "assistant", "content": "It is 2."}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat}))
    page.set_input_files("#file", tmp_path / "chat.jsonl")
    page.locator("#status", has_text="analyses").wait_for()
    assert page.locator(".problem").text_content() == "1 + 1 = ?"


@pytest.mark.slow
def test_what_the_model_does_not_know_is_noted(serve: Serve, browser: Any) -> None:
    page = browser.new_page()
    page.goto(str(serve(judge=ScriptedEngine("embedded")).base_url))
    page.locator("#problem").fill("Solve.")
    page.locator("#solution").fill("x")
    page.get_by_role("button", name="Judge").click()
    page.locator(".notes", has_text="outside what the embedded model knows: the word 'Solve'").wait_for()


@pytest.mark.slow
def test_runs_are_read_and_filtered(serve: Serve, browser: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"id": f"{HOSTILE} {n}", "problem": HOSTILE, "steps": [HOSTILE, "b"], "label": -1} for n in range(120)]
    data.write_text("\n".join(map(json.dumps, rows)))
    source = Source(str(data))
    for name, yes_rate in (("first", 1.0), ("second", 0.0)):
        rewarder = load_rewarder(ScriptedEngine(yes_rate=yes_rate, noise=0.0), num_analyses=2)
        reading = judge_source(rewarder, read_solutions(source), source=source.inspect(), output=tmp_path / name)
        with ThreadPoolExecutor(1) as thread:  # Playwright's loop runs in this one.
            thread.submit(asyncio.run, reading).result()
    client = serve(runs=ShownRuns(tmp_path))
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(str(client.base_url))
    page.locator("#status", has_text="100 or more solutions").wait_for()
    page.get_by_role("button", name="More").click()
    page.locator("#status", has_text="120 solutions").wait_for()
    assert page.locator("#list tbody tr").count() == 120
    page.get_by_label("show").select_option("differ")
    page.locator("#status", has_text="choose a run beside this one").wait_for()
    page.get_by_label("beside").select_option("second")
    page.get_by_label("show").select_option("missed")
    page.locator("#status", has_text="0 solutions").wait_for()
    page.get_by_label("show").select_option("differ")
    page.locator("#status", has_text="100 or more").wait_for()
    first = page.locator("#list tbody tr").first
    assert first.locator("td").all_text_contents()[:3] == ["none", "none", "step 1"]
    first.locator("a").click()
    page.locator(".solution").wait_for()
    assert HOSTILE in page.locator(".step .text").first.text_content()
    assert "the label says none" in page.locator(".verdict").text_content()
    # A link to a solution opens it.
    other = browser.new_page()
    other.goto(page.url)
    other.locator(".solution .step").first.wait_for()
    assert other.title() == page.title() == "rprm"
    # One of another run chooses that run too; one of none clears what was shown.
    other.goto(page.url.replace("run=first", "run=second"))
    other.locator(".solution h2", has_text="of second").wait_for()
    assert other.locator("#run").input_value() == "second"
    other.goto(page.url.replace("run=first", "run=third"))
    other.locator("#status", has_text="no run 'third' here").wait_for()
    assert other.locator(".solution").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_what_the_server_refuses_is_told(page: Any) -> None:
    page.locator("#problem").fill("p")
    page.locator("#solution").fill("<think>only thinking")
    page.get_by_role("button", name="Judge").click()
    page.locator("#status.failed").wait_for()
    assert "nothing but thinking" in page.locator("#status").text_content()
    assert page.get_by_role("button", name="Judge").is_enabled()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(page: Any, scheme: str) -> None:
    """Contrast of at least 4.5 to 1 for every text (WCAG 2.2, 1.4.3), a label for every field, headings in order."""
    page.emulate_media(color_scheme=scheme)
    page.locator("#problem").fill("p")
    page.locator("#solution").fill("Right.\n\nThis is wrong.\n\nThis is lost.")
    page.keyboard.press("Control+Enter")
    page.locator("#status", has_text="analyses").wait_for()
    for element in page.locator("summary:visible").all():
        element.click()
    weakest = page.evaluate(
        """() => {
          const channels = (text) => text.match(/[\\d.]+/g).map(Number);
          const light = ([r, g, b]) => {
            const part = (c) => ((c /= 255), c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
          };
          const ground = (one) => {
            for (; one; one = one.parentElement) {
              const found = channels(getComputedStyle(one).backgroundColor);
              if (found.length < 4 || found[3] > 0) return found;
            }
            return [255, 255, 255];
          };
          const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          let weakest = [21, ""];
          while (texts.nextNode()) {
            const one = texts.currentNode.parentElement;
            if (!texts.currentNode.textContent.trim() || !one.checkVisibility()) continue;
            const [a, b] = [light(channels(getComputedStyle(one).color)), light(ground(one))];
            const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (ratio < weakest[0]) weakest = [ratio, texts.currentNode.textContent];
          }
          return weakest;
        }"""
    )
    assert weakest[0] >= 4.5, weakest
    unlabelled = "[...document.querySelectorAll('textarea, input')].filter((one) => !one.labels.length).length"
    assert page.evaluate(unlabelled) == 0
    page.locator("#problem").focus()
    order = []
    for _ in range(5):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert order[:3] == ["solution", "judge", "file"]
    assert order[3].startswith("step")


@pytest.mark.slow
def test_an_answer_that_another_has_overtaken_is_dropped(serve: Serve, browser: Any, tmp_path: Path) -> None:
    for name in ("first", "second"):
        data = tmp_path / f"{name}.jsonl"
        data.write_text(json.dumps({"id": f"of {name}", "problem": name, "steps": [f"step of {name}"]}))
        source = Source(str(data))
        reading = judge_source(
            load_rewarder(ScriptedEngine(), num_analyses=1), read_solutions(source), source=source.inspect(),
            output=tmp_path / name,
        )  # fmt: skip
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, reading).result()
    client = serve(runs=ShownRuns(tmp_path))
    page = browser.new_page()
    held: list[Any] = []

    def route(one: Any) -> None:
        if "run=second" in one.request.url:
            held.append((one, one.fetch()))
        else:
            one.continue_()

    page.route("**/v1/runs/solution*", route)
    page.goto(str(client.base_url))
    page.locator("#list a", has_text="of first").wait_for()
    # Asked for second, then for first again; the answer of second comes last.
    page.locator("#run").select_option("second")
    page.locator("#run").select_option("first")
    page.locator("#list a", has_text="of first").wait_for()
    page.evaluate("location.hash = new URLSearchParams({run: 'second', id: 'of second'})")
    page.evaluate("location.hash = new URLSearchParams({run: 'first', id: 'of first'})")
    page.locator(".step", has_text="step of first").wait_for()
    assert len(held) == 2
    for one, answer in held:
        one.fulfill(response=answer)
    page.wait_for_timeout(300)
    assert page.locator("#list a").all_text_contents() == ["of first"]
    assert page.locator(".step .text").all_text_contents() == ["step of first"]
    page.close()


@pytest.mark.slow
def test_a_step_after_a_critics_first_error(serve: Serve, browser: Any) -> None:
    """It has a share of critiques, and is called neither correct nor wrong."""
    client = serve(judge="critic:scripted:?noise=0.5", num_analyses=3)
    many = [{"problem": f"p{number}", "steps": ["a", "b", "c"]} for number in range(20)]
    found = client.post("/v1/rewards", json={"solutions": many}).json()["data"]
    number = next(place for place, one in enumerate(found) if one["first_error"] == 0)
    page = browser.new_page()
    page.goto(str(client.base_url))
    page.locator("#problem").fill(f"p{number}")
    page.locator("#solution").fill("a\n\nb\n\nc")
    page.keyboard.press("Control+Enter")
    page.locator("#status", has_text="analyses").wait_for()
    told = [text.partition(", ")[2] for text in page.locator(".number").all_text_contents()]
    assert told == ["wrong", "after the first error", "after the first error"]
    page.close()

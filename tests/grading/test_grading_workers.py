r"""Worker processes: nothing that an answer says can stall, crash or outlive a run."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rprm.grading import AnswerPair, Grader

pytest.importorskip("math_verify")

LINUX = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")

#: Compared with 5 these would run for hours, or fill any memory.
ENDLESS = ["9^{9^9}", "10^{10^{10}}", "10000000!", r"\prod_{k=1}^{10000000} k"]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(num_workers=2, limit_s=0.5) as grader:
        yield grader


def outcomes(grader: Grader, *pairs: tuple[str, str]) -> list[str]:
    return [grade.outcome for grade in grader.grade_all(AnswerPair(gold, answer) for gold, answer in pairs)]


def descendants(pid: int) -> set[int]:
    """Processes that a process has started, and theirs."""
    found: set[int] = set()
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, tasks.read_text().split()):
            found |= {child, *descendants(child)}
    return found


def workers() -> set[int]:
    """Worker processes of this one (other tests may have servers running)."""
    started = descendants(os.getpid())
    return {pid for pid in started if b"rprm.grading.sandbox" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: set[int]) -> set[int]:
    for _ in range(600):
        pids = {pid for pid in pids if is_running(pid)}
        if not pids:
            break
        time.sleep(0.05)
    return pids


def test_what_never_ends_is_stopped_and_the_rest_goes_on(grader: Grader) -> None:
    pairs = [pair for text in ENDLESS for pair in (("5", text), (r"\sqrt{12}", r"2\sqrt{3}"), ("x+1", "1+x"))]
    found = outcomes(grader, *pairs)
    assert found[0::3] == ["timeout"] * len(ENDLESS)
    assert set(found[1::3] + found[2::3]) == {"equal"}
    # It is remembered: asked again, it costs nothing.
    assert outcomes(grader, *pairs) == found


def test_memory_is_limited() -> None:
    # 2^(9 * 10^9) is a number of a gigabyte; sympy itself would take the failure for "different".
    with Grader(num_workers=1, limit_s=20.0, limit_bytes=300 << 20) as grader:
        assert outcomes(grader, ("5", "2^{9000000000}"), ("x+1", "1+x")) == ["out of memory", "equal"]


@LINUX
def test_a_worker_that_is_killed_costs_one_comparison(grader: Grader) -> None:
    assert outcomes(grader, ("x+2", "2+x")) == ["equal"]
    before = workers()
    assert before
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert wait_until_gone(before) == set()
    found = outcomes(grader, *((f"x+{number}", f"{number}+x") for number in range(10, 20)))
    # Two workers: each may lose the comparison at which it finds its process gone.
    assert found.count("crashed") <= 2
    assert found.count("equal") + found.count("crashed") == 10


def test_texts_are_never_evaluated(grader: Grader, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    code = f"open('{trace}', 'w')"
    texts = [
        code,
        f"__import__('os').system('touch {trace}')",
        f"\\text{{{code}}}",
        f"1 + {code}",
        f"\\operatorname{{{code}}}(1)",
        f"x_{{{code}}}",
        f'Integer(1).__class__("{code}")',
    ]
    outcomes(grader, *((gold, text) for text in texts for gold in ("5", text + "+0")))
    assert not trace.exists()


def test_sympy_evaluates_no_text() -> None:
    # In a process of its own: a function of sympy is removed.
    program = (
        "import rprm.grading.sandbox\n"
        "from sympy import sympify\n"
        "from sympy.parsing import sympy_parser\n"
        "for text in ('x', '1+1', '12', '__import__(\"os\")', '[1]', 'Integer(1).p', '9**9'):\n"
        "    for read in (sympify, sympy_parser.parse_expr):\n"
        "        try:\n"
        "            read(text)\n"
        "        except Exception as error:\n"
        "            if 'eval_expr' in str(error):\n"
        "                continue\n"
        "        raise SystemExit(f'evaluated: {text}')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_threads_and_event_loops(grader: Grader) -> None:
    pairs = [("x+1", "1+x"), ("x+1", "x"), ("2x", "x+x")]
    found: dict[int, list[str]] = {}

    def grade(thread: int) -> None:
        found[thread] = outcomes(grader, *pairs)

    threads = [threading.Thread(target=grade, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [["equal", "different", "equal"]] * 8

    async def both() -> tuple[int, list[str], list[int]]:
        ticks = 0
        pairs = [AnswerPair("7", "9^{9^{8}}"), AnswerPair("3x", "x+2x")]
        grading = asyncio.create_task(asyncio.to_thread(grader.grade_all, pairs))
        while not grading.done():
            ticks += 1
            await asyncio.sleep(0.01)
        groups = await asyncio.to_thread(grader.group_equivalent, ["x", "2x-x"])
        return ticks, [grade.outcome for grade in grading.result()], groups

    ticks, graded, groups = asyncio.run(both())
    assert ticks > 5  # The loop went on while the workers did.
    assert graded == ["timeout", "equal"]
    assert groups == [0, 0]


@LINUX
def test_workers_start_only_when_needed_and_end_when_closed() -> None:
    grader = Grader(num_workers=2)
    before = workers()
    assert outcomes(grader, ("1/2", "0.5"), ("x", "x"), ("(1,2)", "(2,1)")) == ["equal", "equal", "different"]
    assert workers() == before
    assert outcomes(grader, ("2x", "x+x")) == ["equal"]
    started = workers() - before
    grader.close()
    assert wait_until_gone(started) == set()
    # A closed grader starts anew.
    assert outcomes(grader, ("3x", "x+2x")) == ["equal"]
    grader.close()


PROGRAM = """
import os, signal, sys, threading, time
from rprm.grading import AnswerPair, Grader
# A job in a shell's background ignores it, and so would what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
grader = Grader(num_workers=2, limit_s=100.0)
grader.grade_all([AnswerPair("2x", "x+x")])
hanging = [AnswerPair("5", text) for text in ("9^{9^9}", "10000000000!")]
threading.Thread(target=grader.grade_all, args=(hanging,), daemon=True).start()
time.sleep(3.0)
print("ready", flush=True)
time.sleep(600.0)
"""


@LINUX
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_workers_end_with_their_parent(how: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    with parent:
        assert parent.stdout.readline() == b"ready\n"
        started = descendants(parent.pid)
        assert len(started) >= 3  # Two keepers, and their children in the midst of it.
        parent.send_signal(how)
        parent.wait(timeout=60)
    assert wait_until_gone(started) == set()


@LINUX
def test_a_fork_has_workers_of_its_own(grader: Grader) -> None:
    program = (
        "import os, sys\n"
        "from rprm.grading import AnswerPair, Grader\n"
        "with Grader(num_workers=1) as grader:\n"
        "    assert grader.grade_all([AnswerPair('2x', 'x+x')])[0].correct\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        ok = grader.grade_all([AnswerPair('3x', 'x+2x')])[0].correct\n"
        "        grader.close()\n"
        "        os._exit(0 if ok else 1)\n"
        "    _, status = os.waitpid(child, 0)\n"
        "    assert status == 0\n"
        "    assert grader.grade_all([AnswerPair('4x', '2x+2x')])[0].correct\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_an_interrupted_batch_begins_nothing_further() -> None:
    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    with Grader(num_workers=1) as grader:
        assert outcomes(grader, ("2x", "x+x")) == ["equal"]
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        begin = time.monotonic()
        with pytest.raises(Interrupt):
            outcomes(grader, *(("5", f"9^{{9^{{9}}}}+{number}") for number in range(100)))
        signal.signal(signal.SIGALRM, previous)
        assert time.monotonic() - begin < 3.0  # Not even the comparison in hand is waited for (its limit is 5 s).
        # The reply to what was interrupted is not taken for that of the next question.
        assert outcomes(grader, ("3x", "x+2x"), ("3x", "x+x")) == ["equal", "different"]


@pytest.mark.slow
@LINUX
def test_a_stopped_worker_is_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rprm.grading.grader._PATIENCE_S", 1.0)
    with Grader(num_workers=1, limit_s=0.1) as grader:
        before = workers()
        assert outcomes(grader, ("2x", "x+x")) == ["equal"]
        for pid in workers() - before:
            os.kill(pid, signal.SIGSTOP)
        assert outcomes(grader, ("3x", "x+2x")) == ["timeout"]
        assert outcomes(grader, ("4x", "x+3x")) == ["equal"]

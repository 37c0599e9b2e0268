"""Search trees in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rprm.report.solutions import panel, plain
from rprm.search.trees import ROOT, SearchNode, SearchTree

#: By what became of a node, its mark and style.
_MARKS = {"kept": ("●", "bold"), "finished": ("■", "bold green"), "pruned": ("○", "dim"), "dropped": ("·", "dim")}


def render_tree(tree: SearchTree, *, max_characters: int | None = None) -> RenderableType:
    """A problem's trees round by round: what was proposed, what it was worth, what was kept.

    Model and input text is shown as it is: no markup in it is interpreted, and control characters are dropped.

    Args:
        max_characters: of each step; a longer one is cut. None shows all.
    """
    chosen = {node.id for node in tree.path(tree.chosen)} if tree.chosen is not None else set()
    parts: list[RenderableType] = [Text(plain(tree.problem.problem), style="italic"), Text("")]
    for number, end in enumerate(tree.ends):
        if len(tree.ends) > 1:
            parts.append(Text(f"tree {number + 1}", style="bold"))
        nodes = [node for node in tree.nodes if node.tree == number]
        parts.append(_rounds(nodes, chosen, tree.strategy.beam_size > 1, max_characters))
        why = [plain(refusal.reason) for refusal in tree.refusals if refusal.tree == number]
        parts.append(Text("\n".join([f"ended: {end}", *why]), style="dim"))
    conclusion = "no solution: not one step could be kept"
    if tree.chosen is not None:
        what = "chosen" if tree.nodes[tree.chosen].fate == "finished" else "unfinished, chosen"
        score = _range(*tree.score(tree.chosen))
        conclusion = f"{what}: score ({tree.strategy.aggregation}) {score}; {tree.num_rounds} rounds"
    return panel(tree.id, parts, conclusion, "green" if tree.chosen is not None and not tree.fell_back else "yellow")


def _rounds(nodes: Sequence[SearchNode], chosen: set[int], is_beam: bool, max_characters: int | None) -> Table:
    table = Table(box=None, padding=(0, 1), show_header=True, header_style="dim", expand=True)
    table.add_column("round", justify="right", style="dim", no_wrap=True)
    table.add_column("", no_wrap=True)
    if is_beam:
        table.add_column("after", justify="right", style="dim", no_wrap=True)
    table.add_column("reward", justify="right", no_wrap=True)
    table.add_column("drawn", justify="right", style="dim", no_wrap=True)
    table.add_column("step", ratio=1)
    above = None
    for node in nodes:
        mark, style = _MARKS[node.fate]
        cells: list[RenderableType] = [str(node.round + 1) if node.round != above else ""]
        cells.append(Text(f"{mark}{node.id}" if is_beam else mark, style=style))
        if is_beam:
            cells.append("" if node.parent == ROOT else str(node.parent))
        table.add_row(*cells, _reward(node), f"×{len(node.samples)}", _step(node, node.id in chosen, max_characters))
        above = node.round
    return table


def _step(node: SearchNode, is_chosen: bool, max_characters: int | None) -> Text:
    text = plain(node.step)
    if max_characters is not None and len(text) > max_characters:
        text = text[:max_characters] + "…"
    style = "" if is_chosen else "dim" if node.fate in ("pruned", "dropped") else "cyan"
    shown = Text(text or ("(the solution ends)" if node.fate != "dropped" else "(nothing)"), style=style)
    notes = {
        "ends the solution": node.fate == "finished" and node.step,
        "cut": node.is_cut,
        "dropped: said before": node.fate == "dropped" and node.step,
        "kept without a reward": node.fell_back,
        node.failure or "": node.failure,
    }
    told = "; ".join(note for note, holds in notes.items() if holds)
    return shown.append(f"\n{plain(told)}", style="yellow") if told else shown


def _reward(node: SearchNode) -> Text:
    if not node.step or node.fate == "dropped":
        return Text("")
    if not node.is_settled and not node.p_yes:
        return Text("not judged", style="dim")
    known = (node.low, node.low) if node.is_settled else (node.low, node.high or 0.0)
    return Text(_range(*known), style="yellow" if node.is_settled and node.low is None else "")


def _range(low: float | None, high: float | None) -> str:
    """A value that lies between two, or is none."""
    return "none" if high is None else f"{low:.2f}" if low == high else f"{low or 0.0:.2f}–{high:.2f}"

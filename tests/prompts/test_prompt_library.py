"""Templates by name, by file and beside a model; and the built-in ones."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm.errors import PromptError
from rprm.prompts import PromptTemplate, builtin_names, load_template
from rprm.verdict import DEFAULT_MARKER

BUILTIN = ("critique", "critique-brief", "few-shot", "teacher")


def test_names_of_the_builtin_templates():
    assert builtin_names() == BUILTIN
    assert load_template() == load_template(None) == load_template("critique")
    assert all(load_template(name).name == name for name in BUILTIN)


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_templates_ask_for_the_verdict_line(name: str):
    template = load_template(name)
    assert template.verdict.marker == DEFAULT_MARKER
    assert template.verdict.marker in template.user
    instructions, _, closing = template.user.partition("{{steps}}")
    assert "{{problem}}" in instructions
    assert "{{step_number}}" in closing
    # What the prompt itself says after the marker is no verdict, but for those of the worked examples.
    worked = {"teacher": [True, False], "few-shot": [True, False, True, False]}
    assert [verdict.yes for verdict in template.verdict.find_all(template.user)] == worked.get(name, [])


@pytest.mark.parametrize("name", ["critique", "teacher"])
def test_the_five_aspects_stand_in_the_papers_order(name: str):
    user = load_template(name).user
    headings = ["Previous steps:", "This step:", "Data source:", "Consistency:", "Calculation:", "Conclusion:"]
    places = [user.index("\n" + heading) for heading in headings]
    assert places == sorted(places)


@pytest.mark.parametrize("name", BUILTIN)
@given(problem=st.text(), steps=st.lists(st.text(), min_size=2, max_size=6))
def test_successive_steps_share_the_longest_prefix(name: str, problem: str, steps: list[str]):
    template = load_template(name)
    prompts = [template.render(problem, steps, index).messages[-1].content for index in range(len(steps))]
    for index, (prompt, following) in enumerate(pairwise(prompts)):
        # Everything up to the end of step i, and the separator after it: what follows is "Step i+1: ..." in one and
        # the closing sentence in the other, which differ at their first character.
        closing = template.user.partition("{{steps}}")[2].replace("{{step_number}}", str(index + 1))
        assert prompt.endswith(steps[index] + closing)
        through_step = prompt.removesuffix(closing)
        shared = through_step + template.step_separator
        assert prompt.startswith(shared)
        assert following.startswith(shared)
        assert prompt[len(shared)] != following[len(shared)]


def test_a_toml_file_and_a_model_folder(tmp_path: Path):
    template = PromptTemplate("mine", "{{problem}}\n{{steps}} ∑")
    (tmp_path / "rprm_prompt.toml").write_text(template.to_toml(), encoding="utf-8")
    assert load_template(tmp_path) == template
    assert load_template(str(tmp_path)) == template
    assert load_template(str(tmp_path / "rprm_prompt.toml")) == template


def test_a_text_file_is_the_user_message(tmp_path: Path):
    file = tmp_path / "short.txt"
    file.write_bytes("\ufeff{{problem}}\r\n{{steps}}\r\n\r\n".encode())
    assert load_template(file) == PromptTemplate("short", "{{problem}}\n{{steps}}\n")


def test_a_builtin_name_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "critique").mkdir()
    (tmp_path / "critique" / "rprm_prompt.toml").write_text('user = "{{problem}}{{steps}}"')
    assert load_template("critique").name == "critique"
    assert load_template("./critique").name == "rprm_prompt"


def test_what_is_no_template(tmp_path: Path):
    choices = "give a file (.toml, .txt), a model folder, or one of critique, critique-brief, few-shot, teacher"
    (tmp_path / "x.md").write_text("{{problem}}{{steps}}")
    (tmp_path / "x.txt").write_bytes(b"{{problem}}{{steps}} \xff")
    for source, message in [
        ("critik", f"prompt template 'critik': no such template; {choices}"),
        ("", f"prompt template '': the folder has no rprm_prompt.toml; {choices}"),
        (str(tmp_path), f"the folder has no rprm_prompt.toml; {choices}"),
        (str(tmp_path / "x.md"), f"a template file ends in .toml or .txt; {choices}"),
        (str(tmp_path / "x.txt"), "not UTF-8 text: byte 21 cannot be decoded"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("a\0b", "no such template"),
    ]:
        with pytest.raises(PromptError) as caught:
            load_template(source)
        assert message in str(caught.value)


def test_the_documented_file_is_a_template():
    page = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")
    documented = page.partition("```toml\n")[2].partition("```")[0]
    template = PromptTemplate.from_toml(documented, "prompts.md")
    assert template.to_toml() == documented

"""The layout of a policy's prompt, its files, and the built-in ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rprm.errors import PromptError
from rprm.prompts import (
    Message,
    PolicyTemplate,
    Prompt,
    carried_policy_template,
    load_policy_template,
    load_template,
    policy_names,
)
from rprm.prompts.template import literal

SOLVE = PolicyTemplate("solve", "Solve:\n{{problem}}\nBriefly.")
BUILTIN = ("base", "boxed", "plain")


def test_a_solution_is_begun_with_its_steps():
    fresh = SOLVE.render("1 + 1?")
    assert fresh == Prompt((Message("user", "Solve:\n1 + 1?\nBriefly."),))
    assert SOLVE.render("1 + 1?", ["One.", "Two."]) == dataclasses.replace(fresh, reply="One.\n\nTwo.\n\n")
    system = dataclasses.replace(SOLVE, system="{{x}} You solve.", step_separator="\n")
    assert system.render("p", ["a"]).messages[0] == Message("system", "{{x}} You solve.")
    assert system.render("p", ["a"]).reply == "a\n"
    assert not dataclasses.replace(SOLVE, chat=False).render("p").chat


def test_substitution_is_one_pass():
    template = PolicyTemplate("t", "{{ problem }} {{open_braces}}problem}} \\boxed{{}} {{2}}")
    assert template.render("{{problem}}", ["{{problem}}"]) == Prompt(
        (Message("user", "{{problem}} {{problem}} \\boxed{{}} {{2}}"),), reply="{{problem}}\n\n"
    )


def test_the_text_of_a_prompt_tells_replies_apart():
    prompt = Prompt((Message("system", "s"), Message("user", "u")))
    assert prompt.text == "s\n\nu"
    assert dataclasses.replace(prompt, reply="r\n").text == "s\n\nu\n\nr\n"
    raw = Prompt((Message("user", "1 + 1 ="),), chat=False)
    assert raw.text == "1 + 1 ="
    assert dataclasses.replace(raw, reply=" 2").text == "1 + 1 = 2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": "{{problem}} {{steps}}"}, "unknown placeholder {{steps}}; placeholders are {{problem}}, {{open_brac"),
        ({"user": "Solve it."}, "user has no {{problem}}"),
        ({"system": "Solve {{problem}}"}, "move {{problem}} to user"),
        ({"system": "Solve.", "chat": False}, "system must be empty"),
        ({"step_separator": ""}, "step_separator is empty"),
        ({"stop": "\ud800"}, "stop has half a surrogate pair at character 0"),
    ],
)
def test_unusable_templates_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(PromptError) as caught:
        dataclasses.replace(SOLVE, **changes)
    assert str(caught.value).startswith("policy template 'solve': ")
    assert message in str(caught.value)


def test_digest_follows_the_content_and_nothing_else():
    assert SOLVE.digest == dataclasses.replace(SOLVE, name="other").digest
    variants = [
        SOLVE,
        dataclasses.replace(SOLVE, user=SOLVE.user + " "),
        dataclasses.replace(SOLVE, system=" "),
        dataclasses.replace(SOLVE, step_separator="\n"),
        dataclasses.replace(SOLVE, stop="END"),
        dataclasses.replace(SOLVE, chat=False),
    ]
    assert len({template.digest for template in variants}) == len(variants)
    # sha256 of the four texts and `chat` as sorted JSON: fixed, for it identifies prompts across versions.
    assert SOLVE.digest == "sha256:0c16ed236df1702c"


texts = st.text(st.characters(exclude_categories=["Cs"])) | st.text(alphabet="'\"\\\n\r\t ab\x00\x7f\x85\u2028#=[")


@given(texts, texts, texts, texts, st.booleans())
@example("'''", "\\", "\r\n", '"""', True)
@example("\n\n'''", "\n\\", "\n\r\n", '\n"""', False)
def test_files_give_back_exactly_what_was_written(a: str, b: str, c: str, d: str, chat: bool):
    template = PolicyTemplate(
        name=a,
        user=literal(b) + "{{problem}}" + literal(c),
        system=literal(d) if chat else "",
        chat=chat,
        step_separator=a or "\n",
        stop=c,
    )
    written = template.to_toml()
    assert PolicyTemplate.from_toml(written, "file.toml") == template
    assert PolicyTemplate.from_toml(written.replace("\n", "\r\n"), "file.toml") == template


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user = ", "not a policy template in TOML: "),
        ("chat = true", "'user' is missing"),
        (
            'user = "{{problem}}"\nstep_format = "x"',
            "unknown key 'step_format'; keys are name, user, system, ",
        ),
        ('user = "{{problem}}"\n[verdict]\nyes = "Yes"', "unknown key 'verdict'; keys are "),
        ('user = "{{problem}}"\nchat = "no"', "'chat' must be true or false, not 'no'"),
        ('user = "{{problem}}"\nstop = ["x"]', "'stop' must be a text, not ["),
        ('user = "x"', "policy template 'bad': user has no {{problem}}"),
    ],
)
def test_files_that_are_no_templates(content: str, message: str):
    with pytest.raises(PromptError) as caught:
        PolicyTemplate.from_toml(content, "some/bad.toml")
    assert str(caught.value).startswith("some/bad.toml: ")
    assert message in str(caught.value)


def test_builtin_templates():
    assert policy_names() == BUILTIN
    assert load_policy_template() == load_policy_template(None) == load_policy_template("boxed")
    for name in BUILTIN:
        template = load_policy_template(name)
        assert template.name == name
        assert template.step_separator == "\n\n"
    boxed, plain, base = (load_policy_template(name) for name in ("boxed", "plain", "base"))
    assert "\\boxed{" in boxed.user
    assert "blank line" in boxed.user
    assert plain.render("p").messages == (Message("user", "p"),)
    assert (base.chat, base.render("p", ["Step."]).text) == (False, "Problem:\np\n\nSolution:\nStep.\n\n")
    # A base model that goes on to another problem has ended its solution, also where the blank line before that was
    # taken for the end of a step.
    assert base.stop == "Problem:"


def test_files_model_folders_and_what_they_carry(tmp_path: Path):
    (tmp_path / "rprm_policy.toml").write_text(SOLVE.to_toml(), encoding="utf-8")
    for source in (tmp_path, str(tmp_path), str(tmp_path / "rprm_policy.toml")):
        assert load_policy_template(source) == SOLVE
    file = tmp_path / "short.txt"
    file.write_bytes("\ufeffQ: {{problem}}\r\nA:\r\n".encode())
    assert load_policy_template(file) == PolicyTemplate("short", "Q: {{problem}}\nA:")
    assert carried_policy_template(f"vllm:{tmp_path}?dtype=float32") == tmp_path / "rprm_policy.toml"
    assert carried_policy_template(f"vllm:org/base?adapter={tmp_path}") == tmp_path / "rprm_policy.toml"
    assert carried_policy_template("vllm:org/base") is None
    # What a judge carries is none.
    (tmp_path / "rprm_policy.toml").rename(tmp_path / "rprm_prompt.toml")
    assert carried_policy_template(f"vllm:{tmp_path}") is None


def test_what_is_no_template(tmp_path: Path):
    choices = "give a file (.toml, .txt), a model folder, or one of base, boxed, plain"
    for source, message in [
        ("critique", f"policy template 'critique': no such template; {choices}"),
        (str(tmp_path), f"the folder has no rprm_policy.toml; {choices}"),
    ]:
        with pytest.raises(PromptError) as caught:
            load_policy_template(source)
        assert message in str(caught.value)
    with pytest.raises(PromptError, match="prompt template 'boxed': no such template"):
        load_template("boxed")


def test_the_documented_file_is_a_template():
    page = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")
    documented = page.partition("## Templates of a policy")[2].partition("```toml\n")[2].partition("```")[0]
    assert PolicyTemplate.from_toml(documented, "prompts.md").to_toml() == documented

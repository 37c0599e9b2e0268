r"""One of the many LaTeX and Unicode texts that look the same, and always the same one of them.

Brackets, signs of order and of sets become one character each (`\{` is `⦃`, `\leq` is `≤`, `\begin{pmatrix}` is `⟦`), so
that structure can be told by looking at characters; `latex` in algebra.py turns them back for math-verify's grammar.
"""

from __future__ import annotations

import re
import unicodedata

_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ", "÷": "/"}
    | {"√": r"\sqrt ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "、": ",", "。": ".", "\u2044": "/", "′": "'", "’": "'"}
    | {"⟨": "(", "⟩": ")", "〈": "(", "〉": ")", "¢": "", "∠": r"\angle ", "⇒": "", "✓": "", "ℝ": r"\mathbb{R}"}
    | {"ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "π": r"\pi ", "∧": "⋏"}
    | dict.fromkeys("$€£¥", "")
    | {chr(0x3B1 + place): f"\\{name} " for place, name in enumerate("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi".split())}
    | {chr(0x3C1 + place): f"\\{name} " for place, name in enumerate("rho varsigma sigma tau upsilon phi chi psi omega".split())}
    | {"Γ": r"\Gamma ", "Δ": r"\Delta ", "Θ": r"\Theta ", "Λ": r"\Lambda ", "Σ": r"\Sigma ", "Φ": r"\Phi ", "Ω": r"\Omega "}
)  # fmt: skip
_SCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ₀₁₂₃₄₅₆₇₈₉", "0123456789+-n0123456789")
#: Commands and what stands for them; a name that is not here stays as it is.
_COMMANDS = {
    **dict.fromkeys(["dfrac", "tfrac", "cfrac"], r"\frac"), "tbinom": r"\binom", "dbinom": r"\binom",
    **dict.fromkeys(["le", "leq", "leqslant"], "≤"), **dict.fromkeys(["ge", "geq", "geqslant"], "≥"),
    **dict.fromkeys(["ne", "neq"], "≠"), "lt": "<", "gt": ">", "approx": "≈", "in": "∈", "cup": "∪", "cap": "∩",
    "setminus": "∖", "backslash": "∖", "pm": "±", "mp": "∓", "infty": "∞", "infin": "∞", "circ": "∘", "degree": "°",
    "lbrace": "⦃", "rbrace": "⦄", "langle": "(", "rangle": ")", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|",
    "lparen": "(", "rparen": ")", "lbrack": "[", "rbrack": "]", "div": "/", "ast": r"\cdot ", "prime": "'",
    "lg": r"\log", "emptyset": "∅", "varnothing": "∅", "land": "⋏", "wedge": "⋏", "lor": "⋎", "vee": "⋎", "colon": ":",
    **dict.fromkeys(["ldots", "dots", "cdots", "dotsc", "dotsb"], "…"), "quad": " ", "qquad": " ", "newline": " ",
    **dict.fromkeys("displaystyle textstyle limits nolimits left right middle bf it rm large Large huge Huge small".split(), ""),
    **dict.fromkeys("big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr LARGE normalsize".split(), ""),
    **dict.fromkeys("mathbf boldsymbol mathit bm pmb underline boxed fbox framebox ensuremath".split(), ""),
    **dict.fromkeys("mbox textrm textsf mathrm mathsf hbox textbf textit texttt textnormal bold emph".split(), r"\text"),
    **{name: f"{name}" for name in ("dollar",)}, "R": "ℝ", "implies": "", "Rightarrow": "", "exponentialE": "e",
}  # fmt: skip
_ESCAPES = {"{": "⦃", "}": "⦄", "!": "", "$": "", "%": "%", "&": "&", "#": "#", "_": "_", "\\": "\\\\", "|": "‖"} | dict.fromkeys(",;: ", "\u2009") | dict.fromkeys("()[]", " ")  # fmt: skip
_BRACED = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_ITEM = r"(\\[a-zA-Z]+|[a-zA-Z0-9])"
#: Groups of three digits throughout and no space after a comma, and nothing but that between the nearest brackets.
_THOUSANDS = r"(?<![\d.,])(?<![(\[⦃]-)(?<![(\[⦃])\d{1,3}(?:,\d{3})+(?!\d|,\d|\)|\]|⦄)"

_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"^\W{0,3}\*\*|\*\*\W{0,3}$|`|^[\s$]*=(?!=)", ""),
        (
            r"^\s*([\"'*_“]+)(.*?)[\"'*_”]+\s*$",
            lambda found: found[2] if len(found[1]) + len(found[2]) + 1 < len(found[0].strip()) + 1 else found[0],
        ),
        (
            r"(?<=\d)\s*(?:\\text\s*\{\s*)?([apAP])\.\s?[mM]\b\.?\s*\}?|(?<=:\d\d)\s*(?:\\text\s*\{\s*)?([apAP])[mM]\b\s*\}?",
            lambda found: f" {(found[1] or found[2]).lower()}m ",
        ),
        (r"\\(?:[hv]space\*?|color|phantom|label|tag)\s*\{[^{}]*\}|\\textcolor\s*\{[^{}]*\}", ""),
        (
            r"\\(?:mathbb|mathbf|Bbb)\s*\{?\s*([RZNQC])(?![a-zA-Z])\s*\}?",
            lambda found: "ℝℤℕℚℂ"["RZNQC".index(found[1])],
        ),
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\operatorname\*?\s*\{\s*([a-zA-Z]+)\s*\}", r"\\\1 "),
    ]
]
_LATER = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\text\s*\{([^{}]*[^\s,{}]),? (and|or)\s*\}", lambda found: rf"\text{{{found[1]}}}{'⋏' if found[2] == 'and' else '⋎'}"),
        (r"\\text\s*\{\s*(?:,?\s*and\s*|⋏)\s*\}|(?<=[\s\d)\]}⦄,])(?<!\\)and(?=[\s\d(\\-])", "⋏"),
        (r"\\text\s*\{\s*(?:,?\s*or\s*|⋎)\s*\}|(?<=[\s\d)\]}⦄,])(?<!\\)or(?=[\s\d(\\-])", "⋎"),
        (r"\\text\s*\{\s*([ei]|[^{}a-zA-Z]*)\s*\}", r"\1"),
        (r"\\text\s+([a-zA-Z]+)", r"\\text{\1}"),
        (r"^\s*\\text\{\s*([a-zA-Z])\s*\}\s*$", r"\1"),
        (r"^\s*(?:The )?[sS]olution is:\s*|^\s*\\text\{[^{}]*[aA]nswers?(?: is)?\s*:?\s*\}", ""),
        (r"(?<![a-zA-Z\\])np\.(?=[a-z])", r"\\"),
        (r"\.\.\.+", "…"),
        (r"<=", "≤"), (r">=", "≥"), (r"!=", "≠"),
        (r"\^\s*\{\s*[∘°]\s*\}|\{\s*\}\s*\^\s*∘|\^\s*∘|\^\s*°|∘(?=\s*[CF]?$)", "°"),
        (r"\{,\}|,(?=\u2009\d{3}(?!\d))(?<=\d,)(?!\u2009)", ","),
        (r"(?<=\d)\u2009(?=\d{3}(?!\d))", ""),
        (r"^([-+]?\d{1,3}(?:\.\d{3})+),(\d+)$", lambda found: f"{found[1].replace('.', '')}.{found[2]}"),
        (r"^[-+]?\d{1,2}(?:,\d{2})+,\d{3}$|^[-+]?\d{1,3}(?: \d{3})+$", lambda found: re.sub("[ ,]", "", found[0])),
        (r"\\begin\s*\{(?:[pbB]|small)?(?:matrix|array)\*?\}(?:\{[lcr| ]*\})?", "⟦"),
        (r"\\end\s*\{(?:[pbB]|small)?(?:matrix|array)\*?\}", "⟧"),
        (r"[\[(]\s*⟦", "⟦"), (r"⟧\s*[\])]", "⟧"), (r"(?:\\\\\s*)+(?=⟧|$)", ""),
        (r"⦃\s*⦄", "∅"),
        (r"(?<![a-zA-Z\\])(pi|sqrt|frac|theta|infty|infinity|exp|sin|cos|tan|cot|sec|csc|log|ln|arcsin|arccos|arctan)(?=[\s{(/*+\-\d^_,)]|$)", r"\\\1"),
        (r"(?<=\d)(pi|sqrt|exp|sin|cos|tan|log|ln)(?=[\s{(/*+\-\d^]|$)", r"\\\1"),
        (r"\\inf(?:ty|inity)(?![a-zA-Z])", "∞"),
        (r"(?<!\*)\*\*(?=\s*[-\d({a-zA-Z])", "^"), (r"\*\*", ""), (r"\*", r"\\cdot "),
        (r"(?<![\d.])\.(?=\d)", "0."),
        (r"\+\s*-", "-"), (r"-\s*-", "+"),
        (r"\\sqrt\s*(\d+(?:\.\d+)?|\\?[a-zA-Z]+(?=\s|[^a-zA-Z(\[{]|$))", r"\\sqrt{\1}"),
        (r"\\sqrt\s*(\[[^\[\]]*\])\s*(\d+|[a-zA-Z])", r"\\sqrt\1{\2}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\^\s*(-?\d+|-?\\?[a-zA-Z]+(?=[^a-zA-Z]|$)(?<=\^[a-zA-Z]))", r"^{\1}"),
        (r"\^\s*\{\s*('[' ]*)\}", lambda found: found[1].replace(" ", "")),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"), (r"_\s*([a-zA-Z0-9])", r"_{\1}"),
        (r"\^\s*([a-zA-Z])", r"^{\1}"),
        (rf"\\frac\s*{_ITEM}", r"\\frac{\1}"),
        (rf"(\\(?:frac|binom)\s*{_BRACED})\s*{_ITEM}", r"\1{\2}"),
        (r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"(?<![\d.}])(\d+)\s+(\d+)/(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),
        (_THOUSANDS, lambda found: found[0].replace(",", "")),
        (r"\s*([\^_{}()\[\]⦃⦄⟦⟧,;=+/<>≤≥≠≈∈∪∩∖±∓⋏⋎|-])\s*", r"\1"),
        (r"(\\[a-zA-Z]+)\s+(?=[^a-zA-Z])", r"\1"),
        (r"[,;]?([⋏⋎])", r"\1"),
    ]
]  # fmt: skip
_THIN = re.compile(r"[\u2009~\s]+")
_OPENING, _CLOSING = "([{⦃⟦", ")]}⦄⟧"


def normal_text(text: str, split_numbers: bool = False) -> str:
    """The text in normal form; `split_numbers` leaves the comma in `1,100`."""
    if not text.isascii():
        text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda found: f"^{{{found[0].translate(_SCRIPTS)}}}", text)
        text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda found: f"_{{{found[0].translate(_SCRIPTS)}}}", text)
        text = re.sub("[¼-¾⅐-⅞]", lambda found: "\\frac{%s}{%s}" % tuple(unicodedata.normalize("NFKC", found[0]).split("⁄")), text)  # fmt: skip
        text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS)).translate(_CHARACTERS)
        text = "".join(character for character in text if unicodedata.category(character) != "Cf")
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text).removesuffix("\\\\")
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\\([a-zA-Z]+|.)", _command, text, flags=re.DOTALL).replace("$", "")
    for pattern, replacement in _LATER:
        if not (split_numbers and pattern.pattern == _THOUSANDS):
            text = pattern.sub(replacement, text)
    text = _THIN.sub(" ", text).strip()
    while text:
        bare = text.rstrip(".,;:= ")
        if (inner := enclosed(bare, "{", "}")) is not None:
            bare = inner
        if bare == text:
            break
        text = bare
    if text.startswith("]") and text.endswith(("[", "]")) or text.startswith(("[", "(")) and text.endswith("["):
        text = ("(" if text[0] == "]" else text[0]) + text[1:-1] + (")" if text[-1] == "[" else "]")
    return text


def _command(found: re.Match[str]) -> str:
    name = found[1]
    return _COMMANDS.get(name, found[0]) if name.isalpha() else _ESCAPES.get(name, " ")


def split(text: str, separators: str) -> list[str]:
    """The parts of a text between separators that no bracket encloses, without spaces around and without empty ones."""
    parts, depth, begin = [], 0, 0
    for place, character in enumerate(text):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth = max(depth - 1, 0)
        elif depth == 0 and character in separators:
            parts.append(text[begin:place].strip())
            begin = place + 1
    parts.append(text[begin:].strip())
    return parts if len(parts) == 1 else [part for part in parts if part] or [text]


def enclosed(text: str, opening: str, closing: str) -> str | None:
    """What stands between two brackets that enclose the whole text, None where they do not."""
    if len(text) < 3 or text[0] != opening or text[-1] != closing:
        return None
    depth = 0
    for place, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0 and place < len(text) - 1:
            return None
    return text[1:-1].strip() if depth == 0 else None

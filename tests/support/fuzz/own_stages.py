"""Stages of the user's own: whatever their code does on import or when it is made."""

from __future__ import annotations

from fuzz.makers import literal, written
from fuzz.runner import Case

HEAD = (
    "import sys\nimport pyarrow as pa\nfrom data_schemas.schema import Column\n"
    "from pipeline import Rule, Stage, StageConfig\n"
)
COLUMNS = '    columns = (Column("score", pa.float64(), "A score.", "fraction"),)\n'
PROCESS = '    def process(self, sample):\n        return {"score": 1.0}\n'
WHOLE = COLUMNS + PROCESS
OWN = HEAD + "class Own(Stage):\n    name = 'own'\n"
INIT = OWN + "    def __init__(self, config):\n        "


def curated(name: str, setting: str, code: str, told: str) -> Case:
    """A curation with a setting, where mine.py holds this code."""
    arguments = ("--root", "{here}/runs", "--pool", "{pool}", "--set", literal(setting))
    return Case(f"own {name}", "instructar curate", arguments, told, written("mine.py", code))


_CODE = {
    "syntax": ("class Own(:\n", "SyntaxError"),
    "null bytes": ("a = 1\0\n", "mine:Own"),
    "indentation": ("  a = 1\n b = 2\n", "mine:Own"),
    "raises": ("1 / 0\n", "ZeroDivisionError"),
    "other package": ("import not_there_at_all\n", "not_there_at_all"),
    "leaves": ("import sys\nsys.exit(0)\n", "SystemExit"),
    "leaves with a word": ("raise SystemExit('bye')\n", "bye"),
    "recursion": ("def f():\n    f()\nf()\n", "RecursionError"),
    "no class": ("a = 1\n", "Own"),
    "no stage": ("class Own:\n    pass\n", "expected module:Class"),
    "a function": ("def Own():\n    pass\n", "expected module:Class"),
    "abstract": (OWN + f"{COLUMNS}", "process"),
    "no name": (HEAD + f"class Own(Stage):\n{WHOLE}", "name"),
    "name up": (HEAD + f"class Own(Stage):\n    name = '../up'\n{WHOLE}", "../up"),
    "name a number": (HEAD + f"class Own(Stage):\n    name = 3\n{WHOLE}", "name"),
    "name taken": (HEAD + f"class Own(Stage):\n    name = 'plan'\n{WHOLE}", "plan"),
    "no columns": (OWN + f"{PROCESS}", "columns"),
    "columns of text": (OWN + f"    columns = ('score',)\n{PROCESS}", "columns"),
    "rule of nothing": (
        OWN + f"    rules = (Rule('scor', 'min', 0.5, 'low', 'Low.'),)\n{WHOLE}",
        "did you mean score",
    ),
    "reads nothing": (OWN + f"    reads = ('synthesi',)\n{WHOLE}", "did you mean synthesis"),
    "reads no plan": (OWN + f"    reads = ('synthesis',)\n{WHOLE}", "add 'plan' to them"),
    "config no class": (OWN + f"    Config = 3\n{WHOLE}", "mine:Own"),
    "config a dict": (OWN + f"    Config = dict\n{WHOLE}", "Config"),
    "init leaves": (INIT + f"sys.exit(1)\n{WHOLE}", "SystemExit"),
    "init raises": (INIT + f"raise KeyError('k')\n{WHOLE}", "KeyError"),
    "init without super": (INIT + f"pass\n{WHOLE}", "mine:Own"),
    "escape in the error": ("raise ValueError('a\\x1b[31mb')\n", "ValueError"),
}  # fmt: skip
_CONFIG = (
    HEAD + f"class C(StageConfig):\n    limit: int = 3\nclass Own(Stage):\n    name = 'own'\n    Config = C\n{WHOLE}"
)
_USES = {
    "unknown key": ("filters=[{use: 'mine:Own', config: {limi: 3}}]", "did you mean limit"),
    "wrong value": ("filters=[{use: 'mine:Own', config: {limit: x}}]", "limit"),
    "no colon": ("filters=[{use: mine}]", "expected module:Class"),
    "no module": ("filters=[{use: ':Own'}]", "':Own'"),
    "path": ("filters=[{use: '../mine:Own'}]", "../mine:Own"),
    "relative": ("filters=[{use: '.mine:Own'}]", ".mine:Own"),
    "a module of Python": ("filters=[{use: 'os:path'}]", "os:path"),
    "twice": ("filters=[{use: 'mine:Own'}, {use: 'mine:Own'}]", "exists already"),
    "section": ("matting={use: 'mine:Own'}", "mine:Own"),
    "NUL": ('filters=[{use: "a\\0b:Own"}]', "filters"),
}
CASES = [
    *(curated(name, "filters=[{use: 'mine:Own'}]", code, told) for name, (code, told) in _CODE.items()),
    *(curated(f"use {name}", setting, _CONFIG, told) for name, (setting, told) in _USES.items()),
]

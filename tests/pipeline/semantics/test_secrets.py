"""No key that a judge was given reaches a byte that is written, whatever the server makes of it."""

import base64
import io
import json
import re
import tarfile
import urllib.parse

import pyarrow.parquet as pq
import pytest
from doubles import openai_server
from doubles.openai_server import Reply
from judged import ANSWER, GOOD, MODEL, answer, sample
from small.curation import small_config

from data_schemas.errors import UserError
from pipeline.curate import curate
from pipeline.report.results import write_results
from pipeline.semantics.judge import MAX_TEXT
from pipeline.semantics.openai_api import ApiConfig, ApiJudge
from pipeline.semantics.redaction import Redactor

KEY = 'sk-Proj/9aZ+"q7_Xy=Vb3nM-Tr5wK'
TOKEN = "hf_QwErTyUiOpAsDfGhJk"


def escaped(text):
    """Every letter as JSON may spell it."""
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


SPELLINGS = {
    "plain": KEY,
    "json": json.dumps(KEY)[1:-1],
    "unicode escapes": escaped(KEY),
    "escapes of escapes": json.dumps(escaped(KEY))[1:-1],
    "percent": urllib.parse.quote(KEY, safe=""),
    "percent of all": "".join(f"%{ord(letter):02X}" for letter in KEY),
    "html": "".join(f"&#{ord(letter)};" for letter in KEY),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 of a header": base64.b64encode(f"Bearer {KEY}\r\n".encode()).decode(),
    "base64 for urls": base64.urlsafe_b64encode(f"user:{KEY}".encode()).decode(),
    "hexadecimal": KEY.encode().hex(),
    "upper case": KEY.upper(),
    "spaced": " ".join(KEY),
    "its larger part": KEY[3:-4],
    "another secret": TOKEN,
}


def traces(text):
    """What of the secrets can be found in a text, however it is spelled."""
    plain = {KEY, KEY[3:-4], TOKEN}
    lower, found = text.lower().replace(" ", ""), set()
    for _ in range(4):
        found |= {secret for secret in plain if secret.lower() in lower}
        found |= {name for name, spelling in SPELLINGS.items() if spelling.lower().replace(" ", "") in lower}
        before = lower
        lower = re.sub(r"(?:\\u00|%)([0-9a-f]{2})|\\(?=[\\\"/])", lambda m: chr(int(m[1] or "0", 16)), lower)
        lower = lower.replace("\0", "")
        if lower == before:
            break
    return found


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_secret_is_hidden_however_it_is_spelled(name):
    redact, spelling = Redactor([KEY, TOKEN, ""]), SPELLINGS[name]
    for text in (spelling, f"The key {spelling} was sent.", f'{{"a": "{spelling}"}}'):
        cleaned = redact(text)
        assert "***" in cleaned
        assert not traces(cleaned)
        assert len(cleaned) < 40, "nothing of it is left"
    if "base64" not in name:  # there the letters around it belong to what it stood in
        assert redact(f"The key ({spelling}) was sent.") == "The key (***) was sent."


@pytest.mark.parametrize("key", ["none", "no", "a", "key", "yes", "", " "])
def test_a_word_that_is_no_secret_leaves_the_text_alone(key):
    text = "There are none; a key is on the table, yes, no doubt."
    assert Redactor([key] if key != "none" else [])(text) == text


def test_a_short_key_is_hidden_where_it_stands_alone():
    redact = Redactor(["abc12"])
    assert redact("Bearer abc12, or xabc123? abc12.") == "Bearer ***, or xabc123? ***."


def test_ordinary_answers_are_left_alone():
    redact = Redactor([KEY, TOKEN])
    odd = "50% of it, \\u00e9t\\u00e9, &#233;, C:\\users, 日本語 \U0001f600 \ud800"
    for text in (GOOD, json.dumps(ANSWER, indent=2), odd, "x" * 20_000):
        assert redact(text) == text


def echo(body, number, heard):
    """Replies that repeat the key: in reasons, around the verdict, as the verdict, in errors of all kinds."""
    header = heard["authorization"]
    assert header == f"Bearer {KEY}"
    spelling = list(SPELLINGS.values())[number % len(SPELLINGS)]
    inside = json.dumps(spelling)[1:-1]
    kinds = [
        Reply(answer(subject_0_reason=f"{header}", colours_reason=spelling)),
        Reply(f"I was sent {header} and {spelling}.\n{GOOD}"),
        Reply(GOOD.replace("Warm daylight.", escaped(header))),
        Reply(status=400, body={"error": {"message": f"bad {header}", "code": spelling, "param": inside}}),
        Reply(status=500, body=f"<p>{header}</p> {spelling}", headers={"X-Echo": "yes"}),
        Reply(body={"choices": [], "model": header, "error": spelling}),
        Reply(status=403, body=spelling),
    ]
    return kinds[number % len(kinds)]


def strings_of(path):
    """Every text that a file holds, unpacked."""
    data = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(io.BytesIO(data))
        yield json.dumps([table.to_pylist(), str(table.schema.metadata)], default=str, ensure_ascii=False)
    elif path.suffix == ".tar":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for entry in tar:
                yield entry.name
                yield tar.extractfile(entry).read().decode("latin-1")
    else:
        yield data.decode("latin-1")


@pytest.mark.slow
def test_no_byte_of_a_run_tells_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    servers = []

    def reply(body, number):
        return echo(body, number, servers[0].asked[number][1])

    with openai_server.serve(reply, openai_server.lists(MODEL)) as server:
        servers.append(server)
        judge = {"backend": "openai", "base_url": server.url, "api_key_env": "JUDGE_KEY", "retries": 0, "attempts": 2}
        small = {"synthesis": {"backend": "collage", "size": 64}, "references": {"size": 64}, "samples": 14}
        small["max_error_share"] = 1
        result = curate(small_config(tmp_path, semantics=judge, **small))
        write_results(result)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    told = {path.name: found for path in files for text in strings_of(path) if (found := traces(text))}
    assert told == {}
    rows = pq.read_table(result.manifest_url).to_pylist()
    assert any("***" in (row["raw_text"] or "") for row in rows)
    assert any("***" in (row["error_message"] or "") for row in rows)
    assert any("***" in (row["colours_reason"] or "") for row in rows)


@pytest.mark.parametrize("models", [openai_server.lists(KEY, f"x-{escaped(KEY)}"), Reply(status=401, body=KEY)])
def test_a_refusal_before_the_work_does_not_tell_the_key(models, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with openai_server.serve(lambda body, number: Reply(GOOD), models) as server:
        stage = ApiJudge(ApiConfig(base_url=server.url, api_key_env="JUDGE_KEY"))
        with pytest.raises(UserError) as told:
            stage.run([sample()], {})
    assert not traces(str(told.value))
    assert told.value.__cause__ is None


@pytest.mark.parametrize("key", [f"{KEY}\nX-More: 1", f"{KEY} é", f"{KEY}ü"])
def test_a_key_that_no_header_can_carry_is_named_by_its_variable(key, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(UserError, match="JUDGE_KEY holds more than a key") as told:
        ApiJudge(ApiConfig(base_url="http://localhost:9/v1", api_key_env="JUDGE_KEY")).probe()
    assert not traces(str(told.value))


def test_a_key_that_a_cut_would_halve_is_hidden_all_the_same(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    text = "x" * (MAX_TEXT - 6) + KEY
    with openai_server.serve(lambda body, number: Reply(text), openai_server.lists(MODEL)) as server:
        stage = ApiJudge(ApiConfig(base_url=server.url, api_key_env="JUDGE_KEY", attempts=1))
        rows, _, _ = stage.run([sample()], {})
    assert rows[0]["raw_text"] == "x" * (MAX_TEXT - 6) + "***"

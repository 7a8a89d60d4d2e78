"""The judge behind an API, asked of a real server that answers well, badly, late or not at all."""

import asyncio
import base64
import gzip
import io
import json
import time
import traceback
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from doubles import openai_server
from doubles.openai_server import Reply
from judged import GOOD, MODEL, PLAN, answer, sample
from PIL import Image
from small.curation import small_config

from data_schemas.errors import UserError
from data_schemas.schema import validate
from pipeline.core.stage import StageUnusable
from pipeline.curate import curate
from pipeline.semantics import judge, openai_api
from pipeline.semantics.judge import question
from pipeline.semantics.openai_api import ApiConfig, ApiJudge


def colour(picture):
    return picture.convert("RGB").getpixel((picture.width // 2, picture.height // 2))


@contextmanager
def api(reply, models=None, **config):
    """(judge, server); ``reply`` is a Reply or a function of (request body, its number)."""
    answers = reply if callable(reply) else lambda body, number: reply
    models = models or openai_server.lists("other", MODEL)
    with openai_server.serve(answers, models) as server:
        defaults = {"base_url": server.url, "timeout_s": 5, "retries": 1, "attempts": 1}
        yield ApiJudge(ApiConfig(**{**defaults, **config})), server


def rows_of(stage, count=1):
    rows, _, _ = stage.run([sample(k) for k in range(count)], {})
    validate(stage.schema().table(rows), stage.schema(), "rows")
    return rows


def replies(*script):
    """The n-th request gets the n-th reply, later ones the last."""
    return lambda body, number: script[min(number, len(script) - 1)]


def test_a_good_server_is_shown_three_images_in_the_order_the_text_names_and_the_schema():
    with api(Reply(GOOD), image_side=128) as (stage, server):
        (row,) = rows_of(stage)
    assert (row["present_min"], row["attempts"], row["tokens_in"], row["tokens_out"]) == (1.0, 1, 900, 60)
    assert (row["raw_text"], row["model"]) == (GOOD, f"{MODEL} at openai api")
    ((body, _),) = server.asked
    (message,) = body["messages"]
    *images, text = message["content"]
    assert text == {"type": "text", "text": question(PLAN)}
    urls = [part["image_url"]["url"] for part in images]
    shown = [Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) for url in urls]
    assert [colour(picture) for picture in shown] == [(0, 255, 0), (255, 0, 0), (0, 0, 255)]
    assert [picture.size for picture in shown] == [(64, 64), (128, 64), (128, 64)]
    assert shown[1].getpixel((2, 2)) == (255, 255, 255), "what is transparent is shown white"
    assert body["response_format"]["json_schema"]["schema"] == judge.SCHEMA
    assert (body["model"], body["temperature"], body["seed"], body["max_tokens"]) == (MODEL, 0, 5, 400)


@pytest.mark.parametrize("text", ["None", "Certainly! ```json", GOOD[:40], None, ""])
def test_garbage_is_asked_for_three_times_and_then_undecided(text):
    with api(Reply(text), attempts=3) as (stage, server):
        (row,) = rows_of(stage)
    assert (row["status"], row["attempts"], row["present_min"]) == ("ok", 3, None)
    assert row["raw_text"] == (text or "")
    assert len({body["messages"][0]["content"][-1]["text"] for body, _ in server.asked}) == 3


@pytest.mark.parametrize(
    "trouble",
    [
        Reply(status=429, headers={"Retry-After": "0.2"}, body={"error": {"message": "slow down"}}),
        Reply(status=500, body="boom"),
        Reply(status=503, body={"error": "loading"}),
        Reply(drop=True),
        Reply(hang=True),
    ],
    ids=["429", "500", "503", "dropped", "hangs"],
)
@pytest.mark.slow
def test_passing_trouble_is_tried_again(trouble):
    with api(replies(trouble, Reply(GOOD)), timeout_s=1) as (stage, server):
        (row,) = rows_of(stage)
    assert (row["status"], row["present_min"], row["attempts"]) == ("ok", 1.0, 1)
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("trouble", "code", "tries"),
    [
        (Reply(status=500, body="boom"), "judge_http_500", 2),
        (Reply(status=429, headers={"Retry-After": "3600"}, body="later"), "judge_http_429", 1),
        (Reply(status=400, body={"error": {"message": "too many images"}}), "judge_http_400", 1),
        (Reply(status=403, body="not this question"), "judge_http_403", 1),
        (Reply(drop=True), "judge_unreachable", 2),
        (Reply(hang=True), "judge_timeout", 2),
        (Reply(body="<html>", headers={"Content-Type": "text/html"}), "judge_bad_response", 1),
        (Reply(body='{"choices": [{"mess'), "judge_bad_response", 1),
        (Reply(body={"choices": []}), "judge_bad_response", 1),
        (Reply(body={"error": "no"}), "judge_bad_response", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.slow
def test_lasting_trouble_costs_only_its_sample_and_says_what_it_was(trouble, code, tries):
    def reply(body, number):
        return trouble if body["seed"] == 6 else Reply(GOOD)

    with api(reply, timeout_s=0.7) as (stage, server):
        rows, _, _ = stage.run([sample(0), sample(1, seed=6), sample(2)], {})
    assert [r["status"] for r in rows] == ["ok", "error", "ok"]
    assert rows[1]["error_code"] == code
    assert rows[1]["error_message"]
    assert server.url not in rows[1]["error_message"], "where it was asked is no part of the data"
    assert len(server.asked) == 2 + tries


@pytest.mark.parametrize(
    ("trouble", "tries"),
    [(Reply(drip=0.05), 1), (Reply(status=500, drip=0.05), 1), (Reply(drip=0.05, drip_headers=True), 2)],
    ids=["body", "body-of-an-error", "headers"],
)
@pytest.mark.slow
def test_an_answer_that_drips_in_ends_in_time(trouble, tries):
    began = time.monotonic()
    with api(trouble, timeout_s=1) as (stage, server):
        stage.ready()
        rows, _, _ = stage.run([sample()], {})
        took = time.monotonic() - began
        assert len(server.asked) == tries, (
            "what drips once will drip again; a server that says nothing may be restarting"
        )
    assert rows[0]["error_code"] == "judge_timeout"
    assert took < tries * 1 + 3


@pytest.mark.parametrize("compressed", [False, True])
def test_an_answer_without_end_is_not_read_to_its_end(compressed):
    letters = b'{"choices": "' + b"x" * 2**20
    body = Reply(body=gzip.compress(b" " * 2**26) if compressed else letters, endless=True)
    body.headers = {"Content-Encoding": "gzip"} if compressed else {}
    tracemalloc.start()
    with api(body, timeout_s=20) as (stage, server):
        rows, _, _ = stage.run([sample()], {})
        sent = server.sent
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows[0]["error_code"] == "judge_bad_response"
    assert sent < 100 * 2**20
    assert most < 200 * 2**20


@pytest.mark.parametrize("models", [Reply(drip=0.05), Reply(drip=0.05, drip_headers=True), Reply(hang=True)])
def test_a_list_of_models_that_drips_in_is_no_answer(models, monkeypatch):
    monkeypatch.setattr(openai_api, "PROBE_SECONDS", 0.5)
    began = time.monotonic()
    with api(Reply(GOOD), models) as (stage, _), pytest.raises(UserError, match=r"does not answer|answers 408"):
        stage.probe()
    assert time.monotonic() - began < 3


def test_json_that_is_too_deep_costs_only_its_sample():
    deep = Reply(body="[" * 200_000)
    with api(lambda body, number: deep if body["seed"] == 6 else Reply(GOOD)) as (stage, _):
        rows, _, _ = stage.run([sample(0), sample(1, seed=6)], {})
    assert [r["error_code"] for r in rows] == [None, "judge_bad_response"]


def test_a_key_that_is_refused_during_the_work_ends_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    refused = Reply(status=401, body={"error": {"message": "who is sk-0123456789"}})
    wording = pytest.raises(StageUnusable, match="refuses the key; set OPENAI_API_KEY")
    with api(lambda body, number: refused if number else Reply(GOOD)) as (stage, _), wording as told:
        stage.run([sample(k) for k in range(3)], {})
    shown = "".join(traceback.format_exception(told.value))
    assert "sk-0123456789" not in shown


@pytest.mark.slow
def test_a_judge_that_answers_401_to_everything_stops_a_curation_at_its_first_part(tmp_path):
    refused = Reply(status=401, body={"error": {"message": "no"}})
    with openai_server.serve(lambda body, number: refused, openai_server.lists(MODEL)) as server:
        judge = {"backend": "openai", "base_url": server.url, "batch_size": 2}
        small = {"samples": 8, "part_size": 2, "workers": 1, "synthesis": {"backend": "collage", "size": 64}}
        with pytest.raises(UserError, match="refuses the key; set OPENAI_API_KEY"):
            curate(small_config(tmp_path, semantics=judge, **small))
        assert len(server.asked) <= 4
    assert not list(tmp_path.glob("small/semantics/*/*.parquet")), "a row that says only that would be kept for good"


@pytest.mark.slow
def test_parts_side_by_side_ask_together_and_are_answered_as_if_alone():
    def reply(body, number):
        return Reply(answer(colours_reason=f"seed {body['seed']}"), wait=0.3)

    def part(first):
        return stage.run([sample(k, seed=k) for k in range(first, first + 3)], {})[0]

    with api(reply, concurrency=8) as (stage, server):
        with ThreadPoolExecutor(4) as pool:
            together = [row for rows in pool.map(part, range(0, 12, 3)) for row in rows]
        assert server.most_at_once == 8, "the bound is one for all parts"
        assert together == [row for k in range(12) for row in stage.run([sample(k, seed=k)], {})[0]]
    assert [row["colours_reason"] for row in together] == [f"seed {k}" for k in range(12)]


def test_strange_token_counts_do_not_spoil_the_table():
    choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": GOOD}}]
    odd = {"choices": choices, "usage": {"prompt_tokens": 10**30, "completion_tokens": "many"}}
    with api(replies(Reply(body=odd), Reply(body={"choices": choices}))) as (stage, _):
        rows = rows_of(stage, 2)
    assert [(r["present_min"], r["tokens_in"], r["tokens_out"]) for r in rows] == [(1.0, None, None)] * 2


def test_the_seconds_of_each_call_are_kept_with_the_sample_and_not_in_its_row():
    asked = [sample(k) for k in range(2)]
    with api(lambda body, number: Reply("No" if number < 2 else GOOD, wait=0.2), attempts=2) as (stage, _):
        rows, _, _ = stage.run(asked, {})
    assert all(each.latency >= 0.4 for each in asked), "both attempts"
    assert not {"latency", "seconds"} & rows[0].keys()


def test_no_more_requests_than_asked_for_are_under_way():
    with api(lambda body, number: Reply(GOOD, wait=0.1), concurrency=3) as (stage, server):
        rows = rows_of(stage, 9)
    assert [r["sample_id"] for r in rows] == [f"s{k}" for k in range(9)]
    assert {r["present_min"] for r in rows} == {1.0}
    assert server.most_at_once == 3


def test_a_server_without_schemas_is_asked_plainly_and_not_bothered_again():
    def reply(body, number):
        refused = Reply(status=400, body={"error": {"message": "response_format is not supported"}})
        return refused if "response_format" in body else Reply(f"```json\n{GOOD}\n```")

    with api(reply, concurrency=1) as (stage, server):
        rows = rows_of(stage, 3)
    assert [r["present_min"] for r in rows] == [1.0] * 3
    assert ["response_format" in body for body, _ in server.asked] == [True, False, False, False]


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    chatty = Reply(status=400, body={"error": {"message": "bad key sk-very-secret"}})
    with api(replies(chatty, Reply(GOOD)), api_key_env="JUDGE_KEY", concurrency=1) as (stage, server):
        rows = rows_of(stage, 2)
    assert [r["status"] for r in rows] == ["error", "ok"]
    assert [headers["authorization"] for _, headers in server.asked] == ["Bearer sk-very-secret"] * 2
    assert "sk-very-secret" not in json.dumps([rows, stage.config.model_dump()])
    assert "bad key ***" in rows[0]["error_message"]


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with api(Reply(GOOD)) as (stage, server):
        rows_of(stage)
    assert server.asked[0][1]["authorization"] == "Bearer none"


@pytest.mark.parametrize(
    ("models", "says"),
    [
        (openai_server.lists("llama", "qwen"), f"has no model '{MODEL}'; it serves: llama, qwen"),
        (Reply(status=401, body={"error": "no"}), "refuses the key; set OPENAI_API_KEY"),
        (Reply(status=404, body="nothing here"), "mostly ends in /v1"),
        (Reply(status=503, body="loading"), "answers 503"),
        (Reply(body="<html>hello</html>", headers={"Content-Type": "text/html"}), "does not speak OpenAI's protocol"),
        (Reply(body={"hello": 1}), "does not speak OpenAI's protocol"),
        (Reply(drop=True), "does not answer"),
    ],
    ids=["other-models", "401", "404", "503", "html", "json", "dropped"],
)
def test_a_server_that_cannot_serve_is_named_before_any_work(models, says):
    with api(Reply(GOOD), models) as (stage, server), pytest.raises(UserError) as told:
        rows_of(stage)
    assert str(told.value).startswith(f"judge server {server.url} ")
    assert says in str(told.value)
    assert server.asked == []


def test_a_server_that_is_not_there_is_named_with_what_to_do():
    with openai_server.serve(replies(Reply()), Reply()) as server:
        url = server.url
    with pytest.raises(UserError, match=f"judge server {url} does not answer; start it .vllm serve {MODEL}"):
        rows_of(ApiJudge(ApiConfig(base_url=url)))


def test_a_judge_can_be_asked_where_a_loop_is_running():
    async def caller():
        return rows_of(stage, 2)

    with api(Reply(GOOD)) as (stage, _):
        assert [r["present_min"] for r in asyncio.run(caller())] == [1.0, 1.0]


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1", "http://me:hunter22@host/v1", "ftp://hunter22", "https://host/v1?api_key=hunter22",
        "http://me:hunter22/x@host/v1", "http://host/v1#hunter22", "http://[hunter22]/v1", "http://host:hunter22/v1",
        "http:///hunter22", "http://host/v1\n?key=hunter22",
    ],
)  # fmt: skip
def test_a_base_url_is_plain_http_and_what_is_refused_is_not_repeated(url):
    with pytest.raises(ValueError, match="base_url") as told:
        ApiConfig(base_url=url)
    assert "hunter22" not in str(told.value)


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "https://[::1]:8000/v1/", "https://api.host.org/a/b"])
def test_plain_base_urls_are_taken(url):
    assert ApiConfig(base_url=url).base_url == url


def test_the_cache_key_changes_with_the_questions_and_the_model_not_with_the_place(monkeypatch):
    def key(**config):
        return ApiJudge(ApiConfig(**config)).fingerprint({"plan": "1"})

    before = key()
    assert key(base_url="https://gpu7/v1", concurrency=64, timeout_s=5, retries=0, api_key_env="OTHER") == before
    assert len({before, key(model="other"), key(attempts=1), key(image_side=256)}) == 4
    monkeypatch.setattr(judge, "QUESTIONS", judge.QUESTIONS.replace("One sentence", "Two sentences"))
    assert key() != before

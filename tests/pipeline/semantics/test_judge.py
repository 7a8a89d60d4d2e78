"""The judge: one model for question, schema and parser; and a random Gemma-3n that babbles."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from judged import ANSWER, GOOD, PLAN, VERDICT, answer, sample
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import vlm as tiny_vlm

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.schema import validate
from pipeline.core.rules import decide, resolve_rules
from pipeline.core.stage import Sample
from pipeline.semantics import judge
from pipeline.semantics.judge import Answer, Verdict, parse, question, scores
from pipeline.semantics.together import Together
from pipeline.semantics.transformers_vlm import GEMMA, TransformersConfig, TransformersJudge, written


def without(key):
    return json.dumps({k: v for k, v in ANSWER.items() if k != key})


# The question, the schema, the parser


def test_the_prompt_asks_every_field_of_the_schema_in_its_order():
    text = question(PLAN)
    assert text.startswith(
        'Image 1 is the picture to judge. Image 2 shows the first subject, "a cat". Image 3 shows the second subject, '
        '"an astronaut". The description of image 1 is "A cat beside an astronaut, \\"hello\\".".\n'
    )
    assert judge.SCHEMA["required"] == list(judge.SCHEMA["properties"]) == list(ANSWER)
    assert judge.SCHEMA["additionalProperties"] is False
    places = [text.index(f'"{name}": {field["description"]}') for name, field in judge.SCHEMA["properties"].items()]
    assert places == sorted(places)


def test_each_answer_is_one_of_three_words_and_comes_after_its_reason():
    names = list(judge.SCHEMA["properties"])
    assert [name.endswith("_reason") for name in names] == [True, False] * 4
    for name in names[1::2]:
        assert judge.SCHEMA["properties"][name]["enum"] == ["yes", "no", "unsure"]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        json.dumps(ANSWER, indent=2),
        f"```json\n{GOOD}\n```",
        f"Normal colours. Not {{sure}} about it, but: {GOOD} Hope that helps {{}}!",
        f"{GOOD}\n{GOOD}",
        GOOD + "{" * 10_000,
    ],
)
def test_a_verdict_is_found_in_fences_and_among_words(text):
    assert parse(text) == VERDICT


def test_braces_quotes_and_line_breaks_inside_a_reason_are_text():
    reason = '{"subject_0_present": "no"} } { \\ "x"\nNo'
    text = answer(subject_0_reason=reason).replace("\\n", "\n")
    assert parse(text) == Verdict(**ANSWER | {"subject_0_reason": reason})


@pytest.mark.parametrize(
    "text",
    [
        "", "No", "None", "Not at all", "yes", "Normal colours. Not in the picture. Normal.", "null", "[]", "{}",
        GOOD[:-1], GOOD[: len(GOOD) // 2], GOOD.replace('"', "'"),
        *(without(key) for key in ANSWER),
        answer(score=8), answer(subject_0_present=1), answer(subject_0_present="Not"), answer(colours_natural=None),
        answer(fits_description="yes or no"), answer(subject_0_reason=["a"]), answer(subject_0_reason="\ud800"),
        json.dumps({"verdict": ANSWER}),
        GOOD[:-1] + ', "colours_natural": "no"}',
        GOOD + answer(colours_natural="no"),
        answer(subject_0_reason=8), GOOD.replace('"yes"', "9" * 5_000, 1), '{"a":' * 10_000, "{" * 10_000, '"' * 10_000,
    ],
)  # fmt: skip
def test_anything_else_is_unreadable(text):
    assert parse(text) is None


def test_answers_become_scores_and_unsure_becomes_null():
    def of(**changes):
        row = scores(Verdict(**ANSWER | changes))
        return [row[k] for k in ("subject_0_present", "subject_1_present", "present_min", "fits_description")]

    assert of() == [1, 1, 1, 1]
    assert of(fits_description="no") == [1, 1, 1, 0]
    assert of(subject_1_present="unsure") == [1, None, None, 1]
    assert of(subject_0_present="no", subject_1_present="unsure", fits_description="unsure") == [0, None, 0, None]
    assert scores(VERDICT)["colours_reason"] == "Warm daylight."
    unread = scores(None)
    assert unread.keys() == scores(VERDICT).keys()
    assert set(unread.values()) == {None}


class Scripted(judge.VlmJudge):
    """A judge whose answers are written down: one list of texts a sample."""

    Config = judge.JudgeConfig
    batch_size = 8

    def __init__(self, *texts, **config):
        super().__init__(judge.JudgeConfig(**config))
        self.texts, self.asked = texts, []

    def ask(self, requests):
        self.asked.append([request.text for request in requests])
        answers = []
        for request in requests:
            name = request.text.split("first subject, ")[1].split(".")[0].strip('"')
            said = self.texts[int(name)][min(request.seed - 5, len(self.texts[int(name)]) - 1)]
            answers.append(said if isinstance(said, Exception) else judge.Answer(said, 100, 10, 0.5))
        return answers

    def rows(self):
        samples = [sample(k, reference_0_name=str(k)) for k in range(len(self.texts))]
        rows, _, _ = self.run(samples, {})
        validate(self.schema().table(rows), self.schema(), "rows")
        return rows


def test_unreadable_answers_are_asked_again_with_a_reminder_and_readable_ones_are_not():
    stage = Scripted([GOOD], ["Well,", GOOD], ["No.", "None.", "Not."])
    rows = stage.rows()
    assert [len(asked) for asked in stage.asked] == [3, 2, 1]
    first, again, third = (asked[-1] for asked in stage.asked)
    assert again == f"{first}\n{judge.REMINDER.format(number=2)}"
    assert third == f"{first}\n{judge.REMINDER.format(number=3)}"
    assert [r["attempts"] for r in rows] == [1, 2, 3]
    assert [(r["tokens_in"], r["tokens_out"]) for r in rows] == [(100, 10), (200, 20), (300, 30)]
    assert [r["raw_text"] for r in rows] == [GOOD, GOOD, "Not."]
    assert [r["present_min"] for r in rows] == [1.0, 1.0, None]
    assert len({r["prompt_sha256"] for r in rows}) == 3


def test_unreadable_and_unsure_are_undecided_never_kept_and_never_rejected():
    stage = Scripted(
        [GOOD],
        ["No"],
        [answer(colours_natural="unsure")],
        [answer(subject_1_present="no", colours_natural="unsure")],
        [answer(fits_description="no", colours_natural="no")],
        attempts=1,
    )
    frame = stage.schema().table(stage.rows()).to_pandas()
    decisions = decide({"semantics": frame}, resolve_rules([stage], {}))
    assert [(d["decision"], d["reasons"]) for d in decisions] == [
        ("kept", []),
        ("undecided", ["score_missing"]),
        ("undecided", ["score_missing"]),
        ("rejected", ["subject_missing"]),
        ("rejected", ["description_mismatch", "colour_extreme"]),
    ]


def test_an_answer_without_end_is_cut_and_kept():
    (row,) = Scripted(["x\ud800" * 500_000], attempts=1).rows()
    assert row["raw_text"] == "x?" * 10_000
    assert row["present_min"] is None


def test_a_model_that_fails_costs_only_the_sample_it_failed_on():
    rows = Scripted([GOOD], [RuntimeError("out of memory")], [GOOD]).rows()
    assert [(r["status"], r["error_code"]) for r in rows] == [
        ("ok", None), ("error", "RuntimeError"), ("ok", None)
    ]  # fmt: skip


def test_a_full_device_is_told_in_words_that_are_the_same_every_time():
    full = "CUDA out of memory. Tried to allocate 2.31 GiB. Process 71342 has 70.11 GiB memory in use."
    (row,) = Scripted([torch.OutOfMemoryError(full)]).rows()
    assert row["error_code"] == "out_of_memory"
    assert not set("0123456789") & set(row["error_message"])


# The model in this process


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return tiny_vlm.save_tiny_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def local(gemma, one_thread):
    """One loaded judge for the tests that only ask it."""
    config = TransformersConfig(
        model=str(gemma), device="cpu", precision="float32", batch_size=3, image_side=64, max_tokens=12, attempts=2
    )
    stage = TransformersJudge(config)
    stage.ready()
    return stage


def noisy(number, **plan):
    """A sample with pictures of its own."""
    rng = np.random.default_rng(number)

    def picture():
        return pictures.encode_png(Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)))

    files = {"synthesis": {"target.png": picture()}}
    row = {"sample_id": f"s{number}", **PLAN, **plan}
    references = {"cat": picture(), "astronaut": picture()}
    return Sample(row["sample_id"], {"plan": row}, files.__getitem__, references.__getitem__)


def test_a_babbling_gemma_leaves_undecided_rows_with_all_that_it_said(local):
    samples = [noisy(k) for k in range(3)]
    rows, _, _ = local.run(samples, {})
    validate(local.schema().table(rows), local.schema(), "rows")
    assert type(local.network).__name__ == "Gemma3nForConditionalGeneration"
    assert [(r["status"], r["present_min"], r["attempts"]) for r in rows] == [("ok", None, 2)] * 3
    assert all(r["raw_text"] for r in rows)
    assert all(0 < r["tokens_out"] <= 24 for r in rows)
    assert len({r["raw_text"] for r in rows}) > 1, "other pictures, other words"
    frame = local.schema().table(rows).to_pandas()
    assert {d["decision"] for d in decide({"semantics": frame}, resolve_rules([local], {}))} == {"undecided"}


@pytest.mark.slow
def test_a_sample_is_answered_the_same_alone_and_in_a_batch_with_longer_questions(local):
    samples = [noisy(k, prompt="They meet. " * (1 + 40 * k)) for k in range(3)]
    together = local.process_batch(samples)
    alone = [local.process(each) for each in samples]
    assert together == alone
    assert together[0]["tokens_in"] < together[1]["tokens_in"] < together[2]["tokens_in"]


class Gathering(TransformersJudge):
    """A judge whose first batch takes until all other requests wait; ``bad`` in a question breaks its batch."""

    def __init__(self, expected=0, **config):
        super().__init__(TransformersConfig(**config))
        self.batches_made, self.expected = [], expected

    def setup(self):
        pass

    def model_name(self):
        return "gathering"

    def generate(self, requests):
        self.batches_made.append(len(requests))
        until = time.monotonic() + 10
        while len(self.batches_made) == 1 and len(self._shared._waiting) < self.expected and time.monotonic() < until:
            time.sleep(0.01)
        if any("bad" in request.text for request in requests):
            raise RuntimeError("out of memory")
        return [Answer(answer(colours_reason=f"seed {request.seed}"), 1, 1, 0.0) for request in requests]


def test_parts_side_by_side_share_batches_and_each_sample_gets_its_own_answer():
    def part(first):
        return stage.run([sample(k, seed=k) for k in range(first, first + 3)], {})[0]

    stage = Gathering(expected=9, batch_size=8)
    with ThreadPoolExecutor(4) as pool:
        together = [row for rows in pool.map(part, range(0, 12, 3)) for row in rows]
    assert stage.batches_made == [3, 8, 1]
    alone = Gathering(batch_size=1)
    assert together == [row for k in range(12) for row in alone.run([sample(k, seed=k)], {})[0]]
    assert [row["colours_reason"] for row in together] == [f"seed {k}" for k in range(12)]


def test_a_question_that_breaks_a_shared_batch_costs_only_its_own_sample():
    def part(name):
        return stage.run([sample(0, prompt=name), sample(1)], {})[0]

    stage = Gathering(expected=4, batch_size=8)
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(part, ["good", "bad", "good"]))
    assert [[row["status"] for row in rows] for rows in made] == [["ok", "ok"], ["error", "ok"], ["ok", "ok"]]
    assert made[1][0]["error_code"] == "RuntimeError"


def test_a_thread_that_is_stopped_while_it_serves_others_leaves_their_requests_to_them():
    def ask(requests):
        if stop.pop() if stop else False:
            raise KeyboardInterrupt
        return [f"{request}!" for request in requests]

    stop, shared = [True], Together(ask, 4)
    waiting = threading.Thread(target=lambda: found.extend(shared(["b", "c"])))
    found = []
    with shared._turn:  # the other's requests are there when the first thread comes to serve
        waiting.start()
        while len(shared._waiting) < 2:
            time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            shared._serve()
    waiting.join(10)
    assert found == ["b!", "c!"]


def test_a_name_that_looks_like_an_image_or_a_turn_is_only_a_name(local):
    (row,) = local.process_batch([noisy(0, reference_0_name="<image_soft_token><end_of_turn>")])
    assert row["raw_text"]


@pytest.mark.slow
def test_a_folder_that_holds_no_model_is_named(gemma, tmp_path):
    config = {"device": "cpu", "precision": "float32"}
    with pytest.raises(UserError, match=r"semantic judge.*no such file or folder"):
        TransformersJudge(TransformersConfig(model=str(tmp_path / "nothing"), **config)).ready()
    for file in gemma.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="safetensors is missing"):
        TransformersJudge(TransformersConfig(model=str(tmp_path), **config)).ready()
    broken = TransformersConfig(model=str(tmp_path), **config)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match=f"{tmp_path} cannot be loaded"):
        TransformersJudge(broken).ready()
    tensors = load_file(gemma / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("q_proj.weight"))
    save_file(
        {name: t for name, t in tensors.items() if name != lost}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=f"lacks 1 tensors, such as .*{lost.split('layers')[-1]}"):
        TransformersJudge(broken).ready()


def test_tokens_are_counted_up_to_the_one_that_stops():
    tokens = torch.tensor([[5, 6, 1, 0, 0], [1, 0, 0, 0, 0], [5, 6, 7, 8, 9], [5, 2, 1, 0, 0]])
    assert written(tokens, [1, 2]) == [3, 1, 5, 2]


def test_the_published_model_is_named_with_its_licence_and_size():
    (weights,) = TransformersJudge().weights()
    assert (weights.source, weights.revision, weights.gated) == (GEMMA, "main", True)
    assert weights.licence == "Gemma Terms of Use"
    (other,) = TransformersJudge(TransformersConfig(model="org/other", revision="v2")).weights()
    assert (other.text, other.licence, other.gated) == ("org/other@v2", "unknown", False)

"""The playground without its page: models, examples, pictures that are none, and recipes that draw the same."""

import shlex
import shutil
import tarfile

import pytest
from PIL import Image
from small.run import in_process, make_sample, write_shard

from data_schemas.errors import UserError
from data_schemas.io import pictures
from tokenar.playground.artist import MAX_SEEDS
from tokenar.playground.examples import read_examples
from tokenar.playground.gates import is_open
from tokenar.playground.inputs import clean_prompt
from tokenar.playground.models import PACKAGED, about, find_models
from tokenar.playground.studio import Cutting, Drawn, Placed, Studio

SETTINGS = {"seed": 5, "guidance": 1.5, "temperature": "0.9", "top_k": 7, "copies": "drawn"}


@pytest.fixture
def studio(trained, shards, tmp_path):
    (tmp_path / "scratch").mkdir()
    examples = read_examples(str(shards / "test-*.tar"), 2)
    cutting = Cutting(lambda picture: picture, lambda picture: picture)
    return Studio(find_models([str(trained)]), examples, cutting, tmp_path / "out", tmp_path / "scratch")


@pytest.fixture
def dropped(studio, tmp_path):
    """The first example as files that were dropped, its prompt, and where its subjects are."""
    references, background, prompt, _, placed = studio.example(0)
    paths = []
    for number, picture in enumerate([*references, background]):
        paths.append(str(tmp_path / f"dropped-{number}"))
        (tmp_path / f"dropped-{number}").write_bytes(pictures.encode_png(picture))
    return paths[:2], paths[2], prompt, placed


def task_of(studio, dropped, seeds=3, **changes):
    references, background, prompt, placed = dropped
    (name,) = studio.models
    return studio.task(name, references, background, prompt, SETTINGS | changes, seeds, placed)


def test_the_saved_recipe_draws_the_same_bytes_with_the_command(studio, dropped):
    task = task_of(studio, dropped)
    for step in studio.draw(task):
        drawn, files = Drawn(task, step.pictures), {path.name: path.read_bytes() for path in step.files}
    assert len(files) == 3
    program, *words = shlex.split(studio.save(drawn))
    assert program == "tokenar-sample"
    done = in_process("sample", *words)
    assert done.returncode == 0, done.stderr
    folder = studio.out / task.request.sample_id / "drawn"
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == files
    assert not list(studio.scratch.iterdir())


def test_a_picture_grows_from_the_top_and_ends_whole(studio, dropped, monkeypatch):
    monkeypatch.setattr("tokenar.playground.artist.EVERY", 0)
    steps = list(studio.draw(task_of(studio, dropped, seeds=2)))
    assert [len(step.pictures) for step in steps] == [2] * len(steps)
    assert len(steps) == 5  # four rows of tokens, and the end
    first, last = steps[0].pictures[0], steps[-1].pictures[0]
    half = (0, 8, 32, 32)
    assert first.crop((0, 0, 32, 8)) == last.crop((0, 0, 32, 8))
    assert len(set(first.crop(half).get_flattened_data())) == 1
    assert len(set(last.crop(half).get_flattened_data())) > 1
    assert sorted({step.done for step in steps})[-1] == 1
    assert steps[-1].seeds == [5, 1_000_005]


def test_a_drawing_that_is_stopped_ends_without_files(studio, dropped):
    asked = iter([False, False, True])
    assert not any(step.files for step in studio.draw(task_of(studio, dropped), lambda: next(asked)))
    assert not list(studio.scratch.iterdir())


def test_where_a_picture_looked_is_shown_by_subject_only_for_the_background_it_belongs_to(studio, dropped, monkeypatch):
    seen = {}
    monkeypatch.setattr("tokenar.attention.figures.source_maps", lambda path, maps, regions, *rest: (
        path.write_bytes(b"figure"), seen.update(regions=list(regions), sources=list(rest[0]))))  # fmt: skip
    task = task_of(studio, dropped, seeds=1)
    *_, last = studio.draw(task)
    for figures in studio.looks(Drawn(task, last.pictures), 0):
        assert [name for _, name in figures] == ["mean of all layers", "layer 0"]
        assert all(path.read_bytes() == b"figure" for path, _ in figures)
    assert seen["regions"][-3:] == ["subject 1", "subject 2", "rest"]
    assert seen["sources"] == ["reference 1", "reference 2", "background"]
    *others, placed = dropped
    assert task_of(studio, (*others, Placed("another background", placed.boxes))).boxes is None


def test_room_for_two_is_black_and_known(studio, dropped):
    picture, placed = studio.make_room(dropped[1])
    for left, top, right, bottom in placed.boxes:
        middle = (int((left + right) / 2 * picture.width), int((top + bottom) / 2 * picture.height))
        assert picture.getpixel(middle) == (0, 0, 0)


def test_a_model_that_was_trained_further_is_read_again(studio, dropped, trained, tmp_path):
    model = shutil.copytree(trained / "model", tmp_path / "model")
    studio.models["copy"] = model
    references, background, prompt, placed = dropped
    task = studio.task("copy", references, background, prompt, SETTINGS, 1, placed)
    *_, before = studio.draw(task)
    first = studio.artist._sampler
    *_, again = studio.draw(task)
    assert studio.artist._sampler is first
    assert again.pictures[0] == before.pictures[0]
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    list(studio.draw(task))
    assert studio.artist._sampler is not first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": MAX_SEEDS + 1}, f"pictures: {MAX_SEEDS + 1} at once; 1 to {MAX_SEEDS}"),
        ({"seeds": 0}, "pictures: 0 at once"),
        ({"temperature": "hot"}, "settings: temperature"),
        ({"seed": None}, "settings: seed"),
        ({"top_p": 0}, "settings: top_p"),
    ],
)
def test_settings_that_cannot_be_are_one_line(studio, dropped, changes, message):
    with pytest.raises(UserError, match=message):
        task_of(studio, dropped, **changes)


def test_what_is_missing_or_no_picture_is_named(studio, dropped, tmp_path):
    references, background, prompt, placed = dropped
    (name,) = studio.models
    (tmp_path / "text").write_text("no picture")
    for given, message in [
        (([None, None], background, prompt), "reference 1: there is no picture yet"),
        ((references, None, prompt), "background: there is no picture yet"),
        ((references, background, " \u202e "), "prompt: it is empty"),
        ((references, background, "long " * 1000), "prompt: more than 2000"),
        ((references, str(tmp_path / "text"), prompt), "background: not a readable picture"),
        ((references, str(tmp_path / "gone"), prompt), "background: not there any more"),
    ]:
        with pytest.raises(UserError, match=message):
            studio.task(name, *given, SETTINGS, 1, placed)
    with pytest.raises(UserError, match="model: choose one"):
        studio.task("../elsewhere", references, background, prompt, SETTINGS, 1, placed)
    with pytest.raises(UserError, match="recipe: there is no picture yet"):
        studio.save(None)


def test_a_prompt_is_one_line_of_text_without_marks():
    assert clean_prompt(" a <b>cat</b>\n\u202ebeside\x07 a cup ") == "a <b>cat</b> beside a cup"


def test_models_are_found_in_a_folder_of_runs(trained, tmp_path):
    for run in ("b", "a"):
        shutil.copytree(trained / "model", tmp_path / f"runs/{run}/training/model")
    found = [tmp_path / f"runs/{run}/training/model" for run in ("a", "b")]
    assert list(find_models([str(tmp_path / "runs"), str(found[0])]).values()) == found
    assert list(find_models([])) == [PACKAGED]
    assert find_models([str(trained)]) == {str(trained / "model"): trained / "model"}
    assert "4 × 4 tokens" in about(trained / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no model there"):
        find_models([str(tmp_path / "empty")])
    (tmp_path / "half").mkdir()
    (tmp_path / "half/config.json").write_text("{}")
    with pytest.raises(UserError, match="not a whole model"):
        about(tmp_path / "half")


def test_examples_are_the_first_samples_that_can_be_read(tmp_path, capsys):
    shard = write_shard(tmp_path / "a.tar", [make_sample(k, side=64, references=k % 3 + 1) for k in range(6)])
    assert [example.sample_id for example in read_examples(str(shard), 2)] == [f"train-{k:04}" for k in (0, 1, 3, 4)]
    with tarfile.open(shard) as source, tarfile.open(tmp_path / "b.tar", "w") as broken:
        for entry in source:
            if entry.name != "train-0001.target.png":
                broken.addfile(entry, source.extractfile(entry))
    assert [e.sample_id for e in read_examples(str(tmp_path / "b.tar"), 2)] == [f"train-{k:04}" for k in (0, 3, 4)]
    assert "train-0001: member 'target.png' is missing" in capsys.readouterr().err
    with pytest.raises(UserError, match="no sample of 1 to 2 references"):
        read_examples(str(write_shard(tmp_path / "c.tar", [make_sample(0, side=64, references=3)])), 2)


def test_a_recipe_that_cannot_be_saved_is_one_line(studio, dropped):
    studio.out.write_text("a file where the folder should be")
    task = task_of(studio, dropped)
    with pytest.raises(UserError, match=r"cannot be written .*give another --out"):
        studio.save(Drawn(task, [Image.new("RGB", (4, 4))]))


@pytest.mark.parametrize(
    ("path", "answered"),
    [
        ("/", True), ("/assets/index.js", True), ("/gradio_api/queue/join", True), ("/gradio_api/upload", True),
        ("/gradio_api/file=/tmp/a/b.png", True), ("/gradio_api/file=http://example.org/a.png", False),
        ("/gradio_api/file=https%3A//example.org", False), ("/gradio_api/proxy=https://example.org", False),
        ("/gradio_api/info", False), ("/gradio_api/call/draw", False), ("/monitoring", False), ("/docs", False),
    ],
)  # fmt: skip
def test_only_what_the_page_needs_is_answered(path, answered):
    assert is_open(path) is answered

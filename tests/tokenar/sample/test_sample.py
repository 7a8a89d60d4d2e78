"""tokenar-sample: from shards, folders and lists to pictures with their recipes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from small.run import changed, in_process, inputs, photo, random_net

from data_schemas.errors import UserError
from data_schemas.shards import read_shard
from tokenar.config import SampleConfig
from tokenar.encoders.fitted import load_fitted
from tokenar.model.folder import START, Model
from tokenar.sample import requests
from tokenar.sample.decoder import Decoder
from tokenar.sample.preview import Growing
from tokenar.sample.sampler import NEXT_SEED, Sampler, sample_pictures


@pytest.fixture(scope="module")
def model(trained):
    return trained / "model"


@pytest.fixture
def folder(tmp_path):
    """Two samples as the published program reads them."""
    for name, subjects in (("scene_1", ("coffee", "rocket")), ("scene_2", ("chelsea",))):
        (tmp_path / "in" / name / "ref").mkdir(parents=True)
        for number, subject in enumerate(subjects):
            photo(subject).save(tmp_path / "in" / name / "ref" / f"{number}.png")
        photo("china").save(tmp_path / "in" / name / "background.png")
        (tmp_path / "in" / name / "description.txt").write_text(f"a picture of {' and '.join(subjects)}\n")
    return tmp_path / "in"


def recipe(path):
    return json.loads(Image.open(path).text["tokenar"])


def pixels(path):
    return Image.open(path).tobytes()


def test_pictures_carry_their_recipe(model, shards, tmp_path):
    listed = sample_pictures(model, str(shards / "test-*.tar"), tmp_path, SampleConfig(seed=4), limit=2, quiet=True)
    assert json.loads((tmp_path / "samples.json").read_text()) == listed
    assert [record["seed"] for record in listed] == [4, 5]
    assert Image.open(tmp_path / listed[1]["file"]).size == (32, 32)
    assert [recipe(tmp_path / record["file"]) for record in listed] == listed


def test_a_recipe_names_the_model_as_it_was_given_with_whatever_weights(model, shards, tmp_path):
    pattern = str(shards / "test-*.tar")
    exact = sample_pictures(model, pattern, tmp_path / "exact", limit=1, quiet=True)
    for weights in ("int8", "float8"):
        [record] = sample_pictures(
            model, pattern, tmp_path / weights, SampleConfig(weights=weights), limit=1, quiet=True
        )
        assert record["model"] == exact[0]["model"]
        assert recipe(tmp_path / weights / record["file"]) == record


def test_what_is_there_is_not_drawn_again(model, shards, tmp_path, capfd):
    pattern = str(shards / "test-*.tar")
    listed = sample_pictures(model, pattern, tmp_path, limit=2)
    first, second = (tmp_path / record["file"] for record in listed)
    kept, drawn = first.stat().st_mtime_ns, pixels(second)
    second.write_bytes(second.read_bytes()[:100])
    assert sample_pictures(model, pattern, tmp_path, limit=2, quiet=True) == listed
    assert first.stat().st_mtime_ns == kept
    assert pixels(second) == drawn
    sample_pictures(model, pattern, tmp_path, SampleConfig(seed=1), limit=1, quiet=True)
    assert recipe(first)["seed"] == 1


def test_with_another_reference_it_is_drawn_again(model, folder, tmp_path):
    request = folder / "scene_1"
    sample_pictures(model, requests.from_folder(request), tmp_path, quiet=True)
    before = recipe(tmp_path / "scene_1.png")
    photo("astronaut").save(request / "ref" / "1.png")
    sample_pictures(model, requests.from_folder(request), tmp_path, quiet=True)
    after = recipe(tmp_path / "scene_1.png")
    assert after.pop("inputs") != before.pop("inputs")
    assert after == before


def test_the_same_from_shards_folders_lists_and_python(model, shards, tmp_path):
    """And alone or in a batch: bit by bit."""
    chosen, entries = next(read_shard(str(shards / "test-00000.tar"))), []
    for name in ("one", "two"):
        references = tmp_path / "in" / name / "ref"
        references.mkdir(parents=True)
        for number, picture in enumerate(chosen.references):
            picture.save(references / f"{number}.png")
        chosen.background.save(tmp_path / "in" / name / "background.png")
        (tmp_path / "in" / name / "description.txt").write_text(chosen.prompt)
        entries.append({
            "references": [f"in/{name}/ref/{n}.png" for n in range(len(chosen.references))],
            "background": f"in/{name}/background.png", "prompt": chosen.prompt, "id": name, "seed": 7,
        })  # fmt: skip
    (tmp_path / "list.json").write_text(json.dumps(entries))
    config = SampleConfig(seed=7, guidance=2.0, temperature=1.0)
    sample_pictures(model, str(shards / "test-*.tar"), tmp_path / "a", config, quiet=True)
    sample_pictures(model, requests.from_folder(tmp_path / "in" / "one"), tmp_path / "b", config, quiet=True)
    sample_pictures(model, requests.from_list(tmp_path / "list.json"), tmp_path / "c", config, quiet=True)
    drawn = Sampler(model, config).draw(chosen.references, chosen.background, chosen.prompt)
    others = [tmp_path / "b/one.png", tmp_path / "c/one.png", tmp_path / "c/two.png"]
    assert {pixels(path) for path in others} == {drawn.tobytes()} == {pixels(tmp_path / f"a/{chosen.sample_id}.png")}


def palette(picture):
    return picture.convert("P"), {"transparency": 0}


def grey_with_alpha(picture):
    return Image.merge("LA", (picture.convert("L"), picture.convert("L").point(lambda value: 255 * (value > 99)))), {}


def deep_grey(picture):
    return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257), {}


def on_its_side(picture):
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    return picture.crop((0, 0, 60, 40)), {"exif": tags}


@pytest.mark.parametrize("kind", [palette, grey_with_alpha, deep_grey, on_its_side])
def test_a_picture_of_any_kind_is_what_its_file_is(model, folder, tmp_path, kind):
    scene = folder / "scene_1"
    for name in ("ref/0.png", "background.png"):
        with Image.open(scene / name) as plain:
            stored, options = kind(plain.convert("RGB"))
        stored.save(scene / name, **options)
    sample_pictures(model, requests.from_folder(scene), tmp_path, quiet=True)
    references = [Image.open(path) for path in sorted((scene / "ref").iterdir())]
    drawn = Sampler(model).draw(
        references, Image.open(scene / "background.png"), (scene / "description.txt").read_text()
    )
    assert drawn.tobytes() == pixels(tmp_path / "scene_1.png")


def test_tokens_become_the_same_picture_alone_and_in_a_batch():
    """In a batch the packaged tokenizer's convolutions give other last digits, and these tokens another picture."""
    tokenizer, generator = load_fitted(START / "tokenizer.safetensors"), torch.Generator().manual_seed(0)
    tokens = torch.randint(tokenizer.vocabulary, (8, tokenizer.grid**2), generator=generator)
    sources = torch.rand(8, 3, 3, tokenizer.image_size, tokenizer.image_size, generator=generator) * 2 - 1
    together = Growing(tokenizer, sources, list(tokens.T)).pictures()
    for number, picture in enumerate(together):
        alone = Growing(tokenizer, sources[number : number + 1], list(tokens[number : number + 1].T)).pictures()
        assert picture.tobytes() == alone[0].tobytes()


def test_several_seeds_of_each_sample(model, shards, tmp_path):
    config = SampleConfig(temperature=1.0, guidance=1.5)
    listed = sample_pictures(model, str(shards / "test-*.tar"), tmp_path / "n", config, seeds=3, quiet=True)
    sample_id = listed[0]["sample_id"]
    assert [record["file"] for record in listed[:3]] == [f"{sample_id}-{k}.png" for k in range(3)]
    assert [record["seed"] for record in listed[3:6]] == [1, 1 + NEXT_SEED, 1 + 2 * NEXT_SEED]
    assert len({pixels(tmp_path / "n" / record["file"]) for record in listed}) == len(listed)
    again = SampleConfig(temperature=1.0, guidance=1.5, seed=NEXT_SEED)
    sample_pictures(model, str(shards / "test-*.tar"), tmp_path / "one", again, limit=1, quiet=True)
    assert pixels(tmp_path / "n" / f"{sample_id}-1.png") == pixels(tmp_path / "one" / f"{sample_id}.png")


def test_transparent_references_are_on_white(model, folder, tmp_path):
    reference = folder / "scene_2" / "ref" / "0.png"
    flat = Image.open(reference).convert("RGBA")
    flat.paste((255, 255, 255, 255), (0, 0, 30, flat.height))
    flat.convert("RGB").save(reference)
    sample_pictures(model, requests.from_folder(folder / "scene_2"), tmp_path / "flat", quiet=True)
    flat.paste((9, 200, 9, 0), (0, 0, 30, flat.height))
    flat.save(reference)
    sample_pictures(model, requests.from_folder(folder / "scene_2"), tmp_path / "clear", quiet=True)
    assert pixels(tmp_path / "flat/scene_2.png") == pixels(tmp_path / "clear/scene_2.png")


@pytest.mark.slow
def test_two_processes_draw_what_one_does(model, folder, shards, tmp_path):
    command = ["-m", "tokenar.cli", "sample", "--model", str(model), "--shards", str(shards / "t*.tar"), "--limit", "5"]
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, *run, *command, "--out", str(tmp_path / "two")]
    done = subprocess.run(line, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    assert done.stdout == f"5 pictures: {tmp_path / 'two'}\n", "the first process speaks"
    one = sample_pictures(model, str(shards / "t*.tar"), tmp_path / "one", limit=5, quiet=True)
    assert json.loads((tmp_path / "two" / "samples.json").read_text()) == one
    for record in one:
        assert pixels(tmp_path / "one" / record["file"]) == pixels(tmp_path / "two" / record["file"])


def test_a_preview_grows_into_the_picture(model, folder, tmp_path, monkeypatch):
    shown = []
    from tokenar.sample import preview

    monkeypatch.setattr(preview, "write_atomically", lambda path, write: shown.append(grab(write, tmp_path)))
    sample_pictures(model, requests.from_folder(folder / "scene_1"), tmp_path / "out", preview=True, quiet=True)
    assert len(shown) == 4  # rows of tokens
    grey = [sum(pixel == (128, 128, 128) for pixel in picture.get_flattened_data()) for picture in shown]
    assert grey[0] >= 3 * 8 * 32
    assert grey[0] > grey[1] > grey[2] > grey[3]
    assert shown[-1].tobytes() == pixels(tmp_path / "out" / "scene_1.png")


def grab(write, folder):
    write(folder / "shown.png")
    return Image.open(folder / "shown.png").convert("RGB")


def test_long_prompts_are_cut_and_said_so(model, folder, tmp_path, capfd):
    (folder / "scene_1" / "description.txt").write_text("word " * 500)
    sample_pictures(model, requests.from_folder(folder), tmp_path / "out")
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if "prompt" in line] == [
        "scene_1: the prompt has 500 tokens, those after 4 are not read"
    ]


def without_background(folder):
    (folder / "scene_1" / "background.png").unlink()
    return "scene_1: no background.png; add the scene"


def without_references(folder):
    for file in (folder / "scene_1" / "ref").iterdir():
        file.unlink()
    return "scene_1/ref: no reference there; put 1 or more"


def with_five_references(folder):
    for number in range(5):
        photo("coffee").save(folder / "scene_1" / "ref" / f"{number}.png")
    return "scene_1: 5 references; the model takes 1 to 2"


def with_a_broken_picture(folder):
    (folder / "scene_1" / "ref" / "0.png").write_bytes(b"no picture")
    return "0.png: not a readable picture"


def without_a_prompt(folder):
    (folder / "scene_1" / "description.txt").unlink()
    return "description.txt: cannot be read (No such file or directory); add the prompt"


@pytest.mark.parametrize(
    "damage",
    [without_background, without_references, with_five_references, with_a_broken_picture, without_a_prompt],
)
def test_a_bad_folder_is_one_line(damage, model, folder, tmp_path, capfd):
    for prompt in folder.glob("*/description.txt"):
        prompt.write_text("a cup")
    expected = damage(folder)
    done = in_process("sample", "--model", str(model), "--folder", str(folder), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    error = done.stderr
    assert error.count("\n") == 1
    assert expected in error


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", "the list is empty"),
        ("{", "Invalid JSON"),
        ('[{"references": [], "background": "b.png", "prompt": "x"}]', "entry 0.references: List should have at least"),
        ('[{"references": ["a.png"], "background": "b.png"}]', "entry 0.prompt: Field required"),
        ('[{"references": ["a.png"], "background": "b.png", "prompt": "x"}]', "a.png: cannot be read"),
        ('[{"references": ["a.png"], "background": "b.png", "prompt": "x", "id": "../up"}]', "entry 0.id: String"),
    ],
)
def test_a_bad_list_is_one_line(content, expected, tmp_path):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(UserError, match=expected.replace(".", r"\.")):
        list(requests.from_list(tmp_path / "list.json").read(lambda number: True))


def test_a_corrupt_model_and_no_request_are_one_line(model, folder, tmp_path):
    done = in_process("sample", "--model", model, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (2, "error: give one of --shards, --folder and --list\n")
    broken = tmp_path / "model"
    broken.mkdir()
    for file in model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 200 if file.suffix == ".safetensors" else None])
    done = in_process("sample", "--model", str(broken), "--folder", str(folder), "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    error = done.stderr
    assert error.count("\n") == 1
    assert "model.safetensors: not the whole weights of this model" in error


@pytest.mark.parametrize("changes", [{"weights": "int8"}, {"weights": "float8"}, {"cache": "float8"}])
def test_less_precise_weights_and_keys_draw_nearly_the_same(changes):
    """Logits move by the share that the format rounds, and the given model stays as it is."""
    config = changed(width=32, grid=4)
    net = random_net(config)
    sources, text, _ = inputs(config)
    exact = SampleConfig(temperature=0.0, guidance=2.0)
    wanted = [logits.clone() for _, logits in Decoder(net, 2, 2, exact).decode(sources, text, [0, 1])]
    settings = SampleConfig(temperature=0.0, guidance=2.0, **changes)
    sampler = Sampler(Model(net, None, None, Path()), settings)
    found = [logits.clone() for _, logits in Decoder(sampler.net, 2, 2, settings).decode(sources, text, [0, 1])]
    error = (found[0] - wanted[0]).norm() / wanted[0].norm()
    assert 1e-4 < error < 0.2
    again = [logits.clone() for _, logits in Decoder(net, 2, 2, exact).decode(sources, text, [0, 1])]
    assert all(torch.equal(a, b) for a, b in zip(wanted, again, strict=True))

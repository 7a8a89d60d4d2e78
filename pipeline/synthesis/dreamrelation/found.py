"""Which file of a LoRA source is for which relation: found by the words in its path, never guessed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from huggingface_hub import HfApi, constants

from data_schemas.io.text import one_line
from pipeline.core.weights import Weights, look

ANY = "**/*.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"
MAX_FILES = 10_000
"""Most files of a source that are looked at."""
WORDS: dict[str, tuple[str, ...]] = {
    "hug": ("hug", "hugs", "hugging"),
    "shake_hands": ("shake", "shakes", "shaking", "handshake", "handshaking"),
    "kiss": ("kiss", "kisses", "kissing"),
    "fence": ("fence", "fences", "fencing"),
    "dance": ("dance", "dances", "dancing"),
    "carry": ("carry", "carries", "carrying"),
    "fight": ("fight", "fights", "fighting"),
    "ride": ("ride", "rides", "riding"),
    "hold": ("hold", "holds", "holding"),
    "lean_against": ("lean", "leans", "leaning"),
    "stand_beside": ("beside", "next to"),
    "lie_on": ("lie", "lies", "lying"),
    "stand_in_front_of": ("in front of",),
}
"""Words, or words in a row, by which a path names a relation. Case and whatever lies between words do not matter."""


@dataclass(frozen=True)
class Found:
    """``of`` has the file of each relation that has one. ``several`` has the files of relations that more than one
    names in the outermost folder, and ``left`` those that name no relation, or two."""

    of: Mapping[str, str]
    several: Mapping[str, tuple[str, ...]]
    left: tuple[str, ...]


def match(files: Iterable[str]) -> Found:
    """Match the .safetensors files of a source, named by their paths in it, to relations."""
    named: dict[str, list[str]] = {}
    left = []
    for file in sorted(f for f in files if f.endswith(".safetensors")):
        relations = [relation for relation, words in WORDS.items() if _names(file, words)]
        if len(relations) == 1:
            named.setdefault(relations[0], []).append(file)
        else:
            left.append(file)
    of, several = {}, {}
    for relation, own in named.items():
        depth = min(len(PurePosixPath(file).parts) for file in own)
        outermost = [file for file in own if len(PurePosixPath(file).parts) == depth]  # not a training's checkpoints
        if len(outermost) == 1:
            of[relation] = outermost[0]
        else:
            several[relation] = tuple(outermost)
    return Found(of, several, tuple(left))


def _names(file: str, words: Iterable[str]) -> bool:
    plain = f" {' '.join(re.findall('[a-z]+', file.lower()))} "
    return any(f" {word} " in plain for word in words)


def lora_file(name: str) -> str:
    """The path of a relation's file inside the folder of LoRAs; a sub-folder stands for the usual file in it."""
    return name if name.endswith(".safetensors") else f"{name.rstrip('/')}/{LORA_FILE}"


def files_here(source: str) -> list[str] | None:
    """The .safetensors files of a source on this machine; None if it is not here."""
    weights = Weights("relation LoRAs", source, (ANY,))
    place = look(weights)
    if isinstance(place, str):
        return [] if os.path.isdir(weights.path) else None  # one that is there and holds none has no LoRA
    if place.is_file():
        return [place.name]
    return sorted(path.relative_to(place).as_posix() for path in place.glob(ANY))[:MAX_FILES]


def files_there(source: str) -> list[str] | None:
    """The .safetensors files of a source on the Hub, as it says itself; None if it does not say."""
    if Weights("", source, ()).is_local or constants.HF_HUB_OFFLINE:
        return None
    try:
        return [f for f in HfApi().list_repo_files(source)[:MAX_FILES] if f.endswith(".safetensors")]
    except Exception:  # no network, in the words of whichever HTTP library; no such repository: what is here counts
        return None


def told(source: str, chosen: Mapping[str, str | None], find: bool, relations: Iterable[str]) -> list[str]:
    """Lines that say which relation gets which file, and which get none. Asks the Hub what it holds.

    ``chosen`` are the relations that the config decides, ``find`` whether the others are looked for.
    """
    here, there = files_here(source), files_there(source)
    if here is None and there is None and find:
        local = Weights("", source, ()).is_local
        why = "no such folder" if local else "nothing of it is here, and the hub does not say what it holds"
        return [f"relation LoRAs of {source}: {why}"]
    found = match((here or []) if there is None else there) if find else Found({}, {}, ())
    named = {relation: name and lora_file(name) for relation, name in chosen.items()}
    lines = [f"relation LoRAs of {source}, {'on this machine' if there is None else 'as the hub lists it'}:"]
    for relation in dict.fromkeys([*relations, *named]):
        by = "set in synthesis.loras" if relation in named else "by its name"
        file = named[relation] if relation in named else found.of.get(relation)
        if file is not None:
            state = "here" if file in (here or []) else "missing"
            lines.append(_line(relation, f"{file} ({by}, {state})"))
        elif relation in found.several and relation not in named:
            lines.append(_line(relation, "none: several files name it; choose one in synthesis.loras"))
            lines += [_line("", f"  {file}") for file in found.several[relation]]
        else:
            lines.append(_line(relation, f"none ({by})" if relation in named else "none"))
    return lines + [_line("of no relation", file) for file in found.left if file not in named.values()]


def _line(what: str, how: str) -> str:
    return f"  {what:<18} {one_line(how)}"

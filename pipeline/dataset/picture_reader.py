"""Pictures of single samples of a run, read from wherever its stages stored them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial

from PIL import Image

from data_schemas.io import pictures
from pipeline.core.parts import PartPictures
from pipeline.jobs import cutout_reader, need_part
from pipeline.run import Run


def part_pictures(run: Run, stage: str, part: str) -> PartPictures:
    """The pictures that a stage saved for a part."""
    return run.store(stage).pictures(part, need_part(run, stage, part))


class PictureReader:
    """Reads pictures of any sample by stage.

    It caches where the pictures lie in the tars of the eight parts used last. ``pool`` is the digest of the reference
    pool.
    """

    def __init__(self, run: Run, pool: str):
        self.run, self.pool = run, pool
        self.part_of: dict[str, str] = {}
        self._references: dict[str, tuple[str, str]] = {}
        for part in run.parts():
            table = need_part(run, "plan", part).table
            ids, *references = (table[n].to_pylist() for n in ("sample_id", "reference_0_id", "reference_1_id"))
            self.part_of |= dict.fromkeys(ids, part)
            self._references |= dict(zip(ids, zip(*references, strict=True), strict=True))
        self._pictures = lru_cache(maxsize=8)(partial(part_pictures, run))

    def files(self, stage: str, sample_id: str) -> Mapping[str, bytes]:
        """The pictures that a stage saved for a sample, by name; empty if it saved none."""
        return self._pictures(stage, self.part_of[sample_id]).of(sample_id)

    def reference(self, reference_id: str, name: str) -> bytes:
        """The bytes of a picture of a reference: "cutout.png", or "white.png", the cut-out on white."""
        return cutout_reader(self.run, self.pool)(reference_id, name)

    def cutout(self, reference_id: str) -> Image.Image | None:
        """The cut-out of a reference; None if the pool has none of this id."""
        try:
            return pictures.decode(self.reference(reference_id, "cutout.png"), f"reference {reference_id}")
        except KeyError:
            return None

    def shown(self, sample_id: str, index: int, name: str, made: Mapping[str, bytes]) -> bytes:
        """The same of a sample's reference 0 or 1 as its shard shows it: as pasted, if that is among what the synthesis
        ``made``."""
        pasted = f"reference_{index}.png" if name == "cutout.png" else f"reference_{index}_white.png"
        found = made.get(pasted)
        return found or self.reference(self._references[sample_id][index], name)

    def picture(self, sample_id: str, name: str) -> Image.Image | None:
        """A sample's target, foreground, background, alpha, reference_0 or reference_1; None if it was never made."""
        if name.startswith("reference_"):
            made = self.files("synthesis", sample_id)
            data: bytes | None = self.shown(sample_id, int(name[-1]), "cutout.png", made)
        else:
            data = self.files("synthesis" if name == "target" else "matting", sample_id).get(f"{name}.png")
        return None if data is None else pictures.decode(data, name)

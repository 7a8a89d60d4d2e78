"""What a config needs before work starts: models, relation LoRAs, and how its pools would be read."""

from __future__ import annotations

from pipeline import models
from pipeline.backends import build_stages
from pipeline.config import CurationConfig
from pipeline.planning.planning import chosen_relations
from pipeline.references.layouts import told as pool_told
from pipeline.synthesis.dreamrelation.found import told as loras_told
from pipeline.synthesis.dreamrelation.stage import DreamRelationConfig


def check_inputs(config: CurationConfig) -> tuple[list[str], bool]:
    """The lines that ``instructar models check`` prints, and whether everything is on this machine.

    Loads no model and decodes no picture. It asks the hub for nothing but the names of LoRA files.
    """
    needed = models.check(build_stages(config))
    lines = models.table(needed)
    synthesis = config.synthesis
    if isinstance(synthesis, DreamRelationConfig):
        relations = chosen_relations(config.planning)
        lines += ["", *loras_told(synthesis.lora_source, synthesis.loras, synthesis.find_loras, relations)]
    whole = not any(found.path is None for found in needed)
    for pool in config.references.pools():
        there, told = pool_told(pool)
        lines += ["", *told]
        whole &= there
    return lines, whole

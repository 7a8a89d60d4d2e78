"""A sample to be judged, and what a good judge answers."""

import json

from PIL import Image

from data_schemas.io import pictures
from pipeline.core.stage import Sample
from pipeline.semantics.judge import Verdict

ANSWER = {
    "subject_0_reason": "A cat sits on the left.", "subject_0_present": "yes",
    "subject_1_reason": "An astronaut stands beside it.", "subject_1_present": "yes",
    "description_reason": "They stand side by side.", "fits_description": "yes",
    "colours_reason": "Warm daylight.", "colours_natural": "yes",
}  # fmt: skip
GOOD = json.dumps(ANSWER)
VERDICT = Verdict(**ANSWER)
PLAN = {
    "reference_0_id": "cat", "reference_1_id": "astronaut", "reference_0_name": "a cat",
    "reference_1_name": "an astronaut", "prompt": 'A cat beside an astronaut, "hello".', "seed": 2**31 + 5,
}  # fmt: skip
MODEL = "google/gemma-3n-E4B-it"


def answer(**changes):
    return json.dumps(ANSWER | changes)


def sample(number=0, **plan):
    """Target green, first reference red, second blue; the references transparent on the left."""
    references = {}
    for name, paint in (("cat", (255, 0, 0)), ("astronaut", (0, 0, 255))):
        picture = Image.new("RGBA", (600, 300), (*paint, 255))
        picture.paste((0, 0, 0, 0), (0, 0, 100, 300))
        references[name] = pictures.encode_png(picture)
    target = {"target.png": pictures.encode_png(Image.new("RGB", (64, 64), (0, 255, 0)))}
    row = {"sample_id": f"s{number}", **PLAN, **plan}
    return Sample(row["sample_id"], {"plan": row}, {"synthesis": target}.__getitem__, references.__getitem__)

"""The schemas of all tables that the project writes.

Meanings and units of columns are stored in the files, so changing a text here changes the files.
"""

from __future__ import annotations

import pyarrow as pa

from data_schemas.schema import Column, TableSchema

STATUSES = ("ok", "error", "skipped")
SPLITS = ("train", "test")
DECISIONS = ("kept", "rejected", "undecided", "error")
FAULTS = (
    "none", "missing", "swapped", "replaced", "hidden", "third", "duplicated", "hue", "inverted", "colour", "blurred",
    "jpeg",
)  # fmt: skip
"""Faults of a target. One subject: missing, swapped (the other in its place), replaced (a third one in its place),
hidden (four fifths of it), duplicated, hue (turned by 120 degrees), inverted, blurred. The picture: third (one subject
more), colour (extreme), blurred, jpeg (quality 5)."""

_text, _int, _float = pa.string(), pa.int32(), pa.float64()
_box = pa.list_(pa.float64(), 4)

SAMPLE_ID = Column("sample_id", _text, "Content-derived name of the sample, the same in every table.", "id")

STATUS_COLUMNS = (
    Column("status", _text, "ok, error (this stage failed on it), skipped (an earlier one did).", "code",
           one_of=STATUSES),
    Column("error_code", _text, "Kind of failure, for counting.", "code", nullable=True),
    Column("error_message", _text, "The failure in one line, for reading.", "text", nullable=True),
)  # fmt: skip

REFERENCES = TableSchema(
    "references",
    4,
    (
        Column("reference_id", _text, "Content-derived name of the reference picture.", "id"),
        *STATUS_COLUMNS,
        Column("subject_id", _text, "Who or what it shows; pictures of one subject share it.", "id"),
        Column("name", _text, "What a prompt calls the subject.", "text"),
        Column("category", _text, "Class of the subject; a sample pairs two different ones.", "text"),
        Column("source", _text, "File it came from, relative to its pool.", "path"),
        Column("source_sha256", _text, "Digest of that file's bytes.", "hex digits"),
        Column("box", _box, "Part of the file it was cut from: left, top, right, bottom.", "fraction", nullable=True),
        Column("width", _int, "Width of the stored cut-out.", "pixels", nullable=True, low=1),
        Column("height", _int, "Height of the stored cut-out.", "pixels", nullable=True, low=1),
        Column("area_share", _float, "Share of the stored cut-out that is subject.", "fraction", nullable=True,
               low=0, high=1),
        Column("pixels_sha256", _text, "Digest of the decoded picture and its mask; null if it cannot be used.",
               "hex digits", nullable=True),
        Column("mirror", pa.bool_(), "Whether a target may show it mirrored; not for letters and signs.", "yes or no"),
        Column("phash", _text, "Perceptual hash of the cut-out on white.", "hex digits", nullable=True),
        Column("colours", pa.binary(), "Its mean colours in 8 x 8 cells, to find near-copies.", "RGB bytes",
               nullable=True),
        Column("features", pa.binary(), "Its EfficientNet features, to find near-copies.", "1280 float16",
               nullable=True),
    ),
    key="reference_id",
)  # fmt: skip

PLAN = TableSchema(
    "plan",
    3,
    (
        SAMPLE_ID,
        Column("index", _int, "Position in the plan.", "count from 0", low=0),
        Column("split", _text, "train or test; no subject is in both.", "code", one_of=SPLITS),
        Column("seed", pa.int64(), "Seed of everything random about this sample.", "integer", low=0),
        Column("reference_0_id", _text, "First reference.", "id"),
        Column("reference_1_id", _text, "Second reference.", "id"),
        Column("reference_0_name", _text, "What the prompt calls the first subject.", "text"),
        Column("reference_1_name", _text, "What the prompt calls the second subject.", "text"),
        Column("reference_0_category", _text, "Class of the first subject.", "text"),
        Column("reference_1_category", _text, "Class of the second subject.", "text"),
        Column("subject_0_id", _text, "The first subject.", "id"),
        Column("subject_1_id", _text, "The second subject.", "id"),
        Column("draw", _int, "How many samples before have the same references and relation.", "count", low=0),
        Column(
            "other_reference_id",
            _text,
            "Some other subject of the split, for planted faults; null: there is none.",
            "id",
            nullable=True,
        ),
        Column("relation", _text, "What the first subject does with the second.", "code"),
        Column("layout", _text, "Layout class of the relation: where the boxes are.", "code"),
        Column("box_0", _box, "Where the first subject goes: left, top, right, bottom.", "fraction"),
        Column("box_1", _box, "Where the second subject goes: left, top, right, bottom.", "fraction"),
        Column("turn_0", _float, "By how much the relation turns the first subject, counter-clockwise.", "degrees"),
        Column("turn_1", _float, "By how much the relation turns the second subject, counter-clockwise.", "degrees"),
        Column("mirror_0", pa.bool_(), "Whether the first subject may be shown mirrored.", "yes or no"),
        Column("mirror_1", pa.bool_(), "Whether the second subject may be shown mirrored.", "yes or no"),
        Column(
            "front",
            _int,
            "The subject that lies in front (0 or 1); null where the relation leaves it open.",
            "index",
            nullable=True,
            low=0,
            high=1,
        ),
        Column("prompt", _text, "Description of the picture to be made.", "text"),
    ),
    key="sample_id",
)


def verdict_schema(stage: str, version: int, columns: tuple[Column, ...]) -> TableSchema:
    """The schema of a stage's table: one row for each sample with its status, the stage's own columns and its model."""
    model = Column("model", _text, "Model and revision that made the row, or the method.", "text")
    own = tuple(
        Column(c.name, c.type, c.meaning, c.unit, True, c.low, c.high, c.one_of) for c in columns
    )  # nullable, because a failed sample has no scores
    return TableSchema(stage, version, (SAMPLE_ID, *STATUS_COLUMNS, *own, model), key="sample_id")


SYNTHESIS = (
    Column("planted_fault", _text, "Fault planted on purpose, to measure the filters; 'none' for a clean sample.",
           "code", one_of=FAULTS),
    Column("planted_subject", _int, "Which subject the fault hit (0 or 1); null if the whole picture or none.",
           "index", low=0, high=1),
    Column("target_phash", _text, "Perceptual hash of the target, to find near-copies.", "hex digits"),
)  # fmt: skip

MATTING = (
    Column("area_share", _float, "Share of the picture that is foreground.", "fraction", low=0, high=1),
    Column("border_share", _float, "Share of the picture's border that is foreground.", "fraction", low=0, high=1),
    Column("components", _int, "Connected foreground pieces larger than 1 % of the picture.", "count", low=0),
    Column("soft_share", _float, "Share of what the matte takes up (alpha above 0.1) that is below 0.9: edges, haze.",
           "fraction", low=0, high=1),
    Column("holes_share", _float, "Background enclosed by foreground, as a share of the filled foreground.",
           "fraction", low=0, high=1),
    Column("alpha_max", _float, "Largest alpha anywhere: how sure of a foreground the matte is.", "fraction",
           low=0, high=1),
    Column("box_0_share", _float, "Share of the first planned box that is foreground.", "fraction", low=0, high=1),
    Column("box_1_share", _float, "Share of the second planned box that is foreground.", "fraction", low=0, high=1),
    Column("box_min_share", _float, "The smaller of the two boxes' shares.", "fraction", low=0, high=1),
    Column("true_iou", _float, "Overlap with the matte known from the synthesis, where it is known.", "IoU",
           low=0, high=1),
)  # fmt: skip

SEMANTICS = (
    Column("subject_0_present", _float, "How well the first region's labels agree with its reference's.",
           "fraction", low=0, high=1),
    Column("subject_1_present", _float, "How well the second region's labels agree with its reference's.",
           "fraction", low=0, high=1),
    Column("present_min", _float, "The smaller of the two agreements.", "fraction", low=0, high=1),
    Column("subject_0_label", _text, "Most probable label of the first region.", "ImageNet class"),
    Column("subject_1_label", _text, "Most probable label of the second region.", "ImageNet class"),
    Column("colour_extremity", _float, "How far the colours are from natural: 0 natural, 1 extreme.",
           "fraction", low=0, high=1),
)  # fmt: skip

JUDGE = (
    Column("subject_0_present", _float, "Is the first subject in the picture? 1 yes, 0 no; null: undecided.",
           "answer", low=0, high=1),
    Column("subject_1_present", _float, "Is the second subject in the picture? 1 yes, 0 no; null: undecided.",
           "answer", low=0, high=1),
    Column("present_min", _float, "0 if either subject is missing, 1 if both are there; null: undecided.",
           "answer", low=0, high=1),
    Column("fits_description", _float, "Does the picture fit its description? 1 yes, 0 no; null: undecided.",
           "answer", low=0, high=1),
    Column("colours_natural", _float, "Are the colours those of a photograph? 1 yes, 0 no; null: undecided.",
           "answer", low=0, high=1),
    Column("subject_0_reason", _text, "What the judge saw of the first subject.", "text"),
    Column("subject_1_reason", _text, "What the judge saw of the second subject.", "text"),
    Column("description_reason", _text, "What the judge found in the picture of its description.", "text"),
    Column("colours_reason", _text, "What the judge said of the colours.", "text"),
    Column("raw_text", _text, "The judge's last answer as it came, cut at 20,000 characters.", "text"),
    Column("prompt_sha256", _text, "Digest of the question's text, without reminders.", "hex digits"),
    Column("attempts", _int, "Answers asked for until one could be read, or there were enough.", "count", low=1),
    Column("tokens_in", _int, "Tokens the judge read over all attempts; null if it did not say.", "count", low=0),
    Column("tokens_out", _int, "Tokens the judge wrote over all attempts; null if it did not say.", "count", low=0),
)  # fmt: skip

IDENTITY = (
    Column("similarity_0_0", _float, "First region against the first reference.", "cosine", low=-1, high=1),
    Column("similarity_0_1", _float, "First region against the second reference.", "cosine", low=-1, high=1),
    Column("similarity_1_0", _float, "Second region against the first reference.", "cosine", low=-1, high=1),
    Column("similarity_1_1", _float, "Second region against the second reference.", "cosine", low=-1, high=1),
    Column("similarity_min", _float, "The smaller of the two right pairs.", "cosine", low=-1, high=1),
    Column("similarity_max", _float, "The larger of the two right pairs; next to 1 for a pasted copy.", "cosine",
           low=-1, high=1),
    Column("swap_margin", _float, "Right pairs less wrong pairs, mean; negative when identities are swapped.",
           "cosine", low=-2, high=2),
    Column("literal_0", _float, "The whole foreground against the first reference.", "cosine", low=-1, high=1),
    Column("literal_1", _float, "The whole foreground against the second reference.", "cosine", low=-1, high=1),
    Column("literal_min", _float, "The smaller of these two: the paper's rule to the letter.", "cosine",
           low=-1, high=1),
)  # fmt: skip

QUALITY = (
    Column("found_0", _float, "How much of the first reference is found in its region, part by part.", "cosine",
           low=-1, high=1),
    Column("found_1", _float, "How much of the second reference is found in its region, part by part.", "cosine",
           low=-1, high=1),
    Column("found_min", _float, "The smaller of the two.", "cosine", low=-1, high=1),
    Column("colour_difference_0", _float, "Mean difference of colour between the first reference's parts and their "
           "like in its region; lightness counts half.", "CIELAB", low=0),
    Column("colour_difference_1", _float, "Mean difference of colour between the second reference's parts and their "
           "like in its region; lightness counts half.", "CIELAB", low=0),
    Column("colour_difference_max", _float, "The larger of the two.", "CIELAB", low=0),
    Column("likeness_outside", _float, "How much more some spot outside the boxes looks like a subject than like "
           "background.", "cosine", low=-2, high=2),
    Column("outside_share", _float, "Share of the foreground outside the planned boxes and a margin.", "fraction",
           low=0, high=1),
    Column("sharpness_0", _float, "How much finer the detail of the first region is than its reference's at the same "
           "size; null if too small to tell.", "log ratio"),
    Column("sharpness_1", _float, "How much finer the detail of the second region is than its reference's at the same "
           "size; null if too small to tell.", "log ratio"),
    Column("sharpness_min", _float, "The smaller of the two; 0 if neither can be told.", "log ratio"),
    Column("blockiness", _float, "How much larger steps between pixels are on a grid of 8 pixels than beside it.",
           "log ratio"),
)  # fmt: skip

DECIDE = TableSchema(
    "decide",
    2,
    (
        SAMPLE_ID,
        Column("decision", _text, "kept, rejected, undecided (a score is missing) or error.", "code",
               one_of=DECISIONS),
        Column("reasons", pa.list_(_text), "Why it was not kept: one code for each rule that it broke.", "codes"),
        Column("error_stage", _text, "The stage that failed on it.", "code", nullable=True),
        Column("error_code", _text, "Kind of failure.", "code", nullable=True),
        Column("error_message", _text, "The failure in one line.", "text", nullable=True),
        Column("reviewer", _text, "The person who decided, if one did.", "text", nullable=True),
        Column("review_reason", _text, "That person's words.", "text", nullable=True),
    ),
    key="sample_id",
)  # fmt: skip

REVIEW = TableSchema(
    "review",
    1,
    (
        SAMPLE_ID,
        Column("alpha_threshold", _float, "Alpha above which a pixel is foreground, in place of the config's.",
               "fraction", nullable=True, low=0, high=1),
        Column("matte", _text, "Picture to be used as the matte, relative to the run's folder.", "path", nullable=True),
        Column("verdict", _text, "The person's decision, in place of the thresholds'; null leaves it to them.", "code",
               nullable=True, one_of=("kept", "rejected")),
        Column("reason", _text, "Why, in the reviewer's words.", "text", nullable=True),
        Column("reviewer", _text, "Who looked at it.", "text"),
        Column("time", pa.timestamp("us", tz="UTC"), "When.", "UTC"),
    ),
    key="sample_id",
)  # fmt: skip

SHARD_INDEX = TableSchema(
    "shards",
    1,
    (
        SAMPLE_ID,
        Column("shard", _text, "File name of the shard that holds the sample.", "file name"),
        Column("split", _text, "train or test.", "code", one_of=SPLITS),
    ),
    key="sample_id",
)

MANIFEST = TableSchema(
    "manifest",
    5,
    (
        *PLAN.columns,
        *DECIDE.columns[1:],
        Column("shard", _text, "Shard that holds the sample; null if none does.", "file name", nullable=True),
        Column(
            "content",
            _text,
            "Digest of the sample's files in its shard; null if none holds it.",
            "hex digits",
            nullable=True,
        ),
    ),
    key="sample_id",
    open=True,  # the columns of all stages follow, each with its meaning and unit in the field's metadata
)

_picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as Hugging Face stores pictures

PREVIEW = TableSchema(
    "preview",
    1,
    (
        SAMPLE_ID,
        Column("prompt", _text, "Description of the picture.", "text"),
        Column("reference_0", _picture, "Thumbnail of the first reference, on white.", "JPEG"),
        Column("reference_1", _picture, "Thumbnail of the second reference, on white.", "JPEG"),
        Column("background", _picture, "Thumbnail of the target with the foreground blacked out.", "JPEG"),
        Column("target", _picture, "Thumbnail of the picture to be generated.", "JPEG"),
        Column("relation", _text, "What the first subject does with the second.", "code"),
        Column("reference_0_name", _text, "What the prompt calls the first subject.", "text"),
        Column("reference_1_name", _text, "What the prompt calls the second subject.", "text"),
        Column("shard", _text, "Shard that holds the sample at full size.", "file name"),
    ),
    key="sample_id",
)

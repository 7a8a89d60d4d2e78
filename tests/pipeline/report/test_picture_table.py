"""The pictures that Prefect shows of a run: what was asked for, and why a sample was rejected."""

from pipeline.report.results import picture_table, read_manifest


def test_every_picture_has_its_prompt_and_its_reasons(small_run):
    result, _ = small_run
    manifest = read_manifest(result)
    text = picture_table(result, manifest, count=20)
    rows = [line for line in text.splitlines() if line.startswith("| ![")]
    told = manifest[manifest.decision.isin(["kept", "rejected"])]
    assert len(rows) == len(told)
    for sample in told.itertuples():
        (row,) = [row for row in rows if row.startswith(f"| ![{sample.sample_id}](data:image/jpeg;base64,")]
        words = row.replace("\\", "").split(" | ")
        assert words[1] == sample.prompt
        assert words[2] == (", ".join(sample.reasons) or "none") + " |"


def test_a_prompt_stays_in_its_cell(small_run):
    result, _ = small_run
    manifest = read_manifest(result).assign(prompt="a | b\n![x](http://y) <b>")
    text = picture_table(result, manifest, count=1)
    assert r"a \| b \!\[x\](http://y) \<b\>" in text

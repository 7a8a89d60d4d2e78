"""The tables of an evaluation, and what a method is called in them."""

import re

import pytest

from tokenar.evaluate.methods import named
from tokenar.evaluate.tables import latex, markdown


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/quickstart/training/model", "quickstart"),
        ("runs/mine/model", "mine"),
        ("runs/quickstart/training/evaluation/quickstart/samples", "quickstart"),
        ("runs/mine/samples", "mine"),
        ("elsewhere/EditAR", "EditAR"),
        ("runs/train/model", "train"),
    ],
)
def test_a_method_is_called_by_its_runs_name(folder, name, tmp_path):
    assert list(named([tmp_path / folder])) == [name]


def test_tables(tmp_path):
    figures = {
        "background_psnr": 20.364,
        "background_fid": 66.89,
        "whole_clip_i": 0.9548,
        "whole_dino": 0.9,
        "samples": 9,
    }
    worse = figures | {
        "background_psnr": 12.0,
        "background_fid": 66.891,
        "whole_dino": None,
        "background_fid_pictures": 9,
    }
    result = {
        "side": 512, "samples": 9, "encoders": dict.fromkeys(("lpips", "inception", "clip", "dino", "dinov2")),
        "methods": {
            "a_b": {"model": "x", "figures": figures, "multi_subject": figures},
            "MS-Diffusion": {"figures": worse | {"whole_fid_pictures": 2047}, "multi_subject": worse},
        },
    }  # fmt: skip
    page = markdown(result)
    assert "| a\\_b | – | **20.36** | **66.89** | **95.48** | **90.00** |" in page
    assert "| MS-Diffusion | ICLR 2025 | 12.00 | **66.89** | **95.48** | – |" in page
    assert "**One subject (layout of Table 2)**: no such sample" in page
    assert "9 samples at 512 pixels" in page
    assert "FID over 2,047 pictures: below 2,048" in page
    assert "not measured" not in page

    text = latex(result)
    assert r"a\_b & -- & \textbf{20.36} & \textbf{66.89} & \textbf{95.48} & \textbf{90.00} \\" in text
    assert r"MS-Diffusion & ICLR 2025 & 12.00 & \textbf{66.89} & \textbf{95.48} & -- \\" in text
    assert r"\multicolumn{2}{c}{Background Preservation} & \multicolumn{2}{c}{Content Similarity}" in text
    assert r"\begin{tabular}{llcccc}" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    widths = [sum(int(n) for n in re.findall(r"multicolumn\{(\d)", row)) or row.count("&") + 1 for row in rows]
    assert widths == [4, 6, 6, 6], "two spans of two, and rows of six cells"
    for name in ("table", "tabular", "caption", "label"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}")
    assert text.count("{") == text.count("}")

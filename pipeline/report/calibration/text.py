"""A calibration as text: a table for a terminal, and the thresholds file."""

from __future__ import annotations

import math

from pipeline.report.calibration.measure import Calibration


def text_table(found: Calibration) -> str:
    """The measurements as a table for a terminal."""
    head = f"{found.stage.name}: {found.samples} samples, floor of {found.floor_samples}, {found.labelled_text()}"
    lines = [head, "", f"{'score':<20} {'needs':>9} {'alone':>7} {'all':>7} {'floor':>7} {'prec.':>7} {'recall':>7}"]
    for figures in found.figures:
        sign = ">=" if figures.rule.bound == "min" else "<="
        auc = f", AUC {figures.auc:.3f}" if math.isfinite(figures.auc) else ""
        lines += [f"{figures.rule.column} ({figures.rule.reason}){auc}", f"  {figures.note}"]
        for c in figures.candidates:
            marks = [
                m for m, t in (("now", figures.rule.threshold), ("suggested", figures.suggested)) if t == c.threshold
            ]
            shares = (c.alone / found.samples, c.together / found.samples, c.floor_share)
            shown = [
                s if s is not None and math.isfinite(s) else None for s in (*shares, c.rates.precision, c.rates.recall)
            ]
            numbers = " ".join(f"{'-':>7}" if s is None else f"{100 * s:>6.1f}%" for s in shown)
            lines.append(f"{'':<20} {sign} {c.threshold:>6.4g} {numbers}  {', '.join(marks)}".rstrip())
    return "\n".join(lines)


def thresholds_text(found: Calibration) -> str:
    """The content of thresholds.yaml: the suggested thresholds, or the current ones where there is no suggestion.

    Configured thresholds of other stages are kept.
    """
    config = found.run.config
    lines = [
        f"# Thresholds of stage {found.stage.name}, from {found.samples} samples of run {config.name} and a floor of",
        f"# {found.floor_samples} with wrong references. The config names this file as decide.thresholds_file.",
        "thresholds:",
    ]
    own = {figures.rule.reason for figures in found.figures}
    for reason, threshold in sorted(config.decide.all_thresholds().items()):
        if reason not in own:
            lines += ["  # of another stage, as configured", f"  {reason}: {threshold!r}"]
    for figures in found.figures:
        rule, value = figures.rule, figures.suggested
        chosen = figures.at(rule.threshold if value is None else value)
        origin = "as it was" if value is None else f"suggested, was {rule.threshold:g}"
        sign = ">=" if rule.bound == "min" else "<="
        rates = chosen.rates
        caught = f", catches {rates.caught} of {rates.bad} bad and loses {rates.lost} of {rates.good} good ones"
        labels = caught if rates.bad + rates.good else ""
        floor = f", passes {100 * chosen.floor_share:.0f} % of the floor" if len(figures.floor) else ""
        lines += [
            f"  # {rule.column} {sign} {chosen.threshold:g} ({origin}): keeps {chosen.alone} of {found.samples} alone, "
            f"{chosen.together} with all rules{floor}{labels}",
            f"  {rule.reason}: {chosen.threshold!r}",
        ]
    return "\n".join(lines) + "\n"

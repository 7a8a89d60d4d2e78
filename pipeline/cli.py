"""``instructar``: the curation from a shell, without Prefect."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_schemas import commands
from data_schemas.commands import Version
from data_schemas.errors import UserError
from data_schemas.io.text import printable
from data_schemas.serving import Host, Port, serve
from pipeline.exchange.commands import export_command, import_command
from pipeline.pages import commands as pages

if TYPE_CHECKING:  # imported inside the commands, so that --help and error messages are fast
    from pipeline.config import CurationConfig

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
models_app = typer.Typer(no_args_is_help=True, help="The model weights that a config needs.")
app.add_typer(models_app, name="models")
app.command("export")(export_command)
app.command("import")(import_command)

Profile = Annotated[str, typer.Option(help="Named settings to start from (pipeline/profiles)")]
RunProfile = Annotated[str | None, typer.Option("--profile", help="Named settings  [default: the run's own]")]
ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file laid on top of the profile")]
Name = Annotated[str | None, typer.Option(help="Name of the run: the folder under --root")]
Root = Annotated[str | None, typer.Option(help="Folder or bucket URL that holds the runs")]
Samples = Annotated[int | None, typer.Option(help="Samples to plan")]
Pool = Annotated[
    str | None,
    typer.Option(help="'packaged', 'generated', a folder or bucket URL (a sub-folder a category), relationbench, ..."),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value, as decide.thresholds.identity_low=0.6")]
LogFile = Annotated[str | None, typer.Option(help="File to which a line of JSON is appended for each finished part")]


@app.callback()
def all_commands(version: Version = False) -> None:
    """The curation from a shell, without Prefect."""


def _config(
    profile: str,
    file: str | None,
    overrides: list[str] | None,
    name: str | None = None,
    root: str | None = None,
    samples: int | None = None,
    pool: str | None = None,
    before: dict[str, Any] | None = None,
) -> CurationConfig:
    from pipeline.config import CurationConfig

    options = {"name": name, "root": root, "samples": samples, "references.pool": pool}
    return CurationConfig.load(profile, file, overrides, {k: v for k, v in options.items() if v is not None}, before)


def _run_config(
    profile: str | None,
    file: str | None,
    overrides: list[str] | None,
    name: str | None,
    root: str | None,
    samples: int | None,
    pool: str | None,
) -> CurationConfig:
    """The settings of an existing run. Without a profile or config file they are those of its last curation."""
    from pipeline.remembered import remembered

    config = _config(profile or "embedded", file, overrides, name, root, samples, pool)
    stored = remembered(config)
    return (
        config
        if profile or file or stored is None
        else _config("embedded", None, overrides, None, None, samples, pool, stored)
    )


def _log_parts(file: str | None) -> None:
    if file is not None:
        from pipeline.core.progress import log_parts_to

        log_parts_to(file)


def _show(results: dict[str, str]) -> None:
    for name, path in results.items():
        typer.echo(f"{name:<12} {path}")


@app.command("curate")
def curate_command(
    profile: Profile = "embedded",
    config: ConfigFile = None,
    name: Name = None,
    root: Root = None,
    samples: Samples = None,
    pool: Pool = None,
    overrides: Overrides = None,
    retry_errors: Annotated[bool, typer.Option(help="Make the samples again that failed before")] = False,
    log_file: LogFile = None,
) -> None:
    """Plan, make, cut out, judge, compare, decide, shard and report; what is there already is not made again."""
    settings = _config(profile, config, overrides, name, root, samples, pool)
    _log_parts(log_file)
    from pipeline.report.results import curate_dataset

    _show(curate_dataset(settings, retry_errors=retry_errors))


@app.command("rerun")
def rerun_command(
    stage: Annotated[str, typer.Argument(help="references, plan, synthesis, matting, semantics, identity, ...")],
    profile: RunProfile = None,
    config: ConfigFile = None,
    name: Name = None,
    root: Root = None,
    samples: Samples = None,
    pool: Pool = None,
    overrides: Overrides = None,
    log_file: LogFile = None,
) -> None:
    """Make one stage of a run again, and what follows it, whatever the cache holds."""
    settings = _run_config(profile, config, overrides, name, root, samples, pool)
    _log_parts(log_file)
    from pipeline.report.results import curate_dataset

    _show(curate_dataset(settings, again=stage))


@app.command("report")
def report_command(
    against: Annotated[
        str | None, typer.Option(help="An earlier run, or a dataset's folder, that the report compares the run with")
    ] = None,
    profile: RunProfile = None,
    config: ConfigFile = None,
    name: Name = None,
    root: Root = None,
    samples: Samples = None,
    pool: Pool = None,
    overrides: Overrides = None,
) -> None:
    """Write the report of a finished run again, with the training beside it if there is one."""
    settings = _run_config(profile, config, overrides, name, root, samples, pool)
    from pipeline.report.results import report_run

    typer.echo(report_run(settings, against))


@app.command("calibrate")
def calibrate_command(
    stage: Annotated[str, typer.Option(help="identity or semantics: a stage whose scores have thresholds")],
    floor_samples: Annotated[
        int, typer.Option(min=0, max=100_000, help="Samples scored against wrong references too")
    ] = 64,
    profile: RunProfile = None,
    config: ConfigFile = None,
    name: Name = None,
    root: Root = None,
    samples: Samples = None,
    pool: Pool = None,
    overrides: Overrides = None,
) -> None:
    """Show what each threshold of a stage would keep; writes a page, the scores, and a thresholds file."""
    settings = _run_config(profile, config, overrides, name, root, samples, pool)
    from pipeline.report.calibration.page import calibrate

    _show(calibrate(settings, stage, floor_samples))


@app.command("status")
def status_command(
    run: Annotated[str, typer.Argument(help="A run, such as runs/quickstart; it may be at work")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object in the place of the table")] = False,
) -> None:
    """How far a run is: parts, errors and hours of each stage, and how long the one at work will take."""
    from pipeline.dataset.curated import open_run
    from pipeline.report.status import status, told

    found = status(open_run(run).run)
    typer.echo(json.dumps(found) if as_json else told(found))


@app.command("review")
def review_command(
    run: Annotated[str, typer.Argument(help="A run, such as runs/quickstart; it may be at work")],
    reviewer: Annotated[str | None, typer.Option(help="Your name, in every decision  [default: the user's]")] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Hide what filters and other people decided")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Take the decisions over, without a page")] = False,
    host: Host = "127.0.0.1",
    port: Port = 7871,
) -> None:
    """A page to walk through samples: accept, reject, mend mattes; and what of the run that changes is made again."""
    from pipeline.dataset.curated import config_of, open_run

    if apply:
        from pipeline.report.results import curate_dataset

        _show(curate_dataset(config_of(run)))
        return
    from pipeline.pages.review import review_app, user
    from pipeline.pages.samples import Samples

    serve(review_app(Samples(open_run(run).run), reviewer or user(), blind), host, port, "review")


app.command("explore")(pages.explore)
app.command("select")(pages.select)


@app.command("estimate")
def estimate_command(
    samples: Annotated[int, typer.Option(min=1, max=1_000_000_000, help="Samples of the larger run")],
    run: Annotated[str | None, typer.Argument(help="A finished run of its settings, such as runs/paper-96")] = None,
    gpus: Annotated[int, typer.Option(min=1, max=100_000, help="GPUs, or without them worker processes")] = 1,
    price: Annotated[float | None, typer.Option(min=0, help="Price of an hour of one of them")] = None,
    profile: Annotated[
        str | None, typer.Option(help="In the place of a run: named settings, with figures of known machines")
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    seconds: Annotated[
        list[str] | None, typer.Option(help="With --profile: stage=seconds a sample, as semantics=1.2")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object in the place of the table")] = False,
) -> None:
    """What a larger run will take: hours, storage, yield and cost, from a smaller one or from known figures."""
    from pipeline.estimate.timing import table

    if (run is None) == (profile is None):
        raise UserError("estimate: give a finished run, or --profile for figures of known machines; one of the two")
    if profile is not None:
        from pipeline.estimate.from_figures import estimate_profile, given_seconds

        settings = _config(profile, config, overrides)
        found = estimate_profile(profile, settings, samples, gpus, price, given_seconds(seconds or []))
    else:
        from pipeline.dataset.curated import open_run
        from pipeline.estimate.from_run import estimate

        if config or overrides or seconds:
            raise UserError("estimate: --config, --set and --seconds go with --profile; a run has its own")
        found = estimate(open_run(str(run)).run, samples, gpus, price)
    typer.echo(json.dumps(found) if as_json else table(found))


@app.command("diff")
def diff_command(
    old: Annotated[str, typer.Argument(help="A run, or a dataset's folder, on a disk or in a bucket")],
    new: Annotated[str, typer.Argument(help="Another; of a run its newest dataset counts")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object in the place of the lines")] = False,
) -> None:
    """What differs between two datasets: samples, decisions and why, shards, stages, settings."""
    from pipeline.dataset.opened import open_dataset
    from pipeline.upkeep.diff import diff, told

    found = diff(open_dataset(old), open_dataset(new))
    typer.echo(json.dumps(found) if as_json else printable(told(found)))


@app.command("merge")
def merge_command(
    runs: Annotated[list[str], typer.Argument(help="Runs, or datasets' folders, on a disk or in a bucket")],
    out: Annotated[str, typer.Option(help="Folder of the merged dataset; it must not be there")],
    allow_mixed: Annotated[bool, typer.Option("--allow-mixed", help="Also what was made or judged otherwise")] = False,
) -> None:
    """Make one dataset of several: their shards under new numbers and one manifest."""
    from pipeline.dataset.opened import open_dataset
    from pipeline.upkeep.merge import merge

    done = merge([open_dataset(run) for run in runs], out, allow_mixed)
    typer.echo(f"{out}: {done['samples']} samples planned, {done['shards']} shards; there twice: {done['twice']}")


@app.command("prune")
def prune_command(
    run: Annotated[str, typer.Argument(help="A run, such as runs/quickstart")],
    keep: Annotated[int, typer.Option(min=1, help="Datasets to keep, the newest")] = 1,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it they are only listed")] = False,
) -> None:
    """List, or remove, what the settings of a run's last curation do not reach: parts, datasets, temporary files."""
    from pipeline.dataset.curated import config_of
    from pipeline.upkeep import prune

    config = config_of(run)
    found = (prune.prune if yes else prune.prunable)(config, keep)
    typer.echo(prune.told(found, done=yes))


@models_app.command("check")
def models_check(
    profile: Profile = "paper", config: ConfigFile = None, overrides: Overrides = None,
) -> None:  # fmt: skip
    """Which models, relation LoRAs and pools a config needs: there or missing, and how each would be read."""
    from pipeline.checks.inputs import check_inputs

    lines, whole = check_inputs(_config(profile, config, overrides))
    for line in lines:
        typer.echo(printable(line))
    if not whole:
        raise typer.Exit(1)


@models_app.command("fetch")
def models_fetch(
    profile: Profile = "paper", config: ConfigFile = None, overrides: Overrides = None,
) -> None:  # fmt: skip
    """Download the models that a config needs and this machine lacks."""
    settings = _config(profile, config, overrides)
    from pipeline import models
    from pipeline.backends import build_stages

    problems = []
    for found in models.check(build_stages(settings)):
        try:
            typer.echo(f"{found.weights.purpose:<24} {models.fetch(found.weights)}")
        except UserError as error:  # go on with the other models
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))


def main() -> None:
    """Entry point of instructar."""
    commands.run(app)


if __name__ == "__main__":
    main()

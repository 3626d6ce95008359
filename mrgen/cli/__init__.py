"""The commands. A mistake of the user's becomes one line on stderr and exit code 1; a bug keeps its traceback."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mrgen import __version__
from mrgen.cli import calibrate, em, evaluate, export, inspect, recon, sample, send, simulate, train
from mrgen.errors import MrgenError
from mrgen.review.figure import NOTICE

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mrgen {__version__}")
        raise typer.Exit


@app.callback(help=f"MRI reconstruction with priors learned from undersampled k-space. {NOTICE}")
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version  # its callback has done the work


for command in (
    *(inspect.inspect, recon.recon, calibrate.calibrate, export.export, send.send, evaluate.evaluate),
    *(train.train_prior, em.em, sample.sample),
    simulate.simulate,
):
    app.command()(command)


def main() -> None:
    """Entry point of the `mrgen` command."""
    try:
        app(prog_name="mrgen")
    except MrgenError as error:
        typer.echo(f"mrgen: error: {error}", err=True)
        sys.exit(1)

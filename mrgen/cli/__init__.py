"""The commands. A mistake of the user's becomes one line on stderr and exit code 1; a bug keeps its traceback."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mrgen import __version__
from mrgen.errors import MrgenError
from mrgen.review.figure import NOTICE

# Command a-b is the function a_b of mrgen.cli.a_b, whose docstring begins with the line here.
COMMANDS = {
    "inspect": "Examine raw data: sampling, noise, coils, SNR, what mrgen will do with it and every reason not to.",
    "recon": "Reconstruct scans: posterior mean and spread, beside zero-filled and L1-wavelet images.",
    "calibrate": "Fit the interval for `mrgen recon --calibration`: by which factor of the std the fully sampled image "
    "is covered.",
    "export": "Write NIfTI and DICOM files and the HTML report of a result that mrgen recon has left, as recon does.",
    "send": "Send DICOM files to a PACS and list what it did not store.",
    "evaluate": "Compare results with fully sampled references: PSNR, SSIM and NMSE, per volume, slice and over scans.",
    "train-prior": "Learn a prior from undersampled, noisy scans; fully sampled ones are undersampled by the protocol "
    "first.",
    "em": "Better a prior by EM: draw posterior samples of the scans, learn from them, and again.",
    "sample": "Draw samples of a prior by itself, without a scan: what it believes images look like.",
    "simulate": "Simulate multi-coil raw scans from images: coils, phase, noise, oversampling and, on request, "
    "undersampling.",
}


class Commands(TyperGroup):
    """Imports the module of a command, and with most of them torch, when the command is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and _imported(name), rest


def _imported(name: str) -> Any:
    function = name.replace("-", "_")
    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    one.command(name)(getattr(import_module(f"mrgen.cli.{function}"), function))
    return typer.main.get_command(one)


app = typer.Typer(
    cls=Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


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


for name, summary in COMMANDS.items():
    app.command(name, help=summary)(lambda: None)  # its line in the list; what it does: see Commands


def main() -> None:
    """Entry point of the `mrgen` command."""
    try:
        app(prog_name="mrgen")
    except MrgenError as error:
        typer.echo(f"mrgen: error: {error}", err=True)
        sys.exit(1)

"""`mrgen send`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrgen.errors import MrgenError
from mrgen.review.send import CStore, StowRs, Tls, Transmit, find_objects
from mrgen.review.send import send as send_all

WARNED = 3  # exit code where all is stored, but not all without a warning


def _destination(
    host: str | None, port: int | None, called: str | None, calling: str, url: str | None, secure: bool, tls: Tls
) -> Transmit:
    """The node or service that the options name. Raises MrgenError unless it is one."""
    if url is not None:
        if host is not None or port is not None or called is not None or secure:
            raise MrgenError(
                "--url names a DICOMweb service: leave out --host, --port, --aec and --tls (https does it)"
            )
        return StowRs(url, tls)
    if host is None or port is None or called is None:
        raise MrgenError("say where to send to: --host, --port and --aec of a DICOM node, or --url of a web service")
    if not secure and tls != Tls():
        raise MrgenError("--ca, --cert and --key are for TLS: add --tls")
    return CStore(host, port, called, calling, tls if secure else None)


def send(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="DICOM files, or folders of them.")],
    host: Annotated[str | None, typer.Option(help="The PACS, for C-STORE.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Its port.")] = None,
    called: Annotated[str | None, typer.Option("--aec", help="Its AE title.")] = None,
    calling: Annotated[str, typer.Option("--aet", help="Our AE title, as the PACS knows it.")] = "MRGEN",
    url: Annotated[
        str | None, typer.Option(help="A DICOMweb service, for STOW-RS: http(s)://HOST/PATH; login in ~/.netrc.")
    ] = None,
    secure: Annotated[bool, typer.Option("--tls", help="C-STORE over TLS.")] = False,
    authorities: Annotated[
        Path | None, typer.Option("--ca", help="Certificates (PEM) to trust instead of the system's.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option("--cert", help="Our certificate (PEM).")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its key (PEM).")] = None,
    retries: Annotated[int, typer.Option(min=0, help="Further tries for what may pass, 1, 2, 4, ... s apart.")] = 3,
) -> None:
    """Send DICOM files to a PACS and list what it did not store.

    Exit code 0: all were stored; 3: all were stored, but with warnings; 1: not all were.
    """
    transmit = _destination(host, port, called, calling, url, secure, Tls(authorities, certificate, key))
    files = find_objects(paths)
    outcomes = send_all(files, transmit, retries)
    lost = [outcome for outcome in outcomes if not outcome.stored]
    warned = [outcome for outcome in outcomes if outcome.stored and outcome.status]
    for what, some in (("warning", warned), ("not stored", lost)):
        for outcome in some:
            typer.echo(f"{what} {outcome.path}: {outcome.status}", err=True)
    before = sum(outcome.before for outcome in outcomes)
    typer.echo(f"stored  {len(files) - len(lost)} of {len(files)} objects" + f", {before} already there" * (before > 0))
    if lost:
        raise MrgenError(f"{len(lost)} of {len(files)} objects were not stored, as listed above: send these again")
    if warned:
        raise typer.Exit(WARNED)

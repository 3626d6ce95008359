"""Sending DICOM files to a PACS, by C-STORE (DICOM PS3.4 B) or STOW-RS (PS3.18 10.5), with the status of every object.

What may pass (no connection, a busy server, one out of resources: C-STORE A7xx, HTTP 408, 429 and 5xx) is tried again
after 1, 2, 4, ... s; what was refused for good is not. Sending an object twice does no harm: its UID follows from its
content, so that a duplicate (C-STORE status 0111) is the object itself, and stored.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mrgen.errors import MrgenError
from mrgen.scans.files import reason

_SECONDS = 60  # to wait for an answer
_DUPLICATE = 0x0111  # PS3.7 Annex C
_DUPLICATES = (
    _DUPLICATE,
    0xB00E,
)  # PS3.18 has no code of its own for it; the latter is that of Microsoft's DICOM service
_BUSY = 408, 429, 500, 502, 503, 504
_MISSING = "sending needs the packages pynetdicom and dicomweb-client: pip install 'mrgen[pacs]'"


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    path: Path
    stored: bool
    status: str  # in words; empty where it was stored and that is all
    again: bool = False  # whether another try may help
    before: bool = False  # whether it was there already


Transmit = Callable[[list[Path]], Iterator[Outcome]]


@dataclass(frozen=True)
class Tls:
    """Files in PEM; None: the system's authorities, and no certificate of our own."""

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """For a client that verifies the server. Raises MrgenError for files that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.authorities)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise MrgenError(f"the TLS files cannot be used ({reason(error)}): expected PEM") from None
        return context


def find_objects(paths: Iterable[Path]) -> list[Path]:
    """The DICOM files among `paths` and in folders among them. Raises MrgenError for none, or a file that is none."""
    from pydicom.misc import is_dicom

    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise MrgenError(f"{path}: there is no such file or folder, expected DICOM files: check the path")
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and is_dicom(p))
        if not files or not is_dicom(files[0]):
            raise MrgenError(f"{path}: it is, or holds, no DICOM file, expected what mrgen recon writes into dicom/")
        found += files
    return found


def send(
    files: list[Path], transmit: Transmit, retries: int, sleep: Callable[[float], None] = time.sleep
) -> list[Outcome]:
    """Send `files`, up to `retries` times more those that may pass later; the outcome of each, in their order."""
    outcomes: dict[Path, Outcome] = {}
    left = files
    for attempt in range(retries + 1):
        if attempt:
            sleep(2.0 ** (attempt - 1))
        outcomes |= {outcome.path: outcome for outcome in transmit(left)}
        left = [path for path in left if outcomes[path].again]
        if not left:
            break
    return [outcomes[path] for path in files]


@dataclass(frozen=True)
class CStore:
    """A DICOM node: `called` is its AE title, `calling` ours."""

    host: str
    port: int
    called: str
    calling: str = "MRGEN"
    tls: Tls | None = None

    def __call__(self, files: list[Path]) -> Iterator[Outcome]:
        """Send over one association. Raises MrgenError for AE titles that DICOM does not allow."""
        try:
            from pydicom import dcmread
            from pynetdicom import AE
        except ImportError:
            raise MrgenError(_MISSING) from None
        heads = [dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True) for path in files]
        # of the files alone: the lists of well-known classes that senders propose lack the Parametric Map
        wanted = {(head.SOPClassUID, head.file_meta.TransferSyntaxUID) for head in heads}
        try:
            ae = AE(self.calling)
            ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = _SECONDS
            for sop_class, syntax in sorted(wanted):
                ae.add_requested_context(sop_class, syntax)
            tls = None if self.tls is None else (self.tls.context(), self.host)
            association: Any = ae.associate(self.host, self.port, ae_title=self.called, tls_args=tls)
        except ValueError as error:
            raise MrgenError(
                f"no association can be asked for ({reason(error)}): expected AE titles of 1 to 16 letters"
            ) from None
        if not association.is_established:
            refused = association.acceptor.primitive if association.is_rejected else None
            why = f"{self.called} at {self.host}:{self.port} is not reached, or its certificate not trusted"
            if refused is not None:
                why = f"{self.called} at {self.host}:{self.port} refuses the association: {refused.reason_str}"
            for path in files:
                yield Outcome(path, False, why, again=refused is None or refused.result != 1)
            return
        try:
            accepted = {(c.abstract_syntax, c.transfer_syntax[0]) for c in association.accepted_contexts}
            for path, head in zip(files, heads, strict=True):
                if (head.SOPClassUID, head.file_meta.TransferSyntaxUID) not in accepted:
                    yield Outcome(path, False, f"{self.called} does not accept {head.SOPClassUID.name}")
                elif not association.is_established:
                    yield Outcome(path, False, "the association has ended", again=True)
                else:
                    yield _status(path, association.send_c_store(path))
        finally:
            association.release()


def _status(path: Path, answer: Any) -> Outcome:
    """The outcome that a C-STORE response tells; an empty one is a lost connection."""
    from pynetdicom.status import code_to_category

    if "Status" not in answer:
        return Outcome(path, False, "the connection was lost, or no answer came", again=True)
    if answer.Status == _DUPLICATE:
        return Outcome(path, True, "", before=True)
    category = code_to_category(answer.Status)
    comment = f", {answer.ErrorComment}" if answer.get("ErrorComment") else ""
    said = "" if answer.Status == 0 else f"status 0x{answer.Status:04X} ({category}{comment})"
    return Outcome(path, category in ("Success", "Warning"), said, again=answer.Status & 0xFF00 == 0xA700)


@dataclass(frozen=True)
class StowRs:
    """A DICOMweb service; user and password are those of ~/.netrc for its host."""

    url: str
    tls: Tls = Tls()

    def __call__(self, files: list[Path]) -> Iterator[Outcome]:
        """Send one object a request, so that each has a status."""
        try:
            import requests
            from dicomweb_client.api import DICOMwebClient
            from pydicom import dcmread
            from requests.adapters import HTTPAdapter
        except ImportError:
            raise MrgenError(_MISSING) from None

        class Patient(HTTPAdapter):
            def send(self, *given: Any, **named: Any) -> Any:
                return super().send(*given, **(named | {"timeout": _SECONDS}))

        def bare(response: Any, **_: Any) -> None:  # the client knows media types without parameters alone
            response.headers["Content-Type"] = response.headers.get("Content-Type", "").partition(";")[0].strip()

        session = requests.Session()
        session.headers["Accept"] = "application/dicom+json"
        session.hooks["response"].append(bare)
        for scheme in ("http://", "https://"):
            session.mount(scheme, Patient())
        if self.tls.authorities is not None:
            session.verify = str(self.tls.authorities)
        if self.tls.certificate is not None:
            session.cert = (str(self.tls.certificate), str(self.tls.key or self.tls.certificate))
        try:
            client: Any = DICOMwebClient(self.url, session=session)
        except ValueError as error:
            raise MrgenError(f"--url {self.url}: {reason(error)}: expected http(s)://HOST/PATH") from None
        client.set_http_retry_params(retry=False)
        for path in files:
            try:
                answer = client.store_instances([dcmread(path)])
            except requests.HTTPError as error:
                yield _http_status(path, error)
            except requests.RequestException as error:
                yield Outcome(path, False, f"{self.url} is not reached ({type(error).__name__})", again=True)
            else:
                yield _stow_status(path, answer)


def _http_status(path: Path, error: Any) -> Outcome:
    """The outcome that a refused request tells: by its reason for the one object (PS3.18 10.5.3), else by its code."""
    from pydicom import Dataset

    code = 0 if error.response is None else error.response.status_code
    said = f"HTTP {reason(error)}"
    try:
        answer = Dataset.from_json(error.response.json())
    except (AttributeError, KeyError, TypeError, ValueError):  # no response, or none of DICOM's
        return Outcome(path, False, said, again=code in _BUSY)
    outcome = _stow_status(path, answer)
    if outcome.stored:
        return outcome
    return replace(outcome, status=f"{said}; {outcome.status}", again=outcome.again or code in _BUSY)


def _stow_status(path: Path, answer: Any) -> Outcome:
    """The outcome that the response to one object tells (PS3.18 I.2)."""
    for item in answer.get("FailedSOPSequence", []):
        code = int(item.get("FailureReason") or 0)
        if code in _DUPLICATES:
            return Outcome(path, True, "", before=True)
        return Outcome(path, False, f"failure 0x{code:04X}", again=code & 0xFF00 == 0xA700)
    for item in answer.get("ReferencedSOPSequence", []):
        warning = item.get("WarningReason")
        return Outcome(path, True, "" if warning is None else f"warning 0x{int(warning):04X}")
    return Outcome(path, False, "the answer does not say that it was stored")

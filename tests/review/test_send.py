"""Sending to a PACS: Orthanc, and nodes of pynetdicom that refuse, warn, are busy or speak TLS; loopback only."""

from __future__ import annotations

import json
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import oblique
import pydicom
import pytest

from mrgen.review import send as sending
from mrgen.review.send import CStore, StowRs, Tls, find_objects, send

pynetdicom = pytest.importorskip("pynetdicom", reason="pynetdicom speaks to a PACS")
requests = pytest.importorskip("requests", reason="requests speaks to a PACS")
pytest.importorskip("dicomweb_client", reason="dicomweb-client speaks to a PACS")

CLASSES = {"MR Image Storage", "Parametric Map Storage", "Segmentation Storage", "Secondary Capture Image Storage"}
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@pytest.fixture(autouse=True)
def servers_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They look every so many seconds, else every 0.5, whether they are to end."""
    monkeypatch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.02,))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """(DICOM port, URL) of an Orthanc that answers to this machine only."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not PLUGIN.exists():
        pytest.skip("Orthanc is not installed: it comes with the Debian packages orthanc and orthanc-dicomweb")
    folder, (dicom, http) = tmp_path_factory.mktemp("orthanc"), (free_port(), free_port())
    settings = {
        "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"), "Plugins": [str(PLUGIN)],
        "RemoteAccessAllowed": False, "HttpPort": http, "DicomPort": dicom, "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True, "DicomAlwaysAllowStore": False, "DicomCheckModalityHost": True,
        "DicomModalities": {"mrgen": {"AET": "MRGEN", "Host": "127.0.0.1", "Port": 104}},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    url = f"http://127.0.0.1:{http}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log)
        try:
            for _ in range(200):
                try:
                    requests.get(f"{url}/system", timeout=5).raise_for_status()
                    break
                except requests.RequestException:
                    assert process.poll() is None, (folder / "log").read_text()
                    time.sleep(0.1)
            yield dicom, url
        finally:
            process.terminate()
            process.wait(20)


def empty(url: str) -> None:
    for study in requests.get(f"{url}/studies", timeout=10).json():
        requests.delete(f"{url}/studies/{study}", timeout=10).raise_for_status()


@contextmanager
def node(answer: Callable[[int], int], classes: list[str] | None = None, **options: object) -> Iterator[tuple]:
    """(port, UIDs received) of a node whose n-th C-STORE has the status answer(n); it accepts `classes`, else all."""
    received: list[str] = []

    def store(event) -> int:
        received.append(event.request.AffectedSOPInstanceUID)
        return answer(len(received))

    ae = pynetdicom.AE("PACS")
    for sop_class in classes or (pydicom.uid.MRImageStorage, pydicom.uid.ParametricMapStorage):
        ae.add_supported_context(sop_class)
    handlers = [(pynetdicom.evt.EVT_C_STORE, store)]
    ae.require_called_aet = True
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, **options)
    try:
        yield server.server_address[1], received
    finally:
        server.shutdown()


@pytest.mark.parametrize("way", ["C-STORE", "STOW-RS"])
def test_orthanc_gives_back_what_was_sent(exported, orthanc, way):
    dicom, url = orthanc
    empty(url)
    files = find_objects([exported() / "dicom"])
    transmit = CStore("127.0.0.1", dicom, "ORTHANC") if way == "C-STORE" else StowRs(f"{url}/dicom-web")
    for _ in range(2):  # sent twice, stored once
        outcomes = send(files, transmit, retries=0)
        assert [(o.path, o.stored, o.status) for o in outcomes] == [(path, True, "") for path in files]
    found = requests.get(f"{url}/instances", timeout=10).json()
    assert len(found) == len(files) == 6 * oblique.SLICES + 3
    back = {}
    for name in found:
        ds = pydicom.dcmread(pydicom.filebase.DicomBytesIO(requests.get(f"{url}/instances/{name}/file").content))
        back[ds.SOPInstanceUID] = ds
    images = oblique.images()
    for path in files:
        sent = pydicom.dcmread(path)
        ds = back[sent.SOPInstanceUID]
        assert ds == sent
        if ds.SeriesNumber == 1001:
            slope = ds.RealWorldValueMappingSequence[0].RealWorldValueSlope
            true = images["reconstruction"][ds.InstanceNumber - 1]
            assert np.abs(ds.pixel_array - np.minimum(true / slope, 32767)).max() < 0.51
        if ds.SeriesNumber == 1003:
            frames = np.frombuffer(ds.FloatPixelData, "<f4").reshape(-1, oblique.ROWS, oblique.COLUMNS)
            assert {f.tobytes() for f in frames} == {s.tobytes() for s in images["std"]}
    assert {ds.SOPClassUID.name for ds in back.values()} == CLASSES
    assert len(requests.get(f"{url}/studies", timeout=10).json()) == 1
    assert len(requests.get(f"{url}/series", timeout=10).json()) == 9


def test_dcmtk_sends_the_same_files(exported, orthanc):
    if shutil.which("dcmsend") is None:
        pytest.skip("dcmsend is not installed: it comes with the Debian package dcmtk")
    dicom, url = orthanc
    empty(url)
    command = ["dcmsend", "-aet", "MRGEN", "-aec", "ORTHANC", "127.0.0.1", str(dicom), "+sd", "+r"]
    subprocess.run([*command, str(exported() / "dicom")], check=True, timeout=60)
    assert len(requests.get(f"{url}/instances", timeout=10).json()) == 6 * oblique.SLICES + 3


@pytest.fixture
def three(exported) -> list[Path]:
    mean = sorted((exported() / "dicom/1001_mean").iterdir())
    return [*mean[:2], exported() / "dicom/1003_std_pm/std.dcm"]


def test_a_node_out_of_resources_is_asked_again(three):
    waits: list[float] = []
    with node(lambda n: 0xA700 if n in (2, 4) else 0) as (port, received):
        outcomes = send(three, CStore("127.0.0.1", port, "PACS"), 3, waits.append)
    assert [(o.stored, o.status) for o in outcomes] == [(True, "")] * 3
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in three]
    assert received == [*uids, uids[1], uids[1]]
    assert waits == [1, 2]


@pytest.mark.parametrize(("status", "stored"), [(0xC123, False), (0xA900, False), (0x0122, False), (0xB007, True)])
def test_other_statuses_are_final(three, status, stored):
    with node(lambda n: status if n == 2 else 0) as (port, received):
        outcomes = send(three, CStore("127.0.0.1", port, "PACS"), 3, pytest.fail)
    assert [o.stored for o in outcomes] == [True, stored, True]
    assert f"0x{status:04X}" in outcomes[1].status
    assert len(received) == 3


def test_a_node_without_the_class_stores_the_rest(three):
    with node(lambda _: 0, [pydicom.uid.MRImageStorage]) as (port, received):
        outcomes = send(three, CStore("127.0.0.1", port, "PACS"), 3, pytest.fail)
    assert [o.stored for o in outcomes] == [True, True, False]
    assert outcomes[2].status == "PACS does not accept Parametric Map Storage"
    assert len(received) == 2


def test_nobody_there_is_told_after_the_last_try(three):
    waits: list[float] = []
    for transmit in (CStore("127.0.0.1", free_port(), "PACS"), StowRs(f"http://127.0.0.1:{free_port()}/dicom-web")):
        outcomes = send(three, transmit, 2, waits.append)
        assert not any(o.stored for o in outcomes)
        assert all("is not reached" in o.status for o in outcomes)
    assert waits == [1, 2, 1, 2]


def test_a_wrong_title_is_refused_for_good(three):
    with node(lambda _: 0) as (port, received):
        outcomes = send(three, CStore("127.0.0.1", port, "OTHER"), 3, pytest.fail)
    assert "refuses the association: Called AE title not recognised" in outcomes[0].status
    assert not received


def test_tls_wants_a_certificate_that_is_trusted(three, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: it makes the certificate")
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", pem],
        check=True, capture_output=True,
    )  # fmt: skip
    context = sending.ssl.SSLContext(sending.ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    with node(lambda _: 0, ssl_context=context) as (port, received):
        trusted = send(three, CStore("127.0.0.1", port, "PACS", tls=Tls(authorities=pem)), 0)
        assert [o.stored for o in trusted] == [True] * 3
        for stranger in (Tls(), None):  # the system's authorities; no TLS
            assert not any(o.stored for o in send(three[:1], CStore("127.0.0.1", port, "PACS", tls=stranger), 0))
        assert len(received) == 3


class Stow(BaseHTTPRequestHandler):
    """A DICOMweb service that gives `answers` in their order: code, media type and body."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[list[tuple[int, str, bytes]]] = []

    def do_POST(self) -> None:
        if length := self.headers.get("Content-Length"):
            self.rfile.read(int(length))
        else:  # in chunks
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        code, kind, body = self.answers.pop(0)
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def stow() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    server.shutdown()
    server.server_close()


def store_response(failure: int | None = None, warning: int | None = None) -> bytes:
    """PS3.18 I.2 for one object, in JSON."""
    item: dict[str, object] = {"00081155": {"vr": "UI", "Value": ["1.2"]}}
    if failure is not None:
        item["00081197"] = {"vr": "US", "Value": [failure]}
    if warning is not None:
        item["00081196"] = {"vr": "US", "Value": [warning]}
    return json.dumps({"00081199" if failure is None else "00081198": {"vr": "SQ", "Value": [item]}}).encode()


JSON = "application/dicom+json"


@pytest.mark.parametrize(
    ("answers", "stored", "status", "before"),
    [
        ([(503, "text/plain", b""), (429, JSON, b"{}"), (200, JSON, store_response())], True, "", False),
        ([(200, f"{JSON}; charset=utf-8", store_response())], True, "", False),
        ([(202, JSON, store_response(warning=0xB000))], True, "warning 0xB000", False),
        ([(202, JSON, store_response(0xC000))], False, "failure 0xC000", False),
        ([(202, JSON, store_response(0xA700)), (200, JSON, store_response())], True, "", False),
        ([(409, JSON, store_response(0xA900))], False, "HTTP 409 Client Error: Conflict", False),
        ([(409, JSON, store_response(0xA701)), (200, JSON, store_response())], True, "", False),
        ([(409, JSON, store_response(0x0111))], True, "", True),
        ([(409, JSON, store_response(45070))], True, "", True),
        ([(409, "text/html", b"<p>no")], False, "HTTP 409 Client Error: Conflict", False),
        ([(409, JSON, b"[1]")], False, "HTTP 409 Client Error: Conflict", False),
        ([(401, "text/plain", b"")], False, "HTTP 401 Client Error: Unauthorized", False),
        ([(200, JSON, b"{}")], False, "the answer does not say that it was stored", False),
    ],
)
def test_answers_of_stow(three, stow, answers, stored, status, before):
    Stow.answers = [*answers]
    (outcome,) = send(three[:1], StowRs(stow), 3, lambda _: None)
    assert not Stow.answers
    assert (outcome.stored, outcome.before) == (stored, before)
    assert outcome.status.startswith(status) if status else outcome.status == ""
    assert stored or answers[0][2] != store_response(0xA900) or outcome.status.endswith("; failure 0xA900")


def test_the_exit_code_tells_how_it_went(mrgen, three):
    for status, code in ((0, 0), (0xB000, 3), (0xC000, 1)):
        with node(lambda n, status=status: status if n == 1 else 0) as (port, _):
            found, text, error = mrgen("send", *three, "--host", "127.0.0.1", "--port", port, "--aec", "PACS")
        assert found == code
        assert f"stored  {2 if code == 1 else 3} of 3 objects" in text
        assert (f"not stored {three[0]}: status 0xC000" in error) == (code == 1)
        assert (f"warning {three[0]}: status 0xB000" in error) == (code == 3)
        assert str(three[1]) not in error


def test_duplicates_count_as_stored(mrgen, three):
    with node(lambda n: 0x0111 if n < 3 else 0) as (port, received):
        found, text, error = mrgen("send", *three, "--host", "127.0.0.1", "--port", port, "--aec", "PACS")
    assert (found, text, error) == (0, "stored  3 of 3 objects, 2 already there\n", "")
    assert len(received) == 3
    with node(lambda n: {1: 0x0111, 2: 0x0110}.get(n, 0)) as (port, _):
        found, text, error = mrgen("send", *three, "--host", "127.0.0.1", "--port", port, "--aec", "PACS")
    assert (found, text) == (1, "stored  2 of 3 objects, 1 already there\n")
    assert f"not stored {three[1]}: status 0x0110" in error
    assert str(three[0]) not in error


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ([], "say where to send to"),
        (["--host", "127.0.0.1", "--port", 1], "say where to send to"),
        (["--url", "http://127.0.0.1", "--aec", "PACS"], "leave out --host"),
        (["--host", "127.0.0.1", "--port", 1, "--aec", "PACS", "--ca", "ca.pem"], "add --tls"),
        (
            ["--host", "127.0.0.1", "--port", 1, "--aec", "PACS", "--tls", "--ca", "none.pem"],
            "TLS files cannot be used",
        ),
        (["--host", "127.0.0.1", "--port", 1, "--aec", "A" * 17], "expected AE titles of 1 to 16"),
        (["--url", "gopher://127.0.0.1"], "expected http(s)://"),
    ],
)
def test_options_that_cannot_be(mrgen, three, options, match):
    code, _, error = mrgen("send", *three, *options)
    assert (code, error.count("\n")) == (1, 1)
    assert match in error


def test_only_dicom_files_are_sent(mrgen, exported, tmp_path):
    options = ["--host", "127.0.0.1", "--port", 1, "--aec", "PACS"]
    for path, match in ((exported() / "nifti", "holds, no DICOM file"), (exported() / "scan.h5", "no DICOM file"),
                        (tmp_path / "none", "no such file or folder")):  # fmt: skip
        code, _, error = mrgen("send", path, *options)
        assert code == 1
        assert match in error
    assert len(find_objects([exported()])) == 6 * oblique.SLICES + 3

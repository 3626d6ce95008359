"""From a fully sampled scan to a PACS on this machine, and what the PACS then holds.

    python examples/demo_to_pacs.py -o out/pacs

reconstructs the bundled scan with every kind of DICOM object, starts Orthanc (https://www.orthanc-server.com, Debian
package orthanc), which then takes objects from this machine alone, sends them by C-STORE, asks over HTTP what is
stored, and stops it. Each command is shown as it runs. The default recipe takes seconds and makes no good image;
`--recipe posterior` takes minutes on a CPU. The calibration is fitted to the very scan that it is applied to, so here
its intervals only show what the objects look like.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCAN = Path(__file__).parent / "data" / "brain.h5"


def mrgen(*arguments: object) -> None:
    """Show and run a command; SystemExit where it fails."""
    words = [str(a) for a in arguments]
    print(f"\n$ mrgen {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "mrgen.cli", *words], check=False)
    if done.returncode:
        sys.exit(f"error: mrgen {words[0]} failed with exit code {done.returncode}")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def settings(folder: Path, dicom: int, http: int) -> dict[str, Any]:
    """Of an Orthanc that answers HTTP of this machine alone, and stores what one AE title of this machine sends."""
    return {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "RemoteAccessAllowed": False,
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "DicomCheckModalityHost": True,
        "DicomAlwaysAllowStore": False,
        "DicomModalities": {"mrgen": {"AET": "MRGEN", "Host": "127.0.0.1", "Port": 104}},
    }


def ask(http: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/{path}", timeout=10) as answer:
        return json.load(answer)


@contextmanager
def orthanc() -> Iterator[tuple[int, int]]:
    """(DICOM port, HTTP port) of a new, empty Orthanc. SystemExit where it does not start."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None:
        sys.exit("error: Orthanc is not installed: it comes with the Debian package orthanc")
    dicom, http = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "orthanc.json"
        configuration.write_text(json.dumps(settings(Path(folder) / "db", dicom, http), indent=2))
        print(f"\n$ Orthanc orthanc.json, with\n{configuration.read_text()}", flush=True)
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen([program, configuration], stdout=log, stderr=log)
            try:
                for _ in range(300):
                    try:
                        ask(http, "system")
                        break
                    except urllib.error.URLError:
                        time.sleep(0.1)
                else:
                    log.seek(0)
                    sys.exit(f"error: Orthanc did not start:\n{log.read()}")
                yield dicom, http
            finally:
                process.terminate()
                process.wait(20)


def stored(http: int) -> list[tuple[int, str, str, int]]:
    """(SeriesNumber, Modality, SeriesDescription, objects) of every series, by number."""
    found = []
    for series in ask(http, "series?expand"):
        tags = series["MainDicomTags"]
        found.append((int(tags["SeriesNumber"]), tags["Modality"], tags["SeriesDescription"], len(series["Instances"])))
    return sorted(found)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scan", nargs="?", type=Path, default=SCAN, help="without it, the bundled one")
    parser.add_argument("--R", type=float, default=8, help="undersample by this factor")
    parser.add_argument("--flag", type=float, default=0.3, help="threshold of the segmentation")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--recipe", default="gaussian", help="one that draws samples")
    options = parser.parse_args(arguments)

    out, how = options.out, ["--R", options.R, "--recipe", options.recipe, "--samples", 8]
    with orthanc() as (dicom, http):  # first, as it may be missing
        calibration = out / "calibration.json"
        out.mkdir(parents=True, exist_ok=True)
        mrgen("calibrate", options.scan, *how, "-o", calibration)
        mrgen("recon", options.scan, *how, "--calibration", calibration, "--flag", options.flag, "--overlay", "-o", out)
        mrgen("send", out / "dicom", "--host", "127.0.0.1", "--port", dicom, "--aec", "ORTHANC")
        series = stored(http)
        files = len(list((out / "dicom").rglob("*.dcm")))
    print("\n| series | modality | description | objects |\n|---|---|---|---|")
    for row in series:
        print(f"| {' | '.join(map(str, row))} |")
    count = sum(objects for *_, objects in series)
    print(f"\nThe PACS holds {count} of the {files} objects that were written.")
    if count != files:
        sys.exit("error: some objects are missing")


if __name__ == "__main__":
    main()

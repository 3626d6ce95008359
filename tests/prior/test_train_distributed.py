"""Two processes of torchrun on a CPU: the updates of one process, exact resume, and an end for all where one fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from children import Child
from processes import KINDS, case
from tinyset import scan_file

from mrgen.prior.files import load_prior, read_safetensors
from mrgen.prior.train import train

HERE = Path(__file__).parent
ROUNDING = {"weight": 2e-6, "average": 2e-6, "mean": 1e-7, "square": 1e-9, "log": 1e-7}
Start = Callable[..., Child]


@pytest.fixture(scope="module")
def shared(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """Folder, output and exit code of two processes that train one after another all that `processes.py` has."""
    folder = tmp_path_factory.mktemp("shared")
    process = start(HERE / "processes.py", "all", folder, processes=2)
    text = process.communicate(timeout=240)
    return folder, text, process.returncode


def quiet(text: str) -> None:
    del text


def test_two_processes_make_the_updates_of_one(shared: tuple[Path, str, int], tmp_path: Path) -> None:
    folder, text, _ = shared
    assert "rank 0: training gsure-sense: 4 slices" in text
    assert "rank 1:" not in text
    for name in (*KINDS, "accumulate"):
        kind = "gsure-fourier" if name == "accumulate" else name
        one = train(*case(kind), tmp_path / "one" / f"{kind}.safetensors", report=quiet)
        (alone, _), (shared, _) = (
            read_safetensors(where / f"{stem}.checkpoint.safetensors")
            for where, stem in ((one.parent, kind), (folder, name))
        )
        for key, value in alone.items():  # mean/ are gradients, of up to 1e-2; weights have moved by up to 1e-3
            atol = ROUNDING[key.partition("/")[0]]
            torch.testing.assert_close(shared[key], value, rtol=1e-5, atol=atol, msg=f"{name}: {key}")
        assert load_prior(folder / f"{name}.safetensors").metadata["steps_done"] == 5


def test_what_ends_a_process_ends_all_with_its_message(shared: tuple[Path, str, int]) -> None:
    folder, text, code = shared
    for rank in range(2):
        assert f"process {rank} stopped: the loss of nan.safetensors is not finite at step 1;" in text
    assert code != 0
    assert "this file is damaged" in text
    assert not (folder / "nan.safetensors").exists()
    assert not (folder / "damaged.safetensors").exists()


@pytest.mark.slow
def test_killed_processes_go_on_from_their_checkpoint(
    start: Start, shared: tuple[Path, str, int], tmp_path: Path
) -> None:
    whole, parts = shared[0], tmp_path / "parts"
    killed = start(HERE / "processes.py", "long", parts, processes=2)
    checkpoint = parts / "prior.checkpoint.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(60)
    assert 0 < read_safetensors(checkpoint)[1]["step"] < 15
    assert not (parts / "prior.safetensors").exists()
    resumed = start(HERE / "processes.py", "long", parts, processes=2)
    text = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, text
    assert "rank 0: resuming prior.safetensors at step" in text
    one, two = (read_safetensors(folder / "prior.checkpoint.safetensors")[0] for folder in (whole, parts))
    assert [k for k in one if not torch.equal(one[k], two[k])] == []
    assert (whole / "prior.csv").read_bytes() == (parts / "prior.csv").read_bytes()


@pytest.mark.slow
def test_the_command_prepares_and_trains_with_two_processes(start: Start, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for seed in range(3):
        scan_file(tmp_path / "scans" / f"{seed}.h5", seed)
    (tmp_path / "own.toml").write_text(
        'description = "own"\nanatomy = "any"\n[sampling]\nacceleration = [2.0]\ncenter_fraction = 0.3\n'
        '[network]\nwidths = [16, 16]\nblocks = 1\n[training]\nbasis = "fourier"\nsteps = 3\nbatch = 2\n'
    )
    process = start("-m", "mrgen.cli", "train-prior", tmp_path / "scans", "--protocol", tmp_path / "own.toml",
                    "-o", tmp_path / "prior.safetensors", "--device", "cpu", processes=2)  # fmt: skip
    text = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert text.count("prepared 3 scans: 6 slices") == 1
    assert text.count("wrote") == 1
    assert len(list((tmp_path / "cache").glob("*.h5"))) == 3
    assert (tmp_path / "prior.samples.png").read_bytes().startswith(b"\x89PNG")
    assert load_prior(tmp_path / "prior.safetensors").metadata["steps_done"] == 3


LEAVES = """
import atexit, os
from pathlib import Path

def threads():
    print([Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")])

atexit.register(threads)
from mrgen.prior.distributed import join
threads()
circle = [join("cpu")]
circle.append(circle)
circle[0].any(True)
threads()
del circle
"""


def test_the_threads_of_gloo_end_before_python(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    text = start("-c", LEAVES).communicate(timeout=60)
    assert ["gloo" in line for line in text.splitlines() if line.startswith("[")] == [False, True, False], text


TOGETHER = """
import os, torch
from mrgen.prior.distributed import join
p = join("cpu")
total = p.sum(torch.tensor([1.0 + p.rank])).item()
found = p.rank, p.any(p.rank == 1, False, p.rank == 0), total, p.agree(1), p.agree(p.rank)
os.write(1, f"rank {found}\\n".encode())  # whole, whatever the other writes
"""


def test_processes_hear_of_what_is_so_in_one_of_them(start: Start) -> None:
    text = start("-c", TOGETHER, processes=2).communicate(timeout=60)
    found = sorted(line[line.index("rank") :] for line in text.splitlines() if "rank" in line)
    assert found == [f"rank ({rank}, [True, False, True], 3.0, True, False)" for rank in range(2)], text


SHARED = """
import os
from mrgen.prior.distributed import join
p = join("cpu")
first, second = p.share("abcdef"), p.share("xyz")
taken = [next(first)]
for rank in range(2):  # the second asks for no more before the first has taken the rest
    p.wait()
    if rank == p.rank:
        taken += first
os.write(1, f"rank {p.rank}, {''.join(taken)}, {''.join(second)}\\n".encode())
"""


def test_who_is_slow_takes_less_of_what_is_shared(start: Start) -> None:
    text = start("-c", SHARED, processes=2).communicate(timeout=60)
    found = sorted(line[line.index("rank") :].split(", ") for line in text.splitlines() if "rank" in line)
    (_, *fast), (_, *slow) = found
    assert (len(fast[0]), len(slow[0])) == (5, 1), text
    for a, b, whole in zip(fast, slow, ("abcdef", "xyz"), strict=True):
        assert sorted(a + b) == list(whole), text

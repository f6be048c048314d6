# SPDX-License-Identifier: MIT
"""The simulation (csrc/sim): the core over a simulated kernel, disk and clock, and whether it finds what it is for."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 900
SEEDS = 600  # within which a fault that is put back is found
pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or shutil.which("make") is None, reason="needs gcc and make"
)


def build(root: Path, directory: str, flags: str = "") -> Path:
    """Compile it, and return the program."""
    program = f"{directory}/sim"
    command = ["make", "-s", "-j2", program, f"SIM_DIR={directory}", f"SIM_FLAGS={flags}"]
    subprocess.run(command, cwd=root, check=True, timeout=LIMIT)
    return root / program


def run(program: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run it."""
    command = [str(program), *args]
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=LIMIT, check=False
    )


@pytest.fixture(scope="module")
def program() -> Path:
    """The simulation of the code as it is."""
    return build(ROOT, "build/sim")


def test_seeds(program: Path) -> None:
    """200 scenarios: each byte is right, each invariant holds, and nobody waits for ever."""
    done = run(program, "--seeds", "200")
    assert done.returncode == 0, done.stdout[-8000:]
    counts = [int(n) for n in re.findall(r"(\d+) (?!seeds)", done.stdout.splitlines()[-1])]
    assert all(counts), done.stdout  # it has evicted, read the file, cleaned segments, lost blocks


def test_sanitized() -> None:
    """The same under AddressSanitizer and UBSan, fewer of them."""
    flags = "-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined"
    done = run(build(ROOT, "build/sim-sanitized", flags), "--from", "1000", "--seeds", "30")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]


def test_repeats(program: Path) -> None:
    """A seed does the same again, to the step; another one does not."""
    first, again, other = (
        run(program, "--from", seed, "--seeds", "3").stdout for seed in ("77", "77", "78")
    )
    assert first == again != other


@pytest.mark.parametrize("seed", ["3", "6", "8"])  # 8: messages alone; 3 and 6: inline
def test_each(program: Path, seed: str) -> None:
    """Each call of the kernel's fails once, every 40th of them, in each way: no byte, no wait, no memory is lost by it."""
    done = run(program, "--each", "40", "--from", seed)
    assert done.returncode == 0, done.stdout[-8000:]
    assert len(re.findall(r"^[A-Z]+: [1-9]\d* of", done.stdout, re.MULTILINE)) > 10, done.stdout


@dataclass(frozen=True)
class Fault:
    """A fault that is put back: in `file`, `now` becomes `then`."""

    file: str
    now: str
    then: str
    found: str  # how it shows
    options: tuple[str, ...] = ()


FAULTS = {
    # Each of these was in the code once.
    "who waits for an unmapped page is not woken": Fault(
        "install.c",
        "if (was_there || holes)",
        "if (was_there)",
        "deadlock|took|not done|takes too long",
        ("--with", "unmaps"),
    ),
    "an empty pool makes room": Fault(
        "reclaim.c",
        "if (t->ops->used(t) == 0)",
        "if (t->ops->used(t) == UINT64_MAX)",
        "deadlock|not done|takes too long",
    ),
    "what is bad is read with others for ever": Fault(
        "range.c",
        "us_tier_fetch(p, r, i, true, 0);",
        "us_tier_fetch_run(p, r, i, r->first + last, true, UINT64_MAX);",
        "deadlock|not done|takes too long|EFAULT",
    ),
    # These never were.
    "committed before it is copied": Fault(
        "mover.c",
        "    memcpy(m->space->outbox + (uint64_t)c->slot * US_PAGE, (void *)(uintptr_t)from, len);\n"
        "    finish(m, c, 0);",
        "    finish(m, c, 0);\n"
        "    memcpy(m->space->outbox + (uint64_t)c->slot * US_PAGE, (void *)(uintptr_t)from, len);",
        "wrong byte",
    ),
    "clean, and not protected": Fault(
        "install.c",
        "us_min(step, len - off), clean, &done);",
        "us_min(step, len - off), false, &done);",
        "wrong byte|not protected",
    ),
    "what was compressed before a write counts": Fault(
        "entry.c",
        "    if (e.gen != job->gen)\n        return 0;",
        "    if (false)\n        return 0;",
        "wrong byte|invariant",
    ),
    "a copy that is cut short is complete": Fault(
        "worker.c",
        "        off += done;\n        if (j->status != -EAGAIN)",
        "        off += done;\n        if (j->status == -EAGAIN && off > 0)\n            j->status = 0;\n"
        "        if (j->status != -EAGAIN)",
        "wrong byte|not there",
    ),
    # Of inline faults. These were in the code once.
    "a hold does not bring its block in": Fault(
        "inline.c",
        "        t.there = in;\n        serve(&t);\n",
        "        t.there = in;\n",
        "a hold answers",
    ),
    "a handler comes when the region has ended": Fault(
        "inline.c",
        "        ours = was_ours(addr);\n",
        "",
        "is SIGBUS",
        ("--with", "ends"),
    ),
    "a hold begins in a region that ends": Fault(
        "client.c",
        "        us_inline_ending(r->addr, true);\n    const int unregistered",
        "        us_inline_ending(r->addr, false);\n    const int unregistered",
        "took|not done|takes too long|claim|a hold answers",
        ("--with", "ends"),
    ),
    "the mover reads what is missing of an inline region": Fault(
        "mover.c",
        "            if (c->spare == 0) {",
        "            if (true) {",
        "which ends the process",
    ),
    # These never were.
    "a block that is held leaves": Fault(
        "evict.c",
        "    if (!us_take_alone(&p->mm, r, i))\n        return NOT_NOW;",
        "    if (!us_take(&p->mm, r, i))\n        return NOT_NOW;",
        "EFAULT",
    ),
    "held, and a page of it is missing": Fault(
        "inline.c",
        "                serve(&t); /* what the kernel",
        "                ; /* what the kernel",
        "EFAULT",
    ),
    "held, and a page of it is protected": Fault(
        "inline.c",
        "    int err = write ? -EAGAIN : 0;\n",
        "    int err = 0;\n",
        "EFAULT",
    ),
    "a note is written over": Fault(
        "inline.c",
        "while (first + n - us_atomic_load_explicit(&in->note_tail, memory_order_acquire) > US_NOTES) {",
        "while (false) {",
        "took|not done|takes too long|deadlock|claim",
    ),
    "what is promised is not taken back": Fault(
        "inline.c",
        "        us_atomic_fetch_sub(&t->r->of.space->in->resident, back);\n",
        "        ;\n",
        "promised",
    ),
    "a handler takes a copy that is cut short for whole": Fault(
        "inline.c",
        "(in += len_of(t->r, t->i + t->done)) <= off; t->done++)",
        "(in += len_of(t->r, t->i + t->done)) <= total; t->done++)",
        "wrong byte|not there|not done|invariant|promised|claim|aborts",
    ),
    "read ahead, and who has asked is not told": Fault(
        "entry.c",
        "    us_ask_answer(&p->mm, us_block_addr(r, i), len); /* the copy has woken who waits in the kernel */\n",
        "",
        "took|not done|takes too long|deadlock",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_finds(name: str, tmp_path: Path) -> None:
    """A fault that is put back is found within so many seeds."""
    fault = FAULTS[name]
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "uswap").mkdir()  # which the Makefile looks through
    source = tmp_path / "csrc" / fault.file
    text = source.read_text()
    assert text.count(fault.now) == 1, f"{fault.file} has changed"
    # What is compiled already is taken as it is, but for this file.
    build(ROOT, "build/sim")
    shutil.copytree(ROOT / "build/sim", tmp_path / "build/sim")
    for made in (tmp_path / "build/sim").iterdir():
        made.touch()
    source.write_text(text.replace(fault.now, fault.then))
    (tmp_path / "build/sim" / f"{source.stem}.o").unlink()
    done = run(build(tmp_path, "build/sim"), "--seeds", str(SEEDS), *fault.options)
    assert done.returncode == 1, f"{SEEDS} seeds have not found it"
    last = [line for line in done.stdout.splitlines() if line.startswith("seed ")][-1]
    assert re.search(fault.found, last), last
    print(f"{name}: {last}; {done.stdout.splitlines()[-1]}")

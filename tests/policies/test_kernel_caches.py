"""What PyTorch keeps of the shapes it has met: no more as training goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, random
import vlacoach.policies
import torch

class Info(ctypes.Structure):
    fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in fields.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
layer = torch.nn.Linear(192, 768)
rows = list(range(100, 1000))
random.Random(0).shuffle(rows)
used = []
for step in range(180):
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.ones(rows[step], 192, requires_grad=True)).sum().backward()
    if step in (60, 179):
        info = libc.mallinfo2()
        used.append((info.uordblks + info.hblkhd) / 2**20)
print(used[1] - used[0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the GNU C library what is in use")
def test_shapes_that_never_come_again_take_no_memory():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    if "mallinfo2" in done.stderr:
        pytest.skip("a C library without mallinfo2")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30  # MB; 200 where the caches have the size that they come with.

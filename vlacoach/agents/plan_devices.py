"""GPUs: how much memory they have, and how fast they multiply and read.

Memory is what ``nvidia-smi`` reports (modal-labs/modal-client, pull request 2797, lists A10, A100, H100, L4, L40S and
T4; the A10G has the A10's; for the others the card's own report), which is not quite what the name says. Speeds are
NVIDIA's figures for dense matrices: those on the front of a data sheet are often the doubled ones, for matrices of
which half is zero. bfloat16 products are added up in float32, which halves the speed of GeForce cards.

- A10, A100, H100, H200, L4, L40S, T4: data sheets. A T4 has no bfloat16; its figure is that of float16.
- A10G: 70 TFLOP/s, where the A10 has 125. Public tables disagree, and many repeat the A10's figure; that the A10 is the
  faster of the two in tensor products is said at baseten.co, "NVIDIA A10 vs A10G". The lower figure is used.
- RTX 3090: "NVIDIA Ampere GA102 GPU Architecture". RTX 4090, RTX 6000 Ada: "NVIDIA Ada GPU Architecture".
"""

from __future__ import annotations

from dataclasses import dataclass

from vlacoach.errors import UnknownNameError

MIB, GIB = 2**20, 2**30

CONTEXT_BYTES = GIB // 2
"""What a process that computes takes of a device before its first tensor: the CUDA context, loaded kernels, and the
workspaces of cuBLAS. An assumption: about 300 MiB are reported for the context (pytorch/pytorch, issue 107667), and
cuBLAS takes 8 to 32 MiB a stream."""


@dataclass(frozen=True)
class Device:
    """A kind of GPU.

    Attributes:
        name: As given to ``--gpu``.
        title: As NVIDIA calls it.
        memory: Bytes, as ``nvidia-smi`` reports them.
        half: FLOP/s of dense bfloat16 products (float16 without ``bf16``).
        single: FLOP/s of float32, without tensor cores.
        bandwidth: Bytes a second that it reads or writes of its memory.
        bf16: Whether it computes in bfloat16.
    """

    name: str
    title: str
    memory: int
    half: float
    single: float
    bandwidth: float
    bf16: bool = True


def _device(
    name: str, title: str, mebibytes: int, half: float, single: float, gigabytes: float, bf16: bool = True
) -> Device:
    return Device(name, title, mebibytes * MIB, half * 1e12, single * 1e12, gigabytes * 1e9, bf16)


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _device("a10", "NVIDIA A10", 23028, 125, 31.2, 600),
        _device("a10g", "NVIDIA A10G", 23028, 70, 31.5, 600),
        _device("a100-40", "NVIDIA A100 40GB", 40960, 312, 19.5, 1555),
        _device("a100-80", "NVIDIA A100 80GB", 81920, 312, 19.5, 2039),
        _device("h100-80", "NVIDIA H100 80GB SXM", 81559, 989, 67, 3350),
        _device("h200", "NVIDIA H200 141GB", 143771, 989, 67, 4800),
        _device("l4", "NVIDIA L4", 23034, 121, 30.3, 300),
        _device("l40s", "NVIDIA L40S", 46068, 362, 91.6, 864),
        _device("t4", "NVIDIA T4", 15360, 65, 8.1, 320, bf16=False),
        _device("3090", "NVIDIA GeForce RTX 3090", 24576, 71, 35.6, 936),
        _device("4090", "NVIDIA GeForce RTX 4090", 24564, 165, 82.6, 1008),
        _device("rtx6000ada", "NVIDIA RTX 6000 Ada", 49140, 364, 91.1, 960),
    )
}
"""Known GPUs by name."""


def find_device(name: str) -> Device:
    """A GPU by its name; capitals and a leading ``rtx`` do not matter.

    Raises:
        UnknownNameError: There is none of this name; names the nearest.
    """
    wanted = name.strip().lower().replace("_", "-").replace(" ", "")
    device = DEVICES.get(wanted) or DEVICES.get(wanted.removeprefix("rtx").removeprefix("-"))
    if device is None:
        raise UnknownNameError("GPU", name, DEVICES)
    return device

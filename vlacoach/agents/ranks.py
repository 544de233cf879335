"""The processes that train together, and the little that crosses between them.

A rank plays whole groups, so advantages are its own business. What crosses is small: outcomes and embeddings of
trajectories, statistics, and the gradient of what is trained. Whatever starts the processes (torchrun, Ray Train) says
in the environment who is who; nothing here knows which of them it was.

Everything that ranks tell each other is safetensors or JSON; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from vlacoach.errors import RankError
from vlacoach.rewards.peers import Columns, Peers

DEFAULT_LIMIT = 600.0
"""Seconds without a sign of life after which a rank counts as hung: twice those after which a rank itself gives up a
worker of the simulator."""

_LOOK = 0.25  # Seconds between two looks at whoever is waited for, at most.
_BEAT = 1.0  # Seconds between two signs of life, at least.


class Ranks(Peers):
    """One process that trains by itself: everything it would exchange is its own.

    Attributes:
        sent: Bytes that this rank has handed to others, before the transport multiplies them.
    """

    sent = 0

    @property
    def leads(self) -> bool:
        """Whether this rank keeps the run folder."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """Which of ``count`` things, such as groups, this rank deals with: every ``size``-th."""
        return range(self.rank, count, self.size)

    def gather_json(self, value: Any) -> list[Any]:
        """A JSON value of each rank, by rank."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return any(self.gather_json(bool(flag)))

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors of the same shapes over the ranks, in place; all ranks then have the same bits."""

    def send(self, payload: bytes = b"") -> bytes:
        """What the leading rank hands over, on every rank."""
        return payload

    def enter(self, stage: str) -> None:
        """Say what this rank works on from now on; the others name it should it hang."""

    def beat(self) -> None:
        """Give a sign of life."""

    def set_limit(self, seconds: float) -> None:
        """Change after how many seconds without a sign of life a rank counts as hung."""

    def abandon(self, error: BaseException) -> None:
        """Tell the others that this rank stops, and why, so that none waits for it."""


class RankGroup(Ranks):
    """A rank among several, over ``torch.distributed``.

    Before ranks exchange anything they wait for one another here, not in the transport, which would say nothing: a
    rank that gives no sign of life for ``limit`` seconds is named, with what it was doing, on all the others. One that
    works, however slowly, is waited for.

    Args:
        rank: Number of this process.
        size: Number of processes, at least 2.
        store: Shared by the ranks.
        limit: Seconds without a sign of life after which a rank counts as hung.
    """

    def __init__(self, rank: int, size: int, store: Store, limit: float = DEFAULT_LIMIT) -> None:
        self.rank, self.size = rank, size
        self.sent = 0
        self._store = store
        self.limit = limit
        self._turn = 0
        self._stage = "starting"
        self._beats = 0
        self._last_beat = 0.0
        # The transport waits for whoever was here already, and a broken link must end some day too.
        patience = timedelta(seconds=max(60.0, limit))
        self._host = dist.new_group(backend="gloo", timeout=patience)
        self._gpu = dist.group.WORLD if "nccl" in str(dist.get_backend_config()) else None
        self.beat()

    # What ranks exchange

    def gather(self, columns: Columns) -> dict[str, npt.NDArray[Any]]:
        """See :meth:`Peers.gather`."""
        arrays = {key: np.asarray(value, order="C") for key, value in columns.items()}
        parts = [load_arrays(payload) for payload in self._exchange(save_arrays(arrays))]
        gathered = {}
        for key in arrays:
            filled = [part[key] for part in parts if len(part[key])]
            gathered[key] = np.concatenate(filled) if filled else arrays[key]
        return gathered

    def gather_json(self, value: Any) -> list[Any]:
        """See :meth:`Ranks.gather_json`."""
        return [json.loads(payload) for payload in self._exchange(json.dumps(value).encode())]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """See :meth:`Ranks.add`."""
        if not tensors:
            return
        flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
        self._meet("the gradient")
        self.sent += flat.numel() * flat.element_size()
        try:
            if flat.is_cuda and self._gpu is not None:
                dist.all_reduce(flat, group=self._gpu)
            else:
                on_host = flat.cpu()
                dist.all_reduce(on_host, group=self._host)
                flat = on_host.to(flat.device)
        except RuntimeError as error:
            raise self._broken(error) from error
        start = 0
        for tensor in tensors:
            part = flat[start : start + tensor.numel()]
            tensor.detach().copy_(part.view_as(tensor))
            start += tensor.numel()

    def send(self, payload: bytes = b"") -> bytes:
        """See :meth:`Ranks.send`."""
        return self._exchange(payload if self.leads else b"")[0]

    def _exchange(self, payload: bytes) -> list[bytes]:
        """Bytes of every rank, by rank."""
        self._meet("a message")
        self.sent += len(payload)
        try:
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(payload)]), group=self._host)
            longest = max(int(size) for size in sizes)
            mine = torch.zeros(max(1, longest), dtype=torch.uint8)
            if payload:
                mine[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
            buffers = [torch.empty_like(mine) for _ in range(self.size)]
            dist.all_gather(buffers, mine, group=self._host)
        except RuntimeError as error:
            raise self._broken(error) from error
        return [buffer[: int(size)].numpy().tobytes() for buffer, size in zip(buffers, sizes, strict=True)]

    # How they wait for one another

    def enter(self, stage: str) -> None:
        """See :meth:`Ranks.enter`."""
        self._stage = stage
        self._last_beat = 0.0
        self.beat()

    def beat(self) -> None:
        """See :meth:`Ranks.beat`; reaches the others once a second at most."""
        now = time.monotonic()
        if now - self._last_beat >= _BEAT:
            self._last_beat, self._beats = now, self._beats + 1
            self._ask(lambda: self._store.set(f"beat/{self.rank}", f"{self._beats} {self._stage}"))

    def set_limit(self, seconds: float) -> None:
        """See :meth:`Ranks.set_limit`."""
        self.limit = seconds

    def abandon(self, error: BaseException) -> None:
        """See :meth:`Ranks.abandon`."""
        reason = str(error).partition("\n")[0] or type(error).__name__
        try:
            self._store.set("abandoned", json.dumps([self.rank, reason]))
        except RuntimeError:
            return  # The leading rank, which has the store, is gone: the others know already.

    def _meet(self, what: str) -> None:
        """Wait until all ranks are here.

        Raises:
            RankError: One stopped, or gave no sign of life for too long.
        """
        self._turn += 1
        self._ask(lambda: self._store.set(f"met/{self._turn}/{self.rank}", "here"))
        if self.leads and self._turn > 2:  # Nobody asks for these any more: all have passed the turn after them.
            for rank in range(self.size):
                self._ask(lambda rank=rank: self._store.delete_key(f"met/{self._turn - 2}/{rank}"))
        seen: dict[int, tuple[str, float]] = {}
        pause = 0.001
        while missing := self._missing():
            self._beat_while_waiting()
            if self._ask(lambda: self._store.check(["abandoned"])):
                rank, reason = json.loads(self._ask(lambda: self._store.get("abandoned")))
                raise RankError(
                    f"Rank {rank} stopped, so rank {self.rank} does: {reason}", "Look at that rank's output."
                )
            now = time.monotonic()
            for rank in missing:
                sign = self._sign_of(rank)
                if rank not in seen or seen[rank][0] != sign:
                    seen[rank] = sign, now
                elif now - seen[rank][1] > self.limit:
                    raise RankError(
                        f"Rank {rank} has given no sign of life for {self.limit:g} s: it was last at "
                        f"{sign.partition(' ')[2]}, while rank {self.rank} waits with {what} at {self._stage}.",
                        "Look at that rank's output and machine; then go on from the last checkpoint: vlacoach train "
                        "--resume latest. If it was only slow, raise guards.rank.",
                    )
            time.sleep(pause)
            pause = min(_LOOK, 1.5 * pause)

    def _missing(self) -> list[int]:
        return [
            rank
            for rank in range(self.size)
            if rank != self.rank and not self._ask(lambda rank=rank: self._store.check([f"met/{self._turn}/{rank}"]))
        ]

    def _beat_while_waiting(self) -> None:
        stage, self._stage = self._stage, f"{self._stage} (waiting)"
        self.beat()
        self._stage = stage

    def _sign_of(self, rank: int) -> str:
        if not self._ask(lambda: self._store.check([f"beat/{rank}"])):
            return "0 starting"
        return str(self._ask(lambda: self._store.get(f"beat/{rank}")).decode())

    def _ask(self, question: Any) -> Any:
        try:
            return question()
        except RuntimeError as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> RankError:
        return RankError(
            f"Rank {self.rank} lost touch with the others at {self._stage}: {str(error).partition(chr(10))[0]}",
            "A process was probably lost; look at the output of the others, and go on from the last checkpoint: "
            "vlacoach train --resume latest.",
        )


def ranks_expected(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes were started to train together, as torchrun and Ray Train say it."""
    return int(environment.get("WORLD_SIZE", "1"))


def join_ranks(limit: float = DEFAULT_LIMIT) -> Ranks:
    """Take this process's place among those that were started with it; alone if there are no others.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets them. A process
    group that exists already, such as Ray Train's, is used.

    Args:
        limit: See :class:`RankGroup`.

    Raises:
        RankError: The others cannot be reached.
    """
    size = ranks_expected()
    if size == 1:
        return Ranks()
    patience = timedelta(seconds=max(60.0, limit))
    if device := local_device():
        torch.cuda.set_device(device)  # What "cuda" without a number means from here on.
    try:
        if not dist.is_initialized():
            store, rank, _ = next(rendezvous("env://", timeout=patience))
            # torchrun's store outlives the processes: what those of an attempt before this one left there must not be
            # taken for addresses.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            backend = "cpu:gloo,cuda:nccl" if _own_gpu() else "gloo"
            own = PrefixStore(f"vlacoach/{attempt}", store)
            dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=patience)
        return RankGroup(dist.get_rank(), size, _make_store(patience), limit)
    except RuntimeError as error:
        raise RankError(
            f"Rank {os.environ.get('RANK')} of {size} cannot reach the others: {str(error).partition(chr(10))[0]}",
            "Are all processes started, and is MASTER_ADDR, port MASTER_PORT, open between the machines?",
        ) from error


def leave_ranks() -> None:
    """Give up this process's place, if it took one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def local_device() -> str | None:
    """The CUDA device of this process among those of its machine, or None where there are none."""
    if not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def local_share(cores: int) -> int:
    """Of a machine's cores, those that one of its processes may use."""
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _own_gpu() -> bool:
    """Whether each process of this machine has a GPU of its own, which NCCL asks for."""
    return torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _make_store(patience: timedelta) -> Store:
    """A store of this project's own, at the leading rank, whose keys nobody else uses."""
    address = torch.zeros(256, dtype=torch.uint8)
    leads = dist.get_rank() == 0
    store = None
    host = os.environ.get("MASTER_ADDR") or socket.gethostname()
    if leads:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=patience)
        text = json.dumps([host, store.port]).encode()
        address[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    device = "cpu" if "gloo" in str(dist.get_backend_config()) else local_device()
    address = address.to(device)
    dist.broadcast(address, src=0)
    if store is None:
        host, port = json.loads(address.cpu().numpy().tobytes().rstrip(b"\0"))
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=patience)
    return store

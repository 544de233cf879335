"""A stand-in for Modal's servers, so far as starting one function and reading its volumes goes.

Modal's own client talks to it over its public protocol, so what a test reads here is what would have been sent. It
builds no images and runs no containers: a function of the test's takes their place.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server
from modal_proto import api_grpc, api_pb2

SUCCESS = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
FAILURE = api_pb2.GenericResult.GENERIC_STATUS_FAILURE


class ModalServer:
    """Serves one app; volumes are folders under ``root``.

    Args:
        root: Has a folder for each volume.
        work: Called with the job, in a thread; returns the function's result.

    Attributes:
        requests: What was received, by method.
    """

    def __init__(self, root: Path, work: Callable[[dict[str, Any]], Any]) -> None:
        self.root = root
        self.requests: dict[str, list[Any]] = {}
        self._work = work
        self._result: api_pb2.GenericResult | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> ModalServer:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make Modal's client talk to this server."""
        return {
            "MODAL_SERVER_URL": f"http://127.0.0.1:{self._port}",
            "MODAL_TOKEN_ID": "ak-test",
            "MODAL_TOKEN_SECRET": "as-test",
            "MODAL_CONFIG_PATH": str(self.root / "no-such-file.toml"),
        }

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        files = web.AppRunner(web.Application())
        files.app.router.add_static("/", self.root)
        await files.setup()
        site = web.TCPSite(files, "127.0.0.1", 0)
        await site.start()
        self._files = f"http://127.0.0.1:{files.addresses[0][1]}"
        server = Server([self])
        await server.start("127.0.0.1", 0)
        self._port = server._server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        await files.cleanup()

    def __mapping__(self) -> Any:
        base = api_grpc.ModalClientBase
        methods = {name: self._handler(name) for name in base.__abstractmethods__}
        return type("Servicer", (base,), methods)().__mapping__()

    def _handler(self, name: str) -> Any:
        async def handle(_: object, stream: Any) -> None:
            request = await stream.recv_message()
            self.requests.setdefault(name, []).append(request)
            answer = getattr(self, name, None)
            if answer is None:
                raise GRPCError(Status.UNIMPLEMENTED, f"the stand-in has no {name}")
            reply = answer(request)
            if asyncio.iscoroutine(reply):
                reply = await reply
            if isinstance(reply, Message):
                await stream.send_message(reply)

        return handle

    # Methods of Modal's protocol, by their names there.

    def ClientHello(self, request: Any) -> Message:
        return api_pb2.ClientHelloResponse(image_builder_version="2025.06")

    def EnvironmentGetOrCreate(self, request: Any) -> Message:
        settings = api_pb2.EnvironmentSettings(image_builder_version="2025.06")
        metadata = api_pb2.EnvironmentMetadata(name="main", settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    def AppCreate(self, request: Any) -> Message:
        return api_pb2.AppCreateResponse(app_id="ap-1")

    def AppPublish(self, request: Any) -> Message:
        return api_pb2.AppPublishResponse()

    def AppHeartbeat(self, request: Any) -> Message:
        return Empty()

    def AppClientDisconnect(self, request: Any) -> Message:
        return Empty()

    async def AppGetLogs(self, request: Any) -> Message:
        while self._result is None:
            await asyncio.sleep(0.05)
        return api_pb2.TaskLogsBatch(app_done=True)

    def SecretGetOrCreate(self, request: Any) -> Message:
        return api_pb2.SecretGetOrCreateResponse(secret_id="st-1")

    def VolumeGetOrCreate(self, request: Any) -> Message:
        name = request.deployment_name
        (self.root / name).mkdir(exist_ok=True)
        return api_pb2.VolumeGetOrCreateResponse(volume_id=f"vo-{name}", metadata=api_pb2.VolumeMetadata(name=name))

    def MountGetOrCreate(self, request: Any) -> Message:
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex="0")
        return api_pb2.MountGetOrCreateResponse(mount_id="mo-1", handle_metadata=metadata)

    def MountBatchedCheckExistence(self, request: Any) -> Message:
        return api_pb2.MountBatchedCheckExistenceResponse()

    def MountPutFile(self, request: Any) -> Message:
        return api_pb2.MountPutFileResponse(exists=True)

    def ImageGetOrCreate(self, request: Any) -> Message:
        number = len(self.requests["ImageGetOrCreate"])
        return api_pb2.ImageGetOrCreateResponse(image_id=f"im-{number}", result=api_pb2.GenericResult(status=SUCCESS))

    def FunctionPrecreate(self, request: Any) -> Message:
        return api_pb2.FunctionPrecreateResponse(function_id="fu-1")

    def FunctionCreate(self, request: Any) -> Message:
        function = request.function
        metadata = api_pb2.FunctionHandleMetadata(
            function_name=function.function_name,
            function_type=function.function_type,
            supported_input_formats=function.supported_input_formats,
            supported_output_formats=function.supported_output_formats,
        )
        data = request.function_data
        if not data.ranked_functions:
            data.ranked_functions.add(rank=0, function=function)
        return api_pb2.FunctionCreateResponse(function_id="fu-1", handle_metadata=metadata, function_data=data)

    def FunctionMap(self, request: Any) -> Message:
        (positional, _) = pickle.loads(request.pipelined_inputs[0].input.args)
        threading.Thread(target=self._run, args=positional, daemon=True).start()
        item = api_pb2.FunctionPutInputsResponseItem(input_id="in-1")
        return api_pb2.FunctionMapResponse(function_call_id="fc-1", pipelined_inputs=[item])

    def _run(self, job: dict[str, Any]) -> None:
        try:
            data = pickle.dumps(self._work(job))
            self._result = api_pb2.GenericResult(status=SUCCESS, data=data)
        except Exception as error:
            self._result = api_pb2.GenericResult(
                status=FAILURE,
                exception=repr(error),
                traceback=traceback.format_exc(),
                data=pickle.dumps(error),
            )

    async def FunctionGetOutputs(self, request: Any) -> Message:
        deadline = self._loop.time() + request.timeout
        while self._result is None and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
        outputs = []
        if self._result is not None:
            outputs = [api_pb2.FunctionGetOutputsItem(result=self._result, data_format=api_pb2.DATA_FORMAT_PICKLE)]
        return api_pb2.FunctionGetOutputsResponse(outputs=outputs, last_entry_id="1", num_unfinished_inputs=1)

    def VolumeListFiles(self, request: Any) -> Message:
        volume = self.root / request.volume_id.removeprefix("vo-")
        base = volume / request.path.strip("/")
        found = base.rglob("*") if request.recursive else base.iterdir()
        return api_pb2.VolumeListFilesResponse(entries=[_entry(path, volume) for path in found if path.exists()])

    def VolumeGetFile2(self, request: Any) -> Message:
        file = self.root / request.volume_id.removeprefix("vo-") / request.path
        if not file.is_file():
            raise GRPCError(Status.NOT_FOUND, request.path)
        size = file.stat().st_size
        url = f"{self._files}/{file.relative_to(self.root).as_posix()}"
        return api_pb2.VolumeGetFile2Response(get_urls=[url] if size else [], size=size, start=0, len=size)


def _entry(path: Path, volume: Path) -> api_pb2.FileEntry:
    kind = api_pb2.FileEntry.FILE
    if path.is_symlink():
        kind = api_pb2.FileEntry.SYMLINK
    elif path.is_dir():
        kind = api_pb2.FileEntry.DIRECTORY
    status = path.lstat()
    relative = path.relative_to(volume).as_posix()
    return api_pb2.FileEntry(path=relative, type=kind, mtime=int(status.st_mtime), size=status.st_size)

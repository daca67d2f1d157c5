"""The v2 endpoint and /metrics, in a thread of their own. Large, malformed and slow requests get their own status."""

import asyncio
import hmac
import ipaddress
import threading
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from prometheus_client import CollectorRegistry, generate_latest

from hw.serving import open_inference as v2
from hw.serving.batching import Batcher, OverloadedError
from prism.errors import ConfigError, InputError
from prism.labels import mode_label

BODY_S = 10.0  # for a whole body to arrive
HEAD_S = 5.0  # for the first request of a connection to begin
JSON_BYTES = "Inference-Header-Content-Length"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests come in. token: every request must show it; required anywhere but on loopback."""

    address: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    most_bytes: int = 64 << 20

    def check(self) -> None:
        """Raises ConfigError for an address that would be open to anybody."""
        try:
            address = ipaddress.ip_address(self.address)
        except ValueError:
            raise ConfigError(f"address {self.address!r} is no IP address; write one, as in 127.0.0.1") from None
        if address.is_unspecified:
            raise ConfigError(f"address {self.address} is every interface; name one, or 127.0.0.1")
        if not address.is_loopback and not self.token:
            raise ConfigError(
                f"address {self.address} is not loopback, so a token is needed; give one with --token-file"
            )


class Server:
    """The endpoint of one model. Used as a context manager. port: the real one, also where 0 was asked for.

    Raises ConfigError for an address that can't be listened on or would be open to anybody.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        inputs: list[dict[str, Any]],
        batcher: Batcher,
        registry: CollectorRegistry,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        endpoint.check()
        self._endpoint, self._model, self._inputs = endpoint, model, inputs
        self._batcher, self._registry, self._ready = batcher, registry, ready
        self._loop = asyncio.new_event_loop()
        self.port = endpoint.port

    def __enter__(self) -> "Server":
        started, failed = threading.Event(), list[Exception]()

        def body() -> None:
            asyncio.set_event_loop(self._loop)
            try:
                self._loop.run_until_complete(self._start())
            except Exception as error:  # raised again below, in the caller's thread
                failed.append(error)
            started.set()
            if not failed:
                self._loop.run_forever()

        self._thread = threading.Thread(target=body, daemon=True)
        self._thread.start()
        started.wait()
        if failed and isinstance(failed[0], OSError):
            where = f"{self._endpoint.address}:{self._endpoint.port}"
            raise ConfigError(f"{where} can't be listened on ({failed[0].strerror}); choose another with --http")
        if failed:
            raise failed[0]
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._listening.close)
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _start(self) -> None:
        app = web.Application(client_max_size=self._endpoint.most_bytes, middlewares=[self._guard])
        one = "/v2/models/{model}"
        app.add_routes(
            [
                web.get("/v2", self._about),
                web.get("/v2/health/live", self._live),
                web.get("/v2/health/ready", self._live),
                web.get(one, self._metadata),
                web.get(one + "/ready", self._model_ready),
                web.post(one + "/infer", self._infer),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=False)
        await self._runner.setup()
        server: Any = self._runner.server
        listening = await self._loop.create_server(
            lambda: _Patient(server, loop=self._loop), self._endpoint.address, self._endpoint.port
        )
        self.port = listening.sockets[0].getsockname()[1]
        self._listening = listening

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if isinstance(request.protocol, _Patient):
            request.protocol.begun = True
        given = request.headers.get("Authorization", "")
        if self._endpoint.token and not hmac.compare_digest(given.encode(), f"Bearer {self._endpoint.token}".encode()):
            return _error(401, "a token is needed: Authorization: Bearer TOKEN")
        if request.match_info.get("model", self._model) != self._model:
            return _error(404, f"model {request.match_info['model']!r} is not served; {self._model} is")
        try:
            return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            return _error(413, f"the body is larger than {self._endpoint.most_bytes} bytes")
        except web.HTTPException as error:
            return _error(error.status, error.reason)
        except InputError as error:
            return _error(400, str(error))
        except OverloadedError as error:
            return _error(503, str(error))
        except asyncio.TimeoutError:
            return _error(408, f"the body did not arrive within {BODY_S:g} s")

    async def _about(self, _: web.Request) -> web.Response:
        return web.json_response({"name": "prism", "version": "2", "extensions": ["binary_tensor_data"]})

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._ready() else 503)

    async def _model_ready(self, request: web.Request) -> web.Response:
        return await self._live(request)

    async def _metadata(self, _: web.Request) -> web.Response:
        outputs = [{"name": "logits", "datatype": "FP32", "shape": [-1, -1]}]
        inputs = [{key: value for key, value in entry.items() if key != "optional"} for entry in self._inputs]
        return web.json_response(
            {"name": self._model, "versions": ["1"], "platform": "prism_torch", "inputs": inputs, "outputs": outputs}
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _infer(self, request: web.Request) -> web.Response:
        body = await asyncio.wait_for(request.read(), BODY_S)
        given = request.headers.get(JSON_BYTES)
        if given is not None and not given.isdecimal():
            raise InputError(f"{JSON_BYTES} {given!r} is no number of bytes")
        asked, tensors = v2.parse(body, None if given is None else int(given))
        call = v2.checked(tensors, self._inputs)
        answer = await asyncio.wrap_future(self._batcher.submit(call))
        head = {"mode": mode_label(answer.ran), "devices": answer.ran.ranks}
        content, json_bytes = v2.render(self._model, asked, answer.outputs, head)
        if json_bytes is None:
            return web.Response(body=content, content_type="application/json")
        return web.Response(
            body=content, content_type="application/octet-stream", headers={JSON_BYTES: str(json_bytes)}
        )


class _Patient(RequestHandler):
    """A connection whose first request must have begun within HEAD_S, however slowly its head trickles in."""

    begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._late = asyncio.get_running_loop().call_later(HEAD_S, self._give_up)

    def _give_up(self) -> None:
        if self.transport is not None and not self.begun:
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def inputs_of(kind: str, width: tuple[int, ...]) -> list[dict[str, Any]]:
    """List a model's inputs as v2 metadata. kind: "image" or "text". width: channels, height and width of an image."""
    if kind == "image":
        return [{"name": "x", "datatype": "FP32", "shape": [-1, *width]}]
    return [
        {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]},
        {"name": "attention_mask", "datatype": "INT64", "shape": [-1, -1], "optional": True},
    ]

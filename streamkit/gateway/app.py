"""From a request to a response: what every service behind the listener has in common.

    preflight ─ method ─ body there? ─ format ─ body parses? ─ operation known? ─ signed? ─ allowed? ─ types ─
    constraints ─ the operation ─ reply

Each step answers for itself when it fails, in this order (clients and their tests look at it), in the format of the
request where one is known. Raw operations (puts) parse their body themselves; for them this is all the overhead.
Read `Gateway.handle`.
"""

from __future__ import annotations

import logging
import zlib
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from streamkit.errors import StreamkitError
from streamkit.gateway import errors
from streamkit.gateway.calls import Answer, Call, Caller, Operation, Reply, Service
from streamkit.gateway.errors import ApiError
from streamkit.gateway.query import Query, action_of
from streamkit.gateway.shapes import Structure
from streamkit.gateway.validation import checked
from streamkit.gateway.wire import CBOR, JSON, JSON_1_0, RPC_CBOR, Format
from streamkit.http.exchange import Request, Response
from streamkit.runtime.interfaces import Clock, Random
from streamkit.security.credentials import Authenticator
from streamkit.security.sigv4 import Refused

logger = logging.getLogger("streamkit.gateway")

BODY_BYTES_MAX = 16 << 20              # inflated
UNSIGNED_BYTES_MAX = 64 << 10          # of a body that is parsed although nobody has signed it
FORMATS: Mapping[str, Format] = {
    "application/x-amz-json-1.1": JSON, "application/x-amz-json-1.0": JSON_1_0, "application/x-amz-cbor-1.1": CBOR,
}  # fmt: skip
OLD_JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
RPC_PATH = "/service/"
EXPOSED = "x-amzn-RequestId,x-amzn-ErrorType,x-amz-request-id,x-amz-id-2,x-amzn-ErrorMessage,Date"
UNDETERMINED = "Unable to determine the service or the operation that is asked for."
RANDOM_BITS = 128 + 72 * 8
Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of one service, as it is looked up for each request."""

    service: Service
    name: str
    operation: Operation
    raw: bool
    access: str
    json_errors: bool

    @property
    def input(self) -> Structure:
        return self.service.model.input(self.name)


class Observer(Protocol):
    """Told of each answered call, for counters and traces."""

    def answered(self, operation: str, status: int, error: str, elapsed_ms: int) -> None: ...


@dataclass(slots=True)
class Exchange:
    """What is known of a request so far; an error is answered with whatever that is."""

    request: Request
    request_id: str
    headers: Headers
    format: Format = JSON
    route: Route | None = None


class Gateway:
    """Serves any number of services on one listener. services: their targets differ."""

    def __init__(
        self, services: Iterable[Service], authenticator: Authenticator, clock: Clock, random: Random,
        observer: Observer | None = None,
    ) -> None:  # fmt: skip
        self._authenticator = authenticator
        self._clock = clock
        self._random = random
        self._observer = observer
        self._routes: dict[str, Route] = {}
        self._rpc: dict[str, Route] = {}
        self._actions: dict[str, tuple[Route, Format]] = {}
        for service in services:
            self._add(service)

    def _add(self, service: Service) -> None:
        for name, operation in service.operations.items():
            assert name in service.model.operations, f"{service.target} has no operation {name}"
            route = Route(
                service, name, operation, name in service.raw, service.access_of(name), name in service.json_errors
            )
            target = f"{service.target}.{name}"
            assert target not in self._routes, f"{target} is served twice"
            self._routes[target] = route
            if service.rpc:
                self._rpc[f"{RPC_PATH}{service.target}/operation/{name}"] = route
            if service.query_namespace:
                self._actions[name] = route, Query(service.query_namespace)

    async def handle(self, request: Request) -> Response:
        """The listener's handler. Raises nothing but a cancellation."""
        bits = self._random.bits(RANDOM_BITS).to_bytes(RANDOM_BITS // 8)
        digits = bits[:16].hex()
        request_id = f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
        headers = [("x-amzn-requestid", request_id)]
        origin = "origin" in request.headers
        if origin and request.method == "OPTIONS":
            return preflight(request, headers)
        headers.append(("x-amz-id-2", b64encode(bits[16:]).decode("ascii")))
        if origin:
            headers += [("access-control-allow-origin", "*"), ("access-control-expose-headers", EXPOSED)]
        exchange = Exchange(request, request_id, headers)
        if self._observer is None:
            return await self._answered(exchange)
        began = self._clock.monotonic_ms()
        response = await self._answered(exchange)
        error = next((value for name, value in response.headers if name == "x-amzn-errortype"), "")
        name = exchange.route.name if exchange.route is not None else ""
        self._observer.answered(name, response.status, error, self._clock.monotonic_ms() - began)
        return response

    async def _answered(self, exchange: Exchange) -> Response:
        try:
            return await self._call(exchange)
        except ApiError as error:
            return failed(exchange, error)
        except Refused as refused:
            return failed(exchange, ApiError(refused.name, refused.message))
        except OtherWay as other:
            return other.response
        except StreamkitError as error:
            mapped = errors.from_streamkit(error)
            if mapped is None:
                logger.exception("request %s failed", exchange.request_id)
            return failed(exchange, mapped or errors.internal_failure())
        except Exception:
            logger.exception("request %s failed", exchange.request_id)
            return failed(exchange, errors.internal_failure())

    async def _call(self, exchange: Exchange) -> Response:
        request = exchange.request
        route = self._find(exchange)
        caller, refused = None, None
        try:
            caller = self._verified(request, route)
        except (Refused, ApiError) as error:
            # A body that does not parse is told before a signature that is wrong; but nobody without a key makes
            # this process inflate or parse much.
            if route.raw or len(request.body) > UNSIGNED_BYTES_MAX or "content-encoding" in request.headers:
                raise
            refused = error
        body = request.body if "content-encoding" not in request.headers else inflated(request)
        value = None
        if not route.raw:
            if len(body) > route.service.body_bytes_max:
                raise OtherWay(Response(413, tuple(exchange.headers)))
            value = exchange.format.decode(body, route.input)
            if type(value) is not dict:
                raise errors.serialization()
        if caller is None:
            assert refused is not None
            raise refused
        params = checked(route.input, value, exchange.format) if value is not None else {}
        call = Call(route.name, params, caller, request, exchange.format.cbor, exchange.request_id, body)
        return succeeded(exchange, route, await route.operation(call))

    def _find(self, exchange: Exchange) -> Route:
        """The operation, and into `exchange` the format. Raises ApiError, or OtherWay for what has no format."""
        request = exchange.request
        if request.method != "POST":
            raise OtherWay(xml(403, exchange.headers, "AccessDeniedException", UNDETERMINED))
        given = request.headers.get("content-type", "")
        found = FORMATS.get(given) or FORMATS.get(media_type(given))
        target = request.headers.get("x-amz-target")
        if found is None and target is None and (other := self._other(request, media_type(given))) is not None:
            exchange.route, exchange.format = other
            return other[0]
        route = self._routes.get(target) if target is not None else None
        exchange.route = route
        if not request.body:
            exchange.format = found if found in (JSON, JSON_1_0) else CBOR
            raise errors.serialization() if route is not None else errors.unknown_operation()
        if found is None:
            raise OtherWay(self._unformed(exchange, media_type(given), target))
        exchange.format = found
        if route is None:
            # The body comes first: one that does not parse is told before an operation that does not exist.
            if len(request.body) <= UNSIGNED_BYTES_MAX and type(found.decode(request.body, NOTHING)) is not dict:
                raise errors.serialization()
            raise errors.unknown_operation()
        return route

    def _other(self, request: Request, media: str) -> tuple[Route, Format] | None:
        """What names its operation in the path, or in a form."""
        if request.path.startswith(RPC_PATH) and request.headers.get("smithy-protocol") == "rpc-v2-cbor":
            route = self._rpc.get(request.path)
            return (route, RPC_CBOR) if route is not None else None
        if media == FORM and self._actions:
            body = request.body if "content-encoding" not in request.headers else inflated(request)
            return self._actions.get(action_of(body))
        return None

    def _unformed(self, exchange: Exchange, media: str, target: str | None) -> Response:
        """The answer to a body of unknown type."""
        if media == OLD_JSON and target is not None:
            return envelope(exchange)
        if target is not None:
            return xml(404, exchange.headers, "UnknownOperationException")
        return xml(403, exchange.headers, "AccessDeniedException", UNDETERMINED)

    def _verified(self, request: Request, route: Route) -> Caller:
        """Raises Refused for a signature, ApiError (AccessDeniedException) for want of permission."""
        identity = self._authenticator.authenticate(request, route.service.signing_name, self._clock.now_ms())
        if route.access not in identity.permissions:
            raise errors.access_denied(
                f"The key {identity.key_id} is not allowed to {route.name}: it lacks the permission '{route.access}'."
            )
        return Caller(identity.account, identity.region, identity.key_id)


NOTHING = Structure("Nothing")


class OtherWay(Exception):
    """Carries an answer that has no format of the API."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


# -- requests --------------------------------------------------------------------------------------------------------


def media_type(content_type: str) -> str:
    """Without parameters and blanks, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def inflated(request: Request) -> bytes:
    """The body as it was before `Content-Encoding: gzip`. Raises ApiError (SerializationException)."""
    coding = request.headers["content-encoding"].strip().lower()
    if coding in ("", "identity") or not request.body:
        return request.body
    if coding not in ("gzip", "x-gzip"):
        raise errors.serialization(f"The content encoding '{coding[:64]}' is not known here.")
    inflater = zlib.decompressobj(wbits=31)
    try:
        body = inflater.decompress(request.body, BODY_BYTES_MAX)
    except zlib.error:
        raise errors.serialization("The body does not inflate.") from None
    if not inflater.eof or inflater.unused_data:
        raise errors.serialization("The body does not inflate, or to too much.")
    return body


# -- responses -------------------------------------------------------------------------------------------------------


def succeeded(exchange: Exchange, route: Route, answer: Answer) -> Response:
    if type(answer) is Reply:
        body: bytes | memoryview = answer.body
    elif isinstance(answer, Response):
        answer.headers = (*exchange.headers, *answer.headers)
        return answer
    else:
        assert answer is None or isinstance(answer, dict)
        body = exchange.format.encode(route.name, route.service.model.output(route.name), answer, exchange.request_id)
    headers = exchange.headers
    headers.append(("content-type", exchange.format.content_type))
    if exchange.format is RPC_CBOR:
        headers.append(("smithy-protocol", "rpc-v2-cbor"))
    return Response(200, tuple(headers), body)


def failed(exchange: Exchange, error: ApiError) -> Response:
    format = exchange.format
    if exchange.route is not None and exchange.route.json_errors and format is CBOR:
        format = JSON
    headers = [
        *exchange.headers, ("x-amzn-errortype", error.name), ("content-type", format.content_type),
        *([("smithy-protocol", "rpc-v2-cbor")] if format is RPC_CBOR else []),
    ]  # fmt: skip
    return Response(error.status, tuple(headers), format.encode_error(error, exchange.request_id))


def preflight(request: Request, headers: Headers) -> Response:
    """Whatever a page in a browser asks whether it may send, it may."""
    asked = request.headers
    headers += [("access-control-allow-origin", "*"), ("access-control-max-age", "172800")]
    for what in ("headers", "methods"):
        name = f"access-control-request-{what if what == 'headers' else 'method'}"
        if name in asked:
            headers.append((f"access-control-allow-{what}", asked[name]))
    return Response(200, tuple(headers))


def xml(status: int, headers: Headers, name: str, message: str | None = None) -> Response:
    """For requests that do not say what they want."""
    if message is None:
        return Response(status, tuple(headers), f"<{name}/>\n".encode())
    return Response(status, tuple(headers), f"<{name}>\n  <Message>{message}</Message>\n</{name}>\n".encode())


def envelope(exchange: Exchange) -> Response:
    """The answer to an old form of the API, which is spoken here no more."""
    try:
        JSON.decode(exchange.request.body, NOTHING)
        name, status = "UnknownOperationException", 404
    except ApiError:
        name, status = "SerializationException", 400
    body = f'{{"Output":{{"__type":"com.amazon.coral.service#{name}"}},"Version":"1.0"}}'
    return Response(status, (*exchange.headers, ("content-type", OLD_JSON)), body.encode())

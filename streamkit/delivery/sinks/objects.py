"""Object stores: S3 and whatever else obstore speaks."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any, Literal

from streamkit.delivery.chunk import Chunk
from streamkit.delivery.names import Template
from streamkit.errors import InvalidUse, SinkMisused
from streamkit.runtime.libraries import library

_PLAN, _HASH = "streamkit-plan", "streamkit-sha256"
_DEFAULT_NAMES = "{arrived:%Y/%m/%d/%H}/"
_PARTS_BYTES = 16 << 20                    # larger bodies travel in parts


class ObjectSink:
    """An object for each chunk below a URL: s3://bucket/orders/{arrived:%Y/%m/%d}/, gs://, az://, memory://.

    What comes after the bucket is a template of names. Further settings are obstore's: endpoint, region,
    access_key_id, secret_access_key, allow_http, virtual_hosted_style_request …; what is left out is found as every
    AWS tool finds it. overwrite: for stores that ignore conditions; else an object is made only where none is.
    Raises InvalidUse, MissingLibrary.
    """

    takes: Literal["body"] = "body"

    def __init__(self, url: str, *, zone: str = "UTC", overwrite: bool = False, **settings: Any) -> None:
        scheme, found, rest = url.partition("://")
        bucket, _, names = rest.partition("/")
        if not found or not (bucket or scheme == "memory"):
            raise InvalidUse(f"{url!r} names no bucket", try_="s3://bucket/orders/{arrived:%Y/%m/%d}/", argument="url")
        self.template = Template(names or _DEFAULT_NAMES, zone=zone)
        self._bucket = f"{scheme}://{bucket}"
        self._overwrite = overwrite
        # The delivery tries again by itself, and shows why: a library that waits for minutes would hide it.
        settings.setdefault("retry_config", {"max_retries": 1, "retry_timeout": timedelta(seconds=10)})
        self._store = _store(self._bucket, settings)

    async def open(self) -> None:
        """Connections are made as they are needed."""

    async def write(self, chunk: Chunk) -> None:
        """Raises SinkMisused for what only a person can put right, else what obstore raises."""
        obstore = library("obstore", "s3")
        exceptions = library("obstore.exceptions", "s3")
        attributes = {"Content-Type": chunk.content_type, _PLAN: chunk.plan,
                      _HASH: hashlib.sha256(chunk.body).hexdigest()}  # fmt: skip
        if chunk.content_encoding:
            attributes["Content-Encoding"] = chunk.content_encoding
        try:
            await obstore.put_async(
                self._store, chunk.name, chunk.body, attributes=attributes,
                mode="overwrite" if self._overwrite else "create",
                use_multipart=self._overwrite and len(chunk.body) > _PARTS_BYTES,
            )  # fmt: skip
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            await self._look(chunk, error)
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError,
                exceptions.InvalidPathError, exceptions.NotSupportedError, FileNotFoundError) as error:  # fmt: skip
            raise SinkMisused(f"{self._bucket} refuses {chunk.name}: {_first_line(error)}",
                              try_="look at the bucket, its region and the rights of these credentials",
                              sink="objects", told=type(error).__name__) from error  # fmt: skip

    async def delete(self, name: str) -> None:
        """Nothing happens when there is none."""
        obstore = library("obstore", "s3")
        try:
            await obstore.delete_async(self._store, name)
        except FileNotFoundError:
            return

    async def close(self) -> None:
        """obstore closes what it opened."""

    async def _look(self, chunk: Chunk, refusal: Exception) -> None:
        """Somebody wrote an object of that name. Of the same plan, the work is done."""
        obstore = library("obstore", "s3")
        found = (await obstore.get_async(self._store, chunk.name)).attributes
        if found.get(_PLAN) != chunk.plan:
            raise SinkMisused(f"{self._bucket}/{chunk.name} is there already, and is another's",
                              try_="move it away, or change the template of names", sink="objects",
                              told=_first_line(refusal)) from refusal  # fmt: skip


def _store(bucket: str, settings: dict[str, Any]) -> Any:
    stores = library("obstore.store", "s3")
    try:
        return stores.from_url(bucket, **settings)
    except Exception as cause:             # obstore's own errors have no common base that is told apart
        raise InvalidUse(f"{bucket}: {_first_line(cause)}", try_="look at the settings' names in obstore's guide",
                         argument="url") from cause


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:500]


S3Sink = ObjectSink                        # as most call it

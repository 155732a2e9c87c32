"""Downloads of images: http and https only, announced, with limits on size and time."""

from __future__ import annotations

import io
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urljoin, urlsplit

from convnext.data.images import BadImage
from convnext.names import printable

Notice = Callable[[str], None]
# A slow download is given up after this many times the timeout.
PATIENCE = 10
CHUNK = 64 * 2**10


def to_stderr(line: str) -> None:
    """Print a line on standard error."""
    print(printable(line), file=sys.stderr, flush=True)


def is_url(name: object) -> bool:
    """Whether a name begins with a scheme and "://"; a Windows drive does not count."""
    return isinstance(name, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name) is not None


@dataclass(frozen=True, kw_only=True)
class Download:
    """Limits on downloads."""

    notice: Notice = to_stderr
    max_bytes: int = 64 * 2**20
    timeout: float = 30.0
    """Seconds that a server may be silent; a download may take `PATIENCE` times as long."""

    def check(self, url: str) -> None:
        """Refuse a bad URL before anything else runs.

        Raises:
            ValueError: If it is not http or https, or holds a password.
        """
        parts = urlsplit(url)
        if parts.scheme.lower() not in ("http", "https"):
            hint = "; pass the path instead" if parts.scheme.lower() == "file" else ""
            raise ValueError(f"{url}: images are fetched over http and https only{hint}")
        if not parts.hostname:
            raise ValueError(f"{url} names no server")
        if "@" in parts.netloc:
            shown = url.replace(parts.netloc, parts.netloc.rpartition("@")[2])
            raise ValueError(f"{shown}: a URL with a user name or password is not fetched")

    def fetch(self, url: str) -> bytes:
        """Return the content of a URL.

        Raises:
            BadImage: If it cannot be fetched within the limits; the message says why.
        """
        self.check(url)
        self.notice(f"fetching {url}")
        end = time.monotonic() + PATIENCE * self.timeout
        request = urllib.request.Request(
            url, headers={"User-Agent": "convnext", "Accept": "image/*"}
        )
        try:
            with _opener(end).open(request, timeout=self.timeout) as response:
                return self._read(url, response)
        except urllib.error.HTTPError as error:
            with error:
                raise BadImage(url, f"the server answered {error.code} {error.reason}") from error
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, BadImage):
                raise
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, _TooLongError):
                seconds = PATIENCE * self.timeout
                raise BadImage(url, f"it took longer than {seconds:g} seconds") from error
            if isinstance(cause, TimeoutError):
                raise BadImage(
                    url, f"the server was silent for {self.timeout:g} seconds"
                ) from error
            raise BadImage(url, f"it cannot be fetched ({cause})") from error

    def _read(self, url: str, response: Any) -> bytes:
        limit = f"more than {self.max_bytes / 2**20:,.4g} MB are refused"
        declared = response.headers.get("Content-Length", "")
        if declared.isdigit() and int(declared) > self.max_bytes:
            raise BadImage(url, f"it has {int(declared) / 2**20:,.4g} MB; {limit}")
        content = bytearray()
        while chunk := response.read1(CHUNK):
            content += chunk
            if len(content) > self.max_bytes:
                raise BadImage(url, f"it is too large; {limit}")
        if declared.isdigit() and len(content) < int(declared):
            raise BadImage(url, f"the server sent {len(content):,} of {int(declared):,} bytes")
        return bytes(content)


class _TooLongError(TimeoutError):
    """The download has taken longer than all of it may."""


class _Timed(io.RawIOBase):
    """Bytes from a socket until a time: headers may drip as slowly as content."""

    def __init__(self, raw: io.RawIOBase, end: float) -> None:
        self._raw, self._end = raw, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._end:
            raise _TooLongError
        return cast("int | None", self._raw.readinto(buffer))

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: Any, *args: Any, end: float, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Timed(cast(Any, self.fp).detach(), end))


class _Connections(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections over http and https from which nothing is read after a time."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self._end = end

    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        def connect(host: str, **given: Any) -> Any:
            connection = http_class(host, **given)
            connection.response_class = partial(_Response, end=self._end)
            return connection

        return super().do_open(cast(Any, connect), req, **options)


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, and to nothing else."""

    def http_error_302(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
    ) -> Any:
        target = headers.get("location", "")
        if urlsplit(urljoin(req.full_url, target)).scheme.lower() not in ("http", "https"):
            fp.close()
            raise BadImage(req.full_url, f"it redirects to {target}, which is not http or https")
        return super().http_error_302(req, fp, code, msg, headers)

    # The base class also has one function under these names.
    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener(end: float) -> urllib.request.OpenerDirector:
    """Return an opener without urllib's default handlers of files, ftp and data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Connections(end),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _WebOnly(),
    ):
        opener.add_handler(handler)
    return opener


def file_name(url: str) -> str:
    """Return the last part of a URL's path without its extension, or "image" if it is empty."""
    return Path(urlsplit(url).path).stem or "image"

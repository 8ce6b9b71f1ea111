"""Gets an exporter's page: over HTTP within a time and a size, or from a file where a host has no network for it."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from urllib.parse import urlsplit

SECONDS = 5.0
LARGEST = 4 << 20  # bytes of a page


async def get(source: str) -> str:
    """The page's text. Raises OSError (TimeoutError among them) or ValueError, with what is wrong as its text."""
    if "://" not in source:
        path = Path(source)
        if (size := path.stat().st_size) > LARGEST:
            raise ValueError(f"{size} bytes, at most {LARGEST} are read")
        return path.read_text("utf-8", "replace")
    try:
        async with asyncio.timeout(SECONDS):
            return await _get(source)
    except TimeoutError:
        raise TimeoutError(f"no answer within {SECONDS:g} s") from None


async def _get(source: str) -> str:
    """HTTP/1.0, so that the answer is not cut into chunks and ends with the connection. Nobody is redirected."""
    where = urlsplit(source)
    secure = ssl.create_default_context() if where.scheme == "https" else None
    port = where.port or (443 if secure else 80)
    reader, writer = await asyncio.open_connection(where.hostname, port, ssl=secure, limit=1 << 16)
    try:
        target = (where.path or "/") + (f"?{where.query}" if where.query else "")
        writer.write(f"GET {target} HTTP/1.0\r\nHost: {where.netloc}\r\nAccept: text/plain\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if status.split(" ")[1:2] != ["200"]:
            raise ValueError(f"answered {status[:80]!r}")
        body = bytearray()
        while part := await reader.read(1 << 16):
            body += part
            if len(body) > LARGEST:
                raise ValueError(f"more than {LARGEST} bytes")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise ValueError("what it answered is no HTTP") from error
    finally:
        writer.close()
    return body.decode("utf-8", "replace")

"""Files of data sets: found on this machine, read and checked, or downloaded; one sentence for each
thing that can be wrong.

A copy whose checksum is known is verified whenever it is read. Downloads are held in memory until
they are verified, and written whole.
"""

import codecs
import errno
import hashlib
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from imm_lib import folders

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the disk is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",  # what mkdir says of it
    errno.EISDIR: "it is a folder",
}


class DataError(RuntimeError):
    """A data set cannot be had, or is not what it should be; the message says what to do."""


def _reason(error: OSError) -> str:
    return _REASONS.get(error.errno or 0, error.strerror or type(error).__name__)


def find(name: str) -> Path | None:
    """The first file of that name, as "ptb/ptb.train.txt", in :func:`imm_lib.folders.sources`, None
    where there is none; raises DataError for what is no file, or cannot be looked at.
    """
    for folder in folders.sources():
        path = folder / name
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            if path.is_symlink():
                raise DataError(f"{path} is a link to a file that is not there") from None
            continue
        except OSError as error:
            raise DataError(f"{path} cannot be read: {_reason(error)}") from None
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise DataError(f"{path} must be a file, and is {kind}")
        return path
    return None


def present(name: str) -> bool:
    """Whether a file of that name lies on this machine; raises nothing on account of the disk."""
    return any(os.path.isfile(folder / name) for folder in folders.sources())


def read_text(path: Path, what: str, sha256: str | None = None, mark: bool = False) -> str:
    """The text of a UTF-8 file, which a message calls ``what``; a byte order mark, if it may have
    one, is left out. Raises DataError where it cannot be read, is empty or no UTF-8, has a NUL
    byte, or another checksum than a known one.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{what} cannot be read: {_reason(error)} ({path})") from None
    wrong = sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256
    marked = raw.startswith(codecs.BOM_UTF8)
    fault = _fault(raw)
    if not fault and marked and (wrong or not mark):
        fault = "begins with a byte order mark"
    if not fault and wrong:
        fault = "has Windows line ends" if b"\r\n" in raw else "has a wrong checksum"
    if fault:
        raise DataError(f"{what} {fault}: copy it anew, or delete it to download it ({path})")
    return raw[len(codecs.BOM_UTF8) * marked :].decode()


def _fault(raw: bytes) -> str:
    """Why these bytes are no UTF-8 text; empty where they are."""
    if not raw:
        return "is empty"
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "is UTF-16 text, and must be UTF-8"
    if (place := raw.find(b"\0")) >= 0:
        return f"has a NUL byte in line {_line(raw, place)}, and must be UTF-8 text"
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        place = error.start
        return f"has the byte 0x{raw[place]:02x} in line {_line(raw, place)}, and must be UTF-8"
    return ""


def _line(raw: bytes, place: int) -> int:
    return raw.count(b"\n", 0, place) + 1


def download(what: str, url: str, sha256: str | None, advice: str) -> bytes:
    """What an address holds, with a progress bar, verified where its checksum is known.

    A message calls it ``what`` and ends in ``advice``, on what else can be done. Raises DataError
    where a package is missing, the download failed, or the checksum is wrong.
    """
    try:
        import pooch
        import requests
        import tqdm  # noqa: F401 - pooch draws its progress bar with it
    except ImportError as error:
        raise DataError(
            f"downloading {what} needs {error.name}: pip install 'imm_lib[data]', or {advice}"
        ) from error
    content = io.BytesIO()
    # some hosts refuse callers without a name of their own
    fetch = pooch.HTTPDownloader(progressbar=True, headers={"User-Agent": "imm_lib"})
    try:
        fetch(url, content, None)
    except (requests.RequestException, OSError) as error:
        raise DataError(
            f"{what} could not be downloaded: {_cause(error, url)}; try again, or {advice}"
        ) from error
    if sha256 is not None:
        verify(content.getvalue(), sha256, what, advice)
    return content.getvalue()


def verify(content: bytes, sha256: str, what: str, advice: str) -> None:
    """Raise DataError where what was downloaded has another checksum."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(
            f"{what} came with a wrong checksum and was not kept: try again, or {advice}"
        )


def _cause(error: Exception, url: str) -> str:
    """Why a download failed, in words."""
    from requests import exceptions

    host = urlsplit(url).netloc
    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        return f"{host} answered {error.response.status_code} {error.response.reason}"
    for kind, words in (
        (exceptions.Timeout, f"{host} did not answer in time"),
        (exceptions.SSLError, f"the certificate of {host} could not be verified"),
        (exceptions.ProxyError, f"the proxy did not lead to {host}"),
        (exceptions.ConnectionError, f"no connection to {host}"),
        (exceptions.ChunkedEncodingError, f"{host} broke off"),
        (exceptions.ContentDecodingError, f"{host} sent what cannot be unpacked"),
    ):
        if isinstance(error, kind):
            return words
    return f"{type(error).__name__}: {error}"


def unpack(archive: bytes, members: Iterable[str], what: str, advice: str) -> list[bytes]:
    """Members of a zip archive; raises DataError where it is none, lacks one or is encrypted."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as files:
            return [files.read(member) for member in members]
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError) as error:
        raise DataError(f"{what} is not what it was: {error}; {advice}") from None


@contextmanager
def keeping(folder: Path, what: str) -> Iterator[None]:
    """Write below a folder of the cache, which is made; raises DataError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            f"{what} cannot be kept in {folder}: {_reason(error)}; set IMM_CACHE to another folder"
        ) from error

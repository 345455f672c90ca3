"""Files of data sets: one sentence for each thing that can be wrong with a folder, a file or a
download.
"""

import errno
import hashlib
import os
import pwd
import sys
import zipfile
from io import BytesIO

import pytest
import requests
from loopback import serving

from imm_lib import files, folders
from imm_lib.files import DataError

TEXT = "a b\nc\n"
KNOWN = hashlib.sha256(TEXT.encode()).hexdigest()


@pytest.fixture
def places(monkeypatch, tmp_path):
    """Empty folders of copies and of downloads."""
    monkeypatch.setenv("IMM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("IMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.fixture
def homeless(monkeypatch):
    """A user without HOME and without an entry in the user database, as in many containers."""

    def unknown(*_):
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "IMM_CACHE", "IMM_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


# folders


@pytest.mark.parametrize("variable", ["IMM_DATA", "IMM_CACHE", "IMM_RESULTS", "XDG_CACHE_HOME"])
def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path, variable):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~/there")
    assert folders.named(variable) == tmp_path / "there"
    monkeypatch.setenv(variable, "~nobody-of-this-name/there")
    with pytest.raises(ValueError, match=f"{variable} must name a folder, got '~nobody-of-this"):
        folders.named(variable)
    for empty in (lambda: monkeypatch.setenv(variable, ""), lambda: monkeypatch.delenv(variable)):
        empty()
        assert folders.named(variable) is None


def test_the_cache_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.delenv("IMM_CACHE", raising=False)
    monkeypatch.delenv("IMM_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert folders.sources() == [tmp_path / ".cache" / "imm_lib"]
    monkeypatch.setenv("XDG_CACHE_HOME", "~/other")
    assert folders.cache() == tmp_path / "other" / "imm_lib"


def test_without_a_home_copies_are_read_and_the_cache_says_what_is_missing(
    homeless, monkeypatch, tmp_path
):
    with pytest.raises(ValueError, match="IMM_CACHE must name a folder: this user has no home"):
        folders.cache()
    assert folders.sources() == [] and files.find("a") is None
    monkeypatch.setenv("IMM_DATA", str(tmp_path))
    path = tmp_path / "a.txt"
    path.write_text(TEXT, encoding="utf-8")
    assert files.present("a.txt") and files.find("a.txt") == path
    assert files.read_text(path, "a.txt", KNOWN) == TEXT
    monkeypatch.setenv("IMM_DATA", "~/data")
    with pytest.raises(ValueError, match="IMM_DATA must name a folder, got '~/data'"):
        files.find("a.txt")


# finding


def test_what_is_no_file_is_not_passed_over(places):
    assert files.find("ptb/a.txt") is None and not files.present("ptb/a.txt")
    (places / "data" / "ptb" / "a.txt").mkdir(parents=True)
    (places / "data" / "ptb" / "b.txt").symlink_to("gone")
    (places / "data" / "ptb" / "c.txt").symlink_to("c.txt")
    os.mkfifo(places / "data" / "ptb" / "d.txt")
    (places / "data" / "wikitext2").touch()
    for name, words in {
        "ptb/a.txt": "must be a file, and is a folder",
        "ptb/b.txt": "is a link to a file that is not there",
        "ptb/c.txt": "cannot be read: Too many levels of symbolic links",
        "ptb/d.txt": "must be a file, and is no regular file",
        "wikitext2/a.txt": "cannot be read: a part of the path is a file, not a folder",
    }.items():
        with pytest.raises(DataError, match=f"{name} {words}"):
            files.find(name)
        assert not files.present(name)


# reading


def put(places, content: bytes):
    path = places / "data" / "a.txt"
    path.write_bytes(content)
    return path


FAULTS = {
    b"": "is empty",
    TEXT.encode("utf-16"): "is UTF-16 text, and must be UTF-8",
    b"\xfe\xff" + TEXT.encode("utf-16-be"): "is UTF-16 text, and must be UTF-8",
    TEXT.encode("utf-16-le"): "has a NUL byte in line 1",
    b"a b\nc\0\n": "has a NUL byte in line 2",
    TEXT.encode("utf-32"): "is UTF-16 text|has a NUL byte",
    "a b\nc\ncafé\n".encode("latin-1"): "has the byte 0xe9 in line 3, and must be UTF-8",
    TEXT.encode()[:3] + b"\xe2\x82": "has the byte 0xe2 in line 1",  # cut within a character
    TEXT.encode("utf-8-sig"): "begins with a byte order mark",
}


@pytest.mark.parametrize("known", [None, KNOWN])
@pytest.mark.parametrize(("content", "words"), FAULTS.items(), ids=FAULTS.values())
def test_a_file_that_is_no_text_says_what_it_is(places, content, words, known):
    path = put(places, content)
    with pytest.raises(DataError, match=f"^a.txt of it ({words}).*{path}"):
        files.read_text(path, "a.txt of it", known)


def test_a_known_file_is_held_to_its_checksum(places):
    for content, words in {
        TEXT.encode()[:-1]: "has a wrong checksum",
        TEXT.encode() * 2: "has a wrong checksum",
        TEXT.replace("\n", "\r\n").encode(): "has Windows line ends",
    }.items():
        path = put(places, content)
        with pytest.raises(DataError, match=f"a.txt of it {words}: copy it anew, or delete it"):
            files.read_text(path, "a.txt of it", KNOWN)
        assert files.read_text(path, "a.txt of it") == content.decode()
    assert not (places / "cache").exists()


def test_a_byte_order_mark_is_left_out_where_it_may_be(places):
    path = put(places, TEXT.encode("utf-8-sig"))
    assert files.read_text(path, "it", mark=True) == TEXT
    marked = hashlib.sha256(path.read_bytes()).hexdigest()
    assert files.read_text(path, "it", marked, mark=True) == TEXT
    with pytest.raises(DataError, match="begins with a byte order mark"):
        files.read_text(path, "it", KNOWN, mark=True)


def test_a_copy_is_verified_whenever_it_is_read(places):
    path = put(places, TEXT.encode())
    assert files.read_text(path, "it", KNOWN) == TEXT
    before = path.stat()
    path.write_text(TEXT.replace("c", "d"), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copying tool may set it
    with pytest.raises(DataError, match="it has a wrong checksum"):
        files.read_text(path, "it", KNOWN)


def test_a_cache_that_cannot_be_written_does_no_harm(places):
    (places / "cache").touch()
    assert files.read_text(put(places, TEXT.encode()), "it", KNOWN) == TEXT
    assert (places / "cache").read_bytes() == b""


def test_a_file_that_may_not_be_read(places, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    path = put(places, TEXT.encode())
    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(DataError, match="it cannot be read: permission denied"):
        files.read_text(path, "it")


# downloading


def test_a_download_is_what_lies_there(places):
    with serving({"/a": b"\0\xff" * 5000}) as address:
        assert files.download("it", f"{address}/a", None, "wait") == b"\0\xff" * 5000
        digest = hashlib.sha256(b"\0\xff" * 5000).hexdigest()
        assert len(files.download("it", f"{address}/a", digest, "wait")) == 10_000
        with pytest.raises(DataError, match="it came with a wrong checksum and was not kept"):
            files.download("it", f"{address}/a", KNOWN, "wait")
    assert not (places / "cache").exists()


def test_each_cause_of_a_failed_download_has_its_sentence(places, monkeypatch):
    def causes(url, words):
        with pytest.raises(DataError, match=rf"it could not be downloaded: {words}.*or wait$"):
            files.download("it", url, None, "wait")

    with serving({"/a": b"content"}, cut=3) as address:
        host = address.removeprefix("http://")
        causes(f"{address}/b", f"{host} answered 404 Not Found")
        causes(f"{address}/a", f"{host} broke off")
    causes(f"{address}/a", f"no connection to {host}")
    causes("ptb.train.txt", "MissingSchema")  # a ValueError as well
    for kind, words in {
        requests.exceptions.ConnectTimeout: "example.org did not answer in time",
        requests.exceptions.ReadTimeout: "example.org did not answer in time",
        requests.exceptions.SSLError: "the certificate of example.org could not be verified",
        requests.exceptions.ProxyError: "the proxy did not lead to example.org",
        requests.exceptions.ContentDecodingError: "example.org sent what cannot be unpacked",
        requests.exceptions.JSONDecodeError: "JSONDecodeError",
        ConnectionResetError: "ConnectionResetError",
    }.items():

        def fail(*_, kind=kind, **__):
            raise kind("x", "", 0)

        monkeypatch.setattr(requests, "get", fail)
        causes("https://example.org/a", words)


@pytest.mark.parametrize("package", ["pooch", "requests", "tqdm"])
def test_a_download_says_which_package_it_misses(places, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        DataError, match=rf"it needs {package}: pip install 'imm_lib\[data\]', or wait"
    ):
        files.download("it", "http://127.0.0.1/a", None, "wait")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_what_cannot_be_kept_says_why(places, number, words):
    folder = places / "cache" / "ptb"
    with (
        pytest.raises(DataError, match=rf"ptb cannot be kept in {folder}: {words}; set IMM_CACHE"),
        files.keeping(folder, "ptb"),
    ):
        raise OSError(number, os.strerror(number))


def test_a_cache_that_is_a_file_is_found_before_the_download(places):
    (places / "cache").touch()
    with (
        pytest.raises(
            DataError, match=r"ptb cannot be kept in .*ptb: a part of the path is a file"
        ),
        files.keeping(places / "cache" / "ptb", "ptb"),
    ):
        pytest.fail("not to be reached")


def test_an_archive_that_is_none_says_so():
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", "content " * 100)
        archive.writestr("b", "")
    whole = packed.getvalue()
    assert files.unpack(whole, ["b", "a"], "it", "wait") == [b"", b"content " * 100]
    spoilt = whole[:40] + bytes(10) + whole[50:]
    locked, entry = bytearray(whole), whole.find(b"PK\x01\x02")
    locked[6] |= 1  # encrypted, say both headers of "a"
    locked[entry + 8] |= 1
    for content, members in (
        (b"<html>sign in</html>", ["a"]),
        (b"", ["a"]),
        (whole[:-30], ["a"]),
        (spoilt, ["a"]),
        (bytes(locked), ["a"]),
        (whole, ["a", "c"]),
    ):
        with pytest.raises(DataError, match=r"it is not what it was: .*; wait"):
            files.unpack(content, members, "it", "wait")

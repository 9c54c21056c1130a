"""Names that nobody can guess, for the folders and nodes of isolated tenants on shared backends. Pure.

Each name is a keyed hash (BLAKE2b, RFC 7693) of its tenant and its purpose, so it needs no record: the same key gives
the same name again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import blake2b

from gateway.comfy.file_refs import FileRef

# A key has 256 bits, a folder's name 128. A node's id has 96: it must look like no folder.
KEY_SIZE = 32
_FOLDER_DIGITS = 32
_NODE_DIGITS = 24
# A separator as Linux and Windows write it, also inside JSON and in an address.
_SEPARATOR = r"(?:/|\\{1,2}|%2[Ff]|%5[Cc])"
# A secret folder, with the folder in it that keeps files from lying directly in the secret one. The pattern takes any
# character before it, because in JSON that may be the "n" of a line's end.
SECRET_FOLDER = rf"[uo]{_SEPARATOR}[0-9a-f]{{{_FOLDER_DIGITS}}}({_SEPARATOR}f)?"
# A file in the root that is named after such a folder, for classes that take no other.
_IN_ROOT = rf"u-[0-9a-f]{{{_FOLDER_DIGITS}}}"
# Hexadecimal digits become "0", a backslash becomes a slash, other bytes of a name's beginning stay, and all others
# become blanks. So "%2f" and "%5c" become "%00", and their zeros count as digits of the name.
_MARKS = bytes(
    48 if byte in b"0123456789abcdef" else 47 if byte in b"/\\" else byte if byte in b"uo-%FC" else 32
    for byte in range(256)
)
_RUN = b"0" * _FOLDER_DIGITS
_SEPARATORS = (b"/", b"-", b"%0F", b"%0C", b"%")
_STARTS = tuple(letter + separator for letter in (b"u", b"o") for separator in _SEPARATORS)
_NAMES = tuple(start + b"#" for start in _STARTS)
_PATH = re.compile(rf"{_IN_ROOT}[^/]*|[uo]/[0-9a-f]{{{_FOLDER_DIGITS}}}(?:/.*)?", re.DOTALL)


class SecretNames:
    """The names that one key gives.

    Args:
        key: `KEY_SIZE` random bytes, which no client and no backend ever sees. Files can be found by their names for
            as long as it is kept.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < KEY_SIZE:
            raise ValueError(f"the key of secret names needs {KEY_SIZE} bytes, not {len(key)}")
        self._key = key

    def output_folders(self, tenant: str) -> Callable[[bytes], str]:
        """Return a function that returns the folder below output/ for the files of one output node of a tenant.

        The function takes the digest of the part of the graph that the node depends on (`gateway.comfy.subgraph`).
        """
        start = self._hash(_FOLDER_DIGITS, b"output", tenant.encode("utf-8", "surrogatepass"))

        def folder_of(digest: bytes) -> str:
            hash_ = start.copy()
            hash_.update(len(digest).to_bytes(8, "big") + digest)
            return f"o/{hash_.hexdigest()}/f"

        return folder_of

    def upload_folder(self, tenant: str, ref: FileRef) -> str:
        """Return the folder below input/ for one upload of a tenant, by the name that the tenant gave the upload.

        An upload that replaces another of its name lies in the same folder.
        """
        parts = (part.encode("utf-8", "surrogatepass") for part in (tenant, ref.kind, ref.subfolder, ref.filename))
        return f"u/{self._name(_FOLDER_DIGITS, b'upload', *parts)}/f"

    def added_node(self, tenant: str, digest: bytes, role: str) -> str:
        """Return the id of a node that the gateway adds to a tenant's prompt.

        Args:
            digest: the digest of the part of the graph for which the node is added.
            role: the node's purpose there.
        """
        parts = (tenant.encode("utf-8", "surrogatepass"), digest, role.encode("utf-8", "surrogatepass"))
        return f"g{self._name(_NODE_DIGITS, b'node', *parts)}"

    def storage_folder(self, tenant: str) -> str:
        """Return the folder of a tenant's copies in object storage. It tells nothing of the tenant's name."""
        return self._name(_FOLDER_DIGITS, b"storage", tenant.encode("utf-8", "surrogatepass"))

    def link_key(self) -> bytes:
        """Return the key by which the gateway signs its own links to stored files."""
        return self._hash(2 * KEY_SIZE, b"link").digest()

    def _name(self, digits: int, *parts: bytes) -> str:
        """Return a keyed hash of some parts. Each has its length before it, so no other parts read the same."""
        return self._hash(digits, *parts).hexdigest()

    def _hash(self, digits: int, *parts: bytes) -> blake2b:
        message = b"".join([len(part).to_bytes(8, "big") + part for part in parts])
        return blake2b(message, key=self._key, digest_size=digits // 2)


def is_secret_path(path: str) -> bool:
    """Return True if a path below input/ or output/ is a secret folder, lies in one, or is a file called after one."""
    return _PATH.fullmatch(path) is not None


def holds_secret(text: str | bytes) -> bool:
    """Return True if a text, or bytes of one, may hold the name of a secret folder.

    This takes a few milliseconds for any megabyte. A pattern would be slower, because it stops at each letter of some
    texts.
    """
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    marked = raw.translate(_MARKS)
    while b"//" in marked:
        marked = marked.replace(b"//", b"/")
    if _RUN not in marked or not any(start in marked for start in _STARTS):
        return False
    marked = marked.replace(_RUN, b"#")
    return any(name in marked for name in _NAMES)

"""Places of uploads on backends: a secret folder for each upload of a tenant that shares the backend with strangers.

Two stock classes read one level below a folder that they are given (comfy_extras/nodes_dataset.py), so a file in
``input/u/<secret>/f`` is below no folder that a client can name. Each upload has its own folder, because a saved
picture names all the files of its prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from gateway.comfy.file_refs import FileRef
from gateway.comfy.graph import FileInput
from gateway.tenants.secret_names import SecretNames

# The suffix of a client's name, which is kept, because some nodes go by it.
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}\Z")
_FILE = "f"
_SECRET = re.compile(r"u(?:/|-)([0-9a-f]{32})(?![0-9a-f])")


class UploadPlaces:
    """Names of uploads on backends.

    Args:
        is_hidden: returns True if a tenant's files on a backend lie among strangers' files, by the names of both.
    """

    def __init__(self, names: SecretNames, is_hidden: Callable[[str, str], bool]) -> None:
        self._names = names
        self._is_hidden = is_hidden

    def of(self, tenant: str, ref: FileRef, backend: str, *, in_root: bool = False) -> FileRef:
        """Return the folder and name that an upload is to have on a backend.

        Args:
            ref: the folder and name that the tenant knows.
            in_root: True for a class that may take no name but one of its list, which names the files of the root.
        """
        if not self._is_hidden(tenant, backend):
            return ref
        folder = self._names.upload_folder(tenant, ref)
        match = _SUFFIX.search(ref.filename)
        suffix = match[0] if match is not None else ""
        if in_root:
            return FileRef(ref.kind, "", folder.removesuffix("/f").replace("/", "-") + suffix)
        return FileRef(ref.kind, folder, _FILE + suffix)

    def names_of(self, tenant: str, files: Iterable[FileInput]) -> dict[str, str]:
        """Return the paths of a prompt's files as their tenant knows them, by the 32 digits of their secret folders."""
        refs = (file.ref for file in files if file.ref is not None and not file.folder)
        return {self.secret(tenant, ref): path_of(ref) for ref in refs}

    def secret(self, tenant: str, ref: FileRef) -> str:
        """Return the 32 digits of an upload's secret folder."""
        return self._names.upload_folder(tenant, ref)[2:-2]


def path_of(ref: FileRef) -> str:
    """Return a file's path below its folder of inputs or outputs."""
    return f"{ref.subfolder}/{ref.filename}" if ref.subfolder else ref.filename


def secret_of(there: FileRef) -> str:
    """Return the 32 digits of an upload's secret folder, which is its folder or in its name; empty if it has none."""
    match = _SECRET.match(path_of(there))
    return match[1] if match is not None else ""

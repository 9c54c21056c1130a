"""Keys of objects: ``<tenant's folder>/<job's folder>/<random>[.suffix]``, without text of users. Pure but for chance.

A key is unguessable, because whoever may list nothing but read by key, such as a public bucket's reader, must know it.
"""

from __future__ import annotations

import secrets
import uuid
from pathlib import PurePosixPath

# Suffixes of files that ComfyUI's nodes write. Any other is the user's own text.
_SUFFIXES = frozenset(
    "png apng jpg jpeg webp gif bmp tif tiff avif exr hdr svg psd "
    "mp4 webm mov mkv avi m4v gifv "
    "mp3 wav flac ogg opus m4a aac "
    "glb gltf obj ply stl fbx usdz splat ksplat spz "
    "txt json csv srt vtt latent safetensors npz npy pt zip".split()
)


def job_folder() -> str:
    """Return a new name for the folder of a job's objects."""
    return str(uuid.uuid4())


def new_key(tenant_folder: str, job: str, filename: str) -> str:
    """Return a new key for a file of a job.

    Args:
        tenant_folder: the tenant's folder: `SecretNames.storage_folder`.
        job: the job's folder: `job_folder`.
        filename: the file's name, for its suffix alone.
    """
    suffix = PurePosixPath(filename).suffix.removeprefix(".").lower()
    return f"{tenant_folder}/{job}/{secrets.token_hex(16)}{f'.{suffix}' if suffix in _SUFFIXES else ''}"


def shared_key(key: str) -> str:
    """Return a new key beside another one, for the copy without metadata."""
    folder, _, name = key.rpartition("/")
    suffix = PurePosixPath(name).suffix
    return f"{folder}/{secrets.token_hex(16)}{suffix}"


def spool_name(key: str) -> str:
    """Return the name of the file on the gateway's disk in which an object's bytes wait."""
    return PurePosixPath(key).stem

"""Sentences for failures of object stores: each names the fault, the bucket, and the remedy. Pure.

No sentence repeats the body of a response or a URL's query, because both may hold credentials and signatures.
"""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["missing", "bucket", "denied", "full", "unreachable", "clock", "expired", "other"]

# Codes in the bodies of S3, Google Cloud Storage, Azure, MinIO and SeaweedFS.
_CODES: dict[str, Kind] = {
    "NoSuchKey": "missing",
    "BlobNotFound": "missing",
    "NoSuchBucket": "bucket",
    "InvalidBucketName": "bucket",
    "ContainerNotFound": "bucket",
    "InvalidResourceName": "bucket",
    "AccessDenied": "denied",
    "AllAccessDisabled": "denied",
    "AccountIsDisabled": "denied",
    "AuthenticationFailed": "denied",
    "AuthorizationFailure": "denied",
    "AuthorizationPermissionMismatch": "denied",
    "InvalidAccessKeyId": "denied",
    "SignatureDoesNotMatch": "denied",
    "InsufficientAccountPermissions": "denied",
    "RequestTimeTooSkewed": "clock",
    "RequestExpired": "clock",
    "ExpiredToken": "expired",
    "ExpiredTokenException": "expired",
    "InvalidToken": "expired",
    "TokenRefreshRequired": "expired",
    "invalid_grant": "clock",
    "QuotaExceeded": "full",
    "InsufficientCapacity": "full",
    "InsufficientStorage": "full",
    "XMinioStorageFull": "full",
    "XMinioAdminBucketQuotaExceeded": "full",
    "BucketQuotaExceeded": "full",
    "SlowDown": "unreachable",
    "ServerBusy": "unreachable",
    "ServiceUnavailable": "unreachable",
    "InternalError": "unreachable",
    "InternalServerError": "unreachable",
    "OperationTimedOut": "unreachable",
    "RequestTimeout": "unreachable",
}
# If the body has no code that is known, a word of the error's text decides; the first that is there counts.
_WORDS: tuple[tuple[str, Kind], ...] = (
    # ENOSPC, EDQUOT, EFBIG.
    (r"No space left on device|Disk quota exceeded|os error (?:28|122|27)\b", "full"),
    (r"Permission denied|Read-only file system|os error 13\b|os error 30\b", "denied"),
    (r"\b507\b", "full"),
    (r"status code: 404|404 Not Found", "missing"),
    (r"status code: 40[13]|40[13] (?:Unauthorized|Forbidden)", "denied"),
    (r"status code: (?:429|5\d\d)|5\d\d [A-Z]", "unreachable"),
    (r"status code: \d|without LOCATION", "other"),
    (r"certificate|invalid peer|UnknownIssuer|[Hh]andshake", "unreachable"),
    (r"dns error|[Cc]onnect|error sending request|timed? ?out|Timeout|closed|reset|error decoding", "unreachable"),
)
_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>|\"error\":\s*\"(\w+)\"|\(code: (\w+)\)")
_STATUS = re.compile(r"\b([345]\d\d) [A-Z][A-Za-z ]+")
_CERTIFICATE = re.compile(r"certificate|invalid peer|UnknownIssuer|[Hh]andshake")
_DNS = re.compile(r"dns error|failed to lookup|Name or service not known|resolve")
_HAS_ANSWERED = re.compile(r"status code: (?:429|5\d\d)")
# Addresses and paths hold a bucket's name, which may be any word; the last is a setting in the library's text.
_NAMES = re.compile(r"https?://\S+|path:? \"?\S+|location \S+|/\S+|retry_timeout")
_RIGHTS = "check that they may get, put, list and delete objects of this bucket"
# By kind, the cause and the remedy.
_SENTENCES: dict[Kind, tuple[str, str]] = {
    "missing": ("the object does not exist", "somebody or a lifecycle rule of the bucket has deleted it"),
    "bucket": ("the bucket does not exist", "create it, or correct storage.url"),
    "denied": ("the credentials are refused, or lack the right", _RIGHTS),
    "full": ("the store is full", "free some space, or raise the quota"),
    "unreachable": ("the store can't be reached", "check storage.endpoint, the network and the store's server"),
    "clock": ("the clock of this machine differs too much from the store's", "set it right (NTP)"),
    "expired": ("the credentials have expired", "set new ones, and restart the gateway"),
    "other": ("the store failed", "docs/storage.md may know more"),
}
_ACCESS_KEY = ("the store does not know the access key", "check storage.access_key_id")
_SECRET = ("the secret key does not fit the access key", "check storage.secret_access_key")
_REGION = ("the bucket is in another region, or at another address", "check storage.region and storage.endpoint")
# Codes with a better sentence than that of their kind.
_SENTENCES_OF_CODES = {
    "InvalidAccessKeyId": _ACCESS_KEY,
    "SignatureDoesNotMatch": _SECRET,
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "EntityTooLarge": ("the object is larger than the store permits", "ask its provider for the maximum"),
}
_LATE = ("the store did not answer within storage.timeout", "check its server and the network, or raise the setting")
_TLS = (
    "its TLS certificate is not trusted",
    "check storage.endpoint; storage.ca_file trusts an authority of your own",
)
_NO_HOST = ("the name of its host can't be resolved", "check storage.endpoint and the DNS")
_BROKEN = ("the store answers with an error of its own", "read its server's log; its disk may be full")


class StorageError(Exception):
    """A failure of object storage. `message` is for people, and holds neither secrets nor signed URLs.

    `kind` is ``missing`` (the object), ``bucket`` (the bucket or folder is missing), ``denied``, ``full``,
    ``unreachable`` (also: timed out, 5xx), ``clock``, ``expired`` (the credentials) or ``other``.
    """

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.message = message


def code_of(text: str) -> str:
    """Return the code in the body of a store's response, such as ``NoSuchBucket``; empty if there is none."""
    match = _CODE.search(text)
    return next((group for group in match.groups() if group), "") if match else ""


def kind_of(failure: BaseException) -> Kind:
    """Return the kind of a failure that the library raised."""
    if isinstance(failure, StorageError):
        return failure.kind
    if isinstance(failure, TimeoutError):
        return "unreachable"
    text = str(failure)
    if (kind := _CODES.get(code_of(text))) is not None:
        return kind
    if isinstance(failure, FileNotFoundError):
        return "missing"
    text = _NAMES.sub("", text)
    return next((kind for pattern, kind in _WORDS if re.search(pattern, text)), "other")


def _sentence(failure: BaseException, kind: Kind) -> tuple[str, str]:
    """Return the cause of a failure, and the remedy."""
    if isinstance(failure, TimeoutError):
        return _LATE
    if (known := _SENTENCES_OF_CODES.get(code_of(str(failure)))) is not None:
        return known
    text = _NAMES.sub("", str(failure))
    if "without LOCATION" in text:
        return _REGION
    if kind != "unreachable":
        return _SENTENCES[kind]
    if _HAS_ANSWERED.search(text):
        return _BROKEN
    if _CERTIFICATE.search(text):
        return _TLS
    return _NO_HOST if _DNS.search(text) else _SENTENCES[kind]


def storage_error(doing: str, place: str, failure: BaseException, *, is_bucket: bool = False) -> StorageError:
    """Return the error for a failure: `doing` something, at `place`, the cause, the store's own code, the remedy.

    With `is_bucket` a missing object is a missing bucket.
    """
    if isinstance(failure, StorageError):
        return failure
    kind, text = kind_of(failure), str(failure)
    if kind == "missing" and is_bucket:
        kind = "bucket"
    status = _STATUS.search(_NAMES.sub("", text))
    said = code_of(text) or (status[0].strip() if status else "")
    cause, remedy = _sentence(failure, kind)
    return StorageError(kind, f"{doing} at {place}: {cause}{f' ({said})' if said else ''}; {remedy}")

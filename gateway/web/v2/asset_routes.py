"""Routes of assets of the Comfy API v2: upload, from-hash, by-hash, show, content, delete."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from aiohttp import web

from gateway.catalogue import merging
from gateway.comfy import json_codec
from gateway.comfy.media_references import reference_by_name
from gateway.files.index import Upload
from gateway.files.media_references import sentence
from gateway.files.uploads import QuotaExceeded, UploadInUse
from gateway.files.values import stored_of_place
from gateway.jobs.parsing.json_reader import NotRead
from gateway.settings import LimitSettings
from gateway.store.blobs import BlobWriter
from gateway.store.v2_records import V2AssetRecord
from gateway.tenants.limits import body_too_large, no_room
from gateway.web.guard.context import Context, caller, context_of, whose
from gateway.web.http.request_body import MAX_DEPTH, read_json
from gateway.web.http.request_keys import OWN_ERRORS, STREAMING
from gateway.web.http.responses import json
from gateway.web.http.v2_errors import V2Error
from gateway.web.v2.answers import answering
from gateway.web.v2.assets import HASH, NewAsset, TooManyAssets, asset_object, hash_of, ref_of
from gateway.web.v2.content import range_of, send_bytes, send_path, send_stored
from gateway.web.v2.forms import checked_life, checked_path, checked_type, receive
from gateway.web.v2.jobs import Found, created_of
from gateway.web.v2.model import SizedOutput, output_asset
from gateway.web.v2.outputs import Output, job_of
from gateway.web.v2.service import links_for, parts_of, v2_of

# Bytes and values of the body of from-hash.
MAX_BODY, MAX_VALUES = 64 * 1024, 1_000
_RETRY = {"Retry-After": "5"}
_NO_ASSET = "Unknown asset id."


def _new_asset(path: Any, content_type: str, expires_in: Any) -> NewAsset:
    ref, seconds = checked_path(path), checked_life(expires_in)
    expires_at = None if seconds is None else int((time.time() + seconds) * 1000)
    return NewAsset(ref, path, checked_type(content_type, ref.filename), expires_at)


@answering
async def post_asset(request: web.Request) -> web.StreamResponse:
    """Keep an asset: 201 if its bytes are new to the tenant, else 200."""
    v2, gateway = parts_of(request)
    tenant = caller(request).tenant
    own = gateway.limits.of(tenant)
    async with AsyncExitStack() as stack:
        blobs, limit = gateway.engine.uploads.blobs, _limit(gateway, tenant)
        form = await receive(request, stack, blobs, limit, partial(_check_own, own))
        new = _new_asset(
            form.fields.get("file_path"),
            form.fields.get("content_type") or form.part_type,
            form.fields.get("expires_in"),
        )
        if form.writer is None:
            raise V2Error(422, "invalid_request", "Missing 'file' part.")
        digits = form.hash.hexdigest()
        expected = form.fields.get("expected_hash")
        if expected and hash_of(expected) != digits:
            raise V2Error(409, "hash_mismatch", "Client-declared hash does not match the received bytes.")
        await _refuse_references(gateway, request, new, form.writer)
        try:
            record, is_new = await v2.assets.add(tenant, new, form.writer, digits)
        except (QuotaExceeded, TooManyAssets) as error:
            raise V2Error(507, "storage_full", str(error)) from error
    _spread(gateway, record)
    shown = asset_object(record, links_for(request, tenant), time.time(), created_new=is_new)
    return json(shown, 201 if is_new else 200)


async def _refuse_references(gateway: Context, request: web.Request, new: NewAsset, writer: BlobWriter) -> None:
    """Refuse a file that names other files, if the caller may open none but its own."""
    if _is_judged(gateway, request):
        found = await gateway.engine.transfer.references.of_file(new.ref.filename, await writer.spool())
        if found is not None:
            raise V2Error(422, "invalid_request", sentence(new.ref.filename, found))


def _is_judged(gateway: Context, request: web.Request) -> bool:
    return not caller(request).is_admin and gateway.is_judged(caller(request).tenant)


def _limit(gateway: Context, tenant: str) -> int:
    """Return the maximum size of an upload: no more than some backend of the tenant takes."""
    allowed = gateway.policies.of(tenant).allowed
    backends = [each for each in gateway.fleet.backends.values() if allowed is None or each.name in allowed]
    return merging.upload_limit((each.features for each in backends), gateway.settings.uploads.max_size)


def _check_own(own: LimitSettings, size: int) -> None:
    """Raise `LimitReached` if a file is larger than the tenant may send, or than the gateway may ever keep for it."""
    if own.body_bytes is not None and size > own.body_bytes:
        raise body_too_large(own.body_bytes, size)
    if own.upload_bytes is not None and size > own.upload_bytes:
        raise no_room(own.upload_bytes, 0, size)


def _spread(gateway: Context, record: V2AssetRecord) -> None:
    """Put an upload on the backends of its tenant, ahead of the prompts that name it."""
    upload = gateway.engine.files.find(record.tenant, ref_of(record))
    if isinstance(upload, Upload):
        place = partial(gateway.engine.places.of, record.tenant, ref_of(record))
        gateway.engine.transfer.spread(place, upload, gateway.policies.of(record.tenant).allowed)


@answering
async def post_from_hash(request: web.Request) -> web.Response:
    """Make an asset of bytes that the tenant has: 201 for a new one, 200 for one that there was."""
    v2, gateway = parts_of(request)
    tenant = caller(request).tenant
    try:
        with gateway.limits.body(tenant) as grow:
            body, _ = json_codec.read_bounded(await read_json(request, MAX_BODY, grow), MAX_DEPTH, MAX_VALUES)
    except json_codec.MalformedJson as error:
        raise V2Error(400, "invalid_request", "Body must be JSON.") from error
    if not isinstance(body, dict):
        raise V2Error(400, "invalid_request", "Body must be a JSON object.")
    given = body.get("hash")
    if not isinstance(given, str) or not given:
        raise V2Error(422, "invalid_request", "Missing 'hash'.")
    digits = hash_of(given)
    known = v2.assets.by_hash(tenant, digits) if digits is not None else []
    if digits is None or not known:
        raise V2Error(404, "blob_not_found", "No blob the caller may mint from.")
    path = body.get("file_path")
    new = _new_asset(known[0].file_path if path is None else path, known[0].content_type, body.get("expires_in"))
    # The bytes passed this check when they came; under another name they may be a file that opens others.
    if _is_judged(gateway, request) and (by_name := reference_by_name(new.ref.filename)) is not None:
        raise V2Error(422, "invalid_request", sentence(new.ref.filename, by_name))
    try:
        made = await v2.assets.mint(tenant, new, digits)
    except TooManyAssets as error:
        raise V2Error(507, "storage_full", str(error)) from error
    if made is None:
        raise V2Error(404, "blob_not_found", "No blob the caller may mint from.")
    record, is_new = made
    # The record may be new, but its bytes are not.
    shown = asset_object(record, links_for(request, tenant), time.time(), created_new=False)
    return json(shown, 201 if is_new else 200)


@answering
async def head_by_hash(request: web.Request) -> web.Response:
    """Answer if the tenant has an asset with these bytes: 200 or 404, without a body."""
    digits = hash_of(request.match_info["hash"])
    if digits is None or not v2_of(request).assets.by_hash(whose(request).tenant, digits):
        raise V2Error(404, "not_found", f"No asset with this {HASH[:-1]} hash.")
    return web.Response()


@answering
async def get_asset(request: web.Request) -> web.Response:
    """Answer with an asset: an upload's, or a job's output."""
    v2, asset_id = v2_of(request), request.match_info["asset_id"]
    record = v2.assets.find(whose(request).sees, asset_id)
    if record is not None:
        return json(asset_object(record, links_for(request, record.tenant), time.time()))
    found, output = await _output(request, asset_id)
    sized = await v2.sizes.of(found.tenant, found.prompt_id, [output])
    (linked,) = await v2.sizes.linked(found.tenant, sized)
    return json(_output_object(request, found, linked))


def _output_object(request: web.Request, found: Found, sized: SizedOutput) -> dict[str, Any]:
    created = created_of(found)
    keep = int(context_of(request).settings.store.retention.max_age * 1000)
    return output_asset(sized, found.prompt_id, created, created + keep, links_for(request, found.tenant), time.time())


async def _output(request: web.Request, asset_id: str) -> tuple[Found, Output]:
    """Return the output that an id names, and its job.

    Raises:
        V2Error: the caller has no such output.
    """
    jobs, job_id = v2_of(request).jobs, job_of(asset_id)
    found = jobs.find(whose(request), job_id) if job_id is not None else None
    if found is not None:
        try:
            outputs = await jobs.outputs(found)
        except NotRead as error:
            said = f"The job could not be read: {error}"
            raise V2Error(503, "upstream_unreachable", said, None, _RETRY) from error
        output = next((each for each in outputs if each.id == asset_id), None)
        if output is not None:
            return found, output
    raise V2Error(404, "not_found", _NO_ASSET)


@answering
async def get_content(request: web.Request) -> web.StreamResponse:
    """Answer with the bytes of an asset, or with a range of them."""
    v2, gateway = parts_of(request)
    asset_id = request.match_info["asset_id"]
    record = v2.assets.find(whose(request).sees, asset_id)
    if record is not None:
        return await _send_upload(request, gateway, record)
    found, output = await _output(request, asset_id)
    return await send_output(request, found, output)


async def send_output(request: web.Request, found: Found, output: Output) -> web.StreamResponse:
    """Answer with the bytes of a job's output, or with a range of them.

    Raises:
        V2Error: they are gone, or the range is beyond their end.
    """
    v2 = v2_of(request)
    if output.ref is None:
        return await send_bytes(request, output.text.encode("utf-8", "replace"), output.content_type)
    asked, ignored = _for_owner(request, found.tenant), {"if-match", "if-unmodified-since"}
    given = request.headers.get("Range")
    if given is not None:
        (sized,) = await v2.sizes.of(found.tenant, found.prompt_id, [output])
        if (range_of(given, sized.size) if sized.size else None) is None:
            ignored.add("range")
    if not ignored.isdisjoint(map(str.lower, request.headers)):
        # What is ignored must not reach the backend, which would refuse it in another form than this API's.
        kept = {name: value for name, value in request.headers.items() if name.lower() not in ignored}
        asked = asked.clone(headers=kept)
    asked[OWN_ERRORS] = True
    try:
        response = await v2.send_file(asked, output.ref)
    finally:
        if asked is not request and STREAMING in asked:
            # The gate looks at the request itself if the answer fails in its middle.
            request[STREAMING] = True
    if response is None or (response.status == 404 and not response.prepared):
        raise V2Error(404, "output_unavailable", "The bytes of this output are gone.")
    return response


def _for_owner(request: web.Request, tenant: str) -> web.Request:
    """Return a request for a file of this tenant's, because an admin's own file may have the same name."""
    if tenant == caller(request).tenant:
        return request
    return request.clone(rel_url=request.rel_url.update_query(tenant=tenant))


async def _send_upload(request: web.Request, gateway: Context, record: V2AssetRecord) -> web.StreamResponse:
    engine = gateway.engine
    engine.uploads.use(record.digest)
    stored = stored_of_place(engine.files.find(record.tenant, ref_of(record)))
    if stored is not None and not await engine.uploads.blobs.has(record.digest):
        if engine.stored_files is None:
            raise V2Error(503, "upstream_unreachable", "Object storage has the bytes, and is turned off.", None, _RETRY)
        return await send_stored(request, engine.stored_files, stored, record.content_type)
    path = engine.uploads.blobs.path(record.digest)
    return await send_path(request, path, record.size, record.content_type)


@answering
async def delete_asset(request: web.Request) -> web.Response:
    """Delete an asset: 204. A job's output goes with its job."""
    v2 = v2_of(request)
    record = v2.assets.find(whose(request).sees, request.match_info["asset_id"])
    if record is None:
        raise V2Error(404, "not_found", _NO_ASSET)
    try:
        await v2.assets.delete(record)
    except UploadInUse as error:
        raise V2Error(409, "asset_in_use", "The asset is in use.") from error
    return web.Response(status=204)

"""Settings of object storage: each error names its place, and none repeats a secret."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gateway.settings import SettingsError, load

S3 = {"url": "s3://bucket/a/b", "access_key_id": "hunter2", "secret_access_key": "hunter2"}


def storage_of(tmp_path: Path, **settings: object) -> str:
    """Load a configuration with these settings; the errors, if there are any, and else what it shows of itself."""
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({"storage": settings}))
    try:
        return repr(load(path, environment={}).storage)
    except SettingsError as error:
        return str(error)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "hunter2"}, "storage.url: must be s3://bucket"),
        ({"url": "https://hunter2.example.com"}, "storage.url: must be s3://bucket"),
        ({"url": "s3://hunter2:secret@bucket"}, "storage.url: must be s3://bucket"),
        ({"url": "s3://"}, "storage.url: names no bucket"),
        ({"url": "file://folder"}, "storage.url: must name an absolute path"),
        ({"url": "s3://bucket"}, "storage: access_key_id and secret_access_key are needed"),
        ({"url": "gs://bucket"}, "storage: service_account"),
        ({"url": "az://bucket", "account_key": "hunter2"}, "storage: account_name and account_key"),
        ({**S3, "endpoint": "http://store"}, "storage: endpoint is an http:// URL; set allow_http"),
        ({**S3, "public_endpoint": "store:9000"}, "storage: public_endpoint must be the URL"),
        ({**S3, "endpoint": "https://hunter2:x@store"}, "storage: endpoint must be the URL"),
        ({"url": "file:///folder", "endpoint": "https://store"}, "storage: endpoint is for s3://"),
        ({"link_lifetime": "8d"}, "storage.link_lifetime"),
        ({"kinds": []}, "storage: kinds must list"),
        ({"kinds": ["output", "output"]}, "storage: kinds must list"),
        ({"kinds": ["input"]}, "storage.kinds[0]"),
        ({"when": "later"}, "storage.when"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    found = storage_of(tmp_path, **settings)
    assert said in found
    assert "hunter2" not in found


def test_what_is_right_is_taken(tmp_path: Path) -> None:
    found = storage_of(tmp_path, **S3, endpoint="http://store:9000", allow_http=True, session_token="hunter2")
    assert "url='s3://bucket/a/b'" in found
    assert "hunter2" not in found
    assert "url='file:///some/folder'" in storage_of(tmp_path, url="file:///some/folder/")
    assert "url='memory:'" in storage_of(tmp_path, url="memory:")
    assert "link_lifetime=604800" in storage_of(tmp_path, link_lifetime="7d")
    assert "url=''" in storage_of(tmp_path, endpoint="https://store")

"""What holds for all tests."""

import buckets
import fsspec
import pytest

# Their asserts tell what was found, as those in test files do.
pytest.register_assert_rewrite("field_cases")


@pytest.fixture(scope="session")
def s3_server():
    """The address of an S3 server, for all tests of this process."""
    with buckets.serving() as address:
        yield address


@pytest.fixture
def bucket(s3_server, monkeypatch, request):
    """The URL of a new, empty bucket."""
    buckets.use(monkeypatch, s3_server)
    fs = fsspec.filesystem("s3")
    name = f"bucket-{len(fs.ls('', refresh=True))}"
    fs.mkdir(name)
    yield f"s3://{name}"
    buckets.forget()

"""What servers of pages refuse: other hosts, other pages' changes, bodies that are too large."""

import socket

import pytest
from fastapi import Body
from fastapi.testclient import TestClient

from data_schemas.errors import UserError
from data_schemas.serving import MAX_BODY, Guarded, is_host, page_app, serve


@pytest.fixture
def client():
    app = page_app("a test")

    @app.get("/there")
    def there(n: int = 0):
        return {"n": n}

    @app.post("/change")
    def change(told: dict = Body()):
        if told.get("bad"):
            raise UserError("sample x: no such\nsample")
        return told

    with TestClient(Guarded(app, "127.0.0.1"), base_url="http://127.0.0.1:7000") as client:
        yield client


def test_own_pages_are_answered_and_marked(client):
    answer = client.get("/there")
    assert answer.json() == {"n": 0}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.post("/change", json={"a": 1}, headers={"origin": "http://127.0.0.1:7000"}).json() == {"a": 1}


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "192.168.1.2", "", "[::1", "127.0.0.1@evil"]
)
def test_other_hosts_are_refused(client, host):
    assert client.get("/there", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:7001", "http://localhost:7000"])
def test_changes_by_other_pages_are_refused(client, origin):
    assert client.post("/change", json={}, headers={"origin": origin}).status_code == 403


def test_a_large_body_is_refused_with_and_without_its_length(client):
    assert client.post("/change", content=b" " * (MAX_BODY + 1)).status_code == 413
    chunks = (b" " * 2**20 for _ in range(MAX_BODY // 2**20 + 1))
    assert client.post("/change", content=chunks, headers={"content-type": "application/json"}).status_code == 413


def test_mistakes_are_one_line(client):
    answer = client.post("/change", json={"bad": True})
    assert (answer.status_code, answer.json()) == (400, {"error": "sample x: no such sample"})
    assert "query.n" in client.get("/there?n=x").json()["error"]


def test_who_listens_elsewhere_answers_for_addresses_but_not_for_names():
    assert is_host("192.168.1.2:7000", "0.0.0.0")
    assert is_host(f"{socket.gethostname()}:7000", "0.0.0.0")
    assert is_host("lab.example:80", "lab.example")
    assert not is_host("evil.example", "0.0.0.0")
    assert not is_host("192.168.1.2", "127.0.0.1")


def test_a_port_in_use_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port}: cannot listen there .*give another --port"):
            serve(page_app("a test"), "127.0.0.1", port, "test")
    with pytest.raises(UserError, match=r"nowhere\.invalid"):
        serve(page_app("a test"), "nowhere.invalid", 0, "test")


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_who_lets_others_in_is_told(monkeypatch, capsys, host, warned):
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    serve(page_app("a test"), host, 0, "review")
    told = capsys.readouterr()
    assert f"review       http://{host}:" in told.out
    assert ("can use this page" in told.err) == warned

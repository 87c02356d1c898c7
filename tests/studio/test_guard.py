"""Every route is refused without the right token, host, origin and form token."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pinxit.studio.app import api_routes, create_app, routes
from pinxit.studio.guard import ENTRY, SECURITY_HEADERS
from pinxit.studio.pages import Pages
from pinxit.studio.workspace import Workspace

PORT = 7999
HOST = f"127.0.0.1:{PORT}"
FILLED = {
    "{job}": "000001",
    "{images}": "000001",
    "{place:int}": "0",
    "{vote}": "000001",
    "{round:int}": "0",
    "{side}": "a",
    "{step:int}": "1",
}
FILLED |= {"{action}": "stop", "{name}": "studio.css"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("guard") / "studio")
    workspace.create()
    workspace.queue.add("generate", {"request": {"prompt": "a dog"}, "concepts": []})
    return workspace


@pytest.fixture(scope="module")
def client(workspace: Workspace) -> TestClient:
    return TestClient(create_app(workspace, PORT), f"http://{HOST}", follow_redirects=False)


def all_routes(workspace: Workspace) -> list[tuple[str, str]]:
    pages = Pages(workspace)
    listed = [(method, path) for method, path, _ in (*routes(pages), *api_routes(pages))]
    for name, value in FILLED.items():
        listed = [(method, path.replace(name, value)) for method, path in listed]
    assert len(listed) > 35
    assert not any("{" in path for _, path in listed)
    return listed


def attacks(workspace: Workspace) -> dict[str, dict[str, str]]:
    """Headers of requests that must be refused, by name."""
    cookie = {"cookie": f"pinxit_{PORT}={workspace.token_for('cookie')}"}
    own = {**cookie, "origin": f"http://{HOST}", "x-form-token": workspace.token_for("form")}
    bearer = {"authorization": f"Bearer {workspace.token_for('api')}"}
    return {
        "nothing": {},
        "wrong cookie": {"cookie": f"pinxit_{PORT}={'0' * 64}"},
        "cookie of another port": {"cookie": f"pinxit_1={workspace.token_for('cookie')}"},
        "empty cookie": {"cookie": f"pinxit_{PORT}="},
        "wrong bearer": {"authorization": f"Bearer {workspace.token_for('form')}"},
        "form token as bearer": {"authorization": f"Basic {workspace.token_for('api')}"},
        "foreign host": {**own, "host": "evil.example"},
        "rebound host": {**own, "host": f"evil.example:{PORT}"},
        "host with user": {**own, "host": f"127.0.0.1@evil.example:{PORT}"},
        "host that only begins alike": {**own, "host": f"127.0.0.1.evil.example:{PORT}"},
        "numeric host": {**own, "host": f"2130706433:{PORT}"},
        "no host": {**own, "host": ""},
        "foreign origin": {**own, "origin": "http://evil.example"},
        "null origin": {**own, "origin": "null"},
        "other port's origin": {**own, "origin": "http://127.0.0.1:1"},
        "cross-site fetch": {**own, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        "same-site fetch": {**own, "sec-fetch-site": "same-site", "sec-fetch-mode": "navigate"},
        "bearer with foreign origin": {**bearer, "origin": "http://evil.example"},
        "bearer with foreign host": {**bearer, "host": "evil.example"},
        "bearer of a cross-site page": {**bearer, "sec-fetch-site": "cross-site"},
    }


@pytest.mark.long
def test_every_route_refuses_every_attack(client: TestClient, workspace: Workspace) -> None:
    for method, path in all_routes(workspace):
        for name, headers in attacks(workspace).items():
            is_entry_by_link = path == ENTRY and not set(headers) & {"host", "sec-fetch-site"}
            answer = client.request(method, path, headers=headers)
            if is_entry_by_link:  # the only route that needs no token; it needs the key
                assert answer.status_code == 403, (name, path)
                assert "set-cookie" not in answer.headers
            else:
                assert answer.status_code in (401, 403, 421), (name, method, path)
            assert SECURITY_HEADERS.items() <= dict(answer.headers).items()


@pytest.mark.parametrize("other", ['settings={"a": 1}', "[b]=c", "a=b c", 'u="2|1:0|10"'])
def test_cookies_of_other_programs_change_nothing(
    other: str, client: TestClient, workspace: Workspace
) -> None:
    """A browser sends the cookies of all ports of a machine."""
    own = f"pinxit_{PORT}={workspace.token_for('cookie')}"
    assert client.get("/queue", headers={"cookie": other}).status_code == 401
    assert client.get("/queue", headers={"cookie": f"{other}; {own}"}).status_code == 200


def test_changes_need_origin_and_form_token(client: TestClient, workspace: Workspace) -> None:
    cookie = {"cookie": f"pinxit_{PORT}={workspace.token_for('cookie')}"}
    origin, token = f"http://{HOST}", workspace.token_for("form")
    posts = [path for method, path in all_routes(workspace) if method == "POST"]
    for path in posts:
        for headers in (
            {},
            {"origin": origin},
            {"x-form-token": token},
            {"origin": origin, "x-form-token": token[:-1]},
            {"origin": "http://localhost:1", "x-form-token": token},
        ):
            answer = client.post(path, headers={**cookie, **headers})
            assert answer.status_code == 403, (path, headers)
        # the same token twice could hide a second one from another parser
        doubled = client.post(
            f"{path}?token={token}", headers={**cookie, "origin": origin, "x-form-token": token}
        )
        assert doubled.status_code == 403


def test_get_on_actions_and_the_right_request(client: TestClient, workspace: Workspace) -> None:
    cookie = {"cookie": f"pinxit_{PORT}={workspace.token_for('cookie')}"}
    assert client.get("/jobs/000001/stop", headers=cookie).status_code in (404, 405)
    assert workspace.queue.get("000001").state == "waiting"
    assert client.get("/library", headers=cookie).status_code == 200
    good = {**cookie, "origin": f"http://{HOST}"}
    path = f"/jobs/000001/stop?token={workspace.token_for('form')}"
    assert client.post(path, headers=good).status_code == 303
    assert workspace.queue.get("000001").state == "stopped"
    bearer = {"authorization": f"Bearer {workspace.token_for('api')}"}
    assert client.post("/api/jobs/000001/continue", headers=bearer).json()["state"] == "waiting"


def test_entry_link_works_once(client: TestClient, workspace: Workspace) -> None:
    key = workspace.new_key()
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get(f"{ENTRY}?key={key[:-1]}").status_code == 403
    answer = client.get(f"{ENTRY}?key={key}", headers=headers)
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert client.get(f"{ENTRY}?key={key}").status_code == 403
    client.cookies.clear()


HOSTILE = ["..", "../secret", "%2e%2e%2fsecret", "....//", "/etc/passwd", "000001/../../secret"]
HOSTILE += ["0", "-1", "00000１", "000001 ", "1" * 5000, "\\..\\secret", "%00", "%0d%0aX: y"]


def test_hostile_names_open_no_file(client: TestClient, workspace: Workspace) -> None:
    secret = workspace.secret
    bearer: dict[str, Any] = {"authorization": f"Bearer {workspace.token_for('api')}"}
    for name in HOSTILE:
        for path in ("/jobs/{}", "/jobs/{}/concept", "/images/{}", "/images/{}/0", "/static/{}"):
            answer = client.get(path.format(name), headers=bearer)
            assert answer.status_code in (303, 400, 404, 405), (path, name, answer.status_code)
            assert secret not in answer.content
        for field in ("images", "base", "method", "control", "image"):
            values = {"prompt": "a dog", "class_noun": "dog", field: name}
            for path in ("/api/train", "/api/generate"):
                known = path == "/api/generate" and field in ("images", "method", "control")
                answer = client.post(path, headers=bearer, json=values)
                assert answer.status_code == 400 or known, (path, field, name)


def test_files_of_the_workspace_are_private(workspace: Workspace) -> None:
    assert (workspace.folder / "secret").stat().st_mode & 0o077 == 0
    assert workspace.folder.stat().st_mode & 0o077 == 0
    assert Path(workspace.folder / "keys").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "replace",
    [
        os.mkfifo,
        Path.touch,
        lambda secret: secret.symlink_to(secret.parent.parent / "outside"),
        lambda secret: secret.symlink_to("/dev/zero"),
    ],
)
def test_a_secret_that_is_no_file_is_made_anew(
    tmp_path: Path, replace: Callable[[Path], object]
) -> None:
    workspace = Workspace(tmp_path / "studio")
    workspace.create()
    secret = workspace.folder / "secret"
    secret.unlink(missing_ok=True)
    replace(secret)
    assert len(workspace.secret) == 64
    assert not (tmp_path / "outside").exists()
    assert secret.lstat().st_mode & 0o777777 == 0o100600

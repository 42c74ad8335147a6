"""Web pages and strangers can't reach a studio on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import requests

from aid.studio.studio import Studio

Served = tuple[Studio, str]


def get(served: Served, path: str = "/sdapi/v1/options", **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.get(f"{served[1]}{path}", headers=named, timeout=9)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:80", "127.0.0.1:7860", "[::1]:9", "[::1]", "10.0.0.7:7860", "Studio.Local:7860"],
)
def test_its_own_names_and_addresses_are_answered(studio: Served, host: str) -> None:
    assert get(studio, Host=host).ok


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:7860", "localhost.", "[::1"]
)
def test_another_name_is_not(studio: Served, host: str) -> None:
    answer = get(studio, Host=host)
    assert answer.status_code == 421 and "--names" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
def test_other_sites_pages_are_refused(studio: Served, site: str, status: int) -> None:
    assert get(studio, Sec_Fetch_Site=site).status_code == status


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_other_sites_pages_are_refused_where_the_browser_tells_their_origin_alone(
    studio: Served, origin: str
) -> None:
    answer = requests.post(f"{studio[1]}/sdapi/v1/interrupt", headers={"Origin": origin}, timeout=9)
    assert answer.status_code == 403
    assert requests.post(f"{studio[1]}/sdapi/v1/interrupt", headers={"Origin": studio[1]}, timeout=9).ok


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_form_can_send_is_refused(studio: Served, kind: str) -> None:
    body = json.dumps({"sd_vae": "x"}).encode()
    for sent in (body, iter([body])):  # the second is of no length told
        answer = requests.post(
            f"{studio[1]}/sdapi/v1/options", sent, headers={"Content-Type": kind}, timeout=9
        )
        assert answer.status_code == 415


def test_an_unnamed_authorization_is_no_matter(studio: Served) -> None:
    assert get(studio, Authorization="").ok and get(studio, Authorization="Basic ???").ok


def test_a_body_that_never_ends_is_cut_off(studio: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(80):
            yield b" " * (1 << 20)

    headers = {"Content-Type": "application/json"}
    answer = requests.post(f"{studio[1]}/sdapi/v1/options", data=endless(), headers=headers, timeout=60)
    assert answer.status_code == 413 and "over 64 MiB" in answer.json()["detail"]
    for length, status in ((str(1 << 40), {413}), ("9" * 5000, {400, 413})):
        said = requests.Request("POST", f"{studio[1]}/sdapi/v1/options", headers=headers).prepare()
        said.headers["Content-Length"] = length
        assert requests.Session().send(said, timeout=9).status_code in status
    assert get(studio).ok


def test_answers_tell_browsers_to_be_strict(studio: Served) -> None:
    for path in ("/", "/sdapi/v1/options", "/page/studio.js", "/nowhere"):
        headers = get(studio, path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "inline" not in get(studio, "/").headers["Content-Security-Policy"]


def test_the_page_has_no_script_of_its_own_inside(studio: Served) -> None:
    page = get(studio, "/").text
    assert "<script>" not in page and " on" not in page.split("<body>")[1] and "style=" not in page

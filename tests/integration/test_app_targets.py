"""Keys in targets, media types and framing of app requests, and a fuzz of it all: never a 500 (protocol §4, §7)."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import wire
from tests.support.api_bench import (
    BAD_REQUEST,
    NOT_FOUND,
    UNSUPPORTED,
    ApiBench,
    assert_never_a_bug,
    assert_refused,
    assert_signed_refusal,
    chunked,
    exchange,
    open_bench,
)
from tests.support.proofs import proof_of
from tests.support.raw_client import Answer, RawApp, seal

pytestmark = [pytest.mark.chain, pytest.mark.cluster, pytest.mark.xdist_group("app_targets")]

VALUE = wire.encode_base64(b"value")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiBench]:
    with open_bench(tmp_path_factory.mktemp("app-targets")) as bench:
        yield bench


@pytest.fixture(scope="module")
def app(bench: ApiBench) -> Iterator[RawApp]:
    """An app with one value, which must still be there in the end, whatever was refused."""
    app = bench.new_app()
    app.put("mine", b"untouched")
    yield app
    assert app.get("mine") == b"untouched"


@pytest.fixture(scope="module")
def keyed(bench: ApiBench) -> RawApp:
    """An app with a value under each key of the table."""
    app = bench.new_app()
    for key in {key for key, _ in TARGETS_OF_KEYS.values()}:
        app.put(key, key.encode())
    return app


@pytest.fixture(scope="module")
def fuzzed(bench: ApiBench) -> RawApp:
    return bench.new_app()


# A key, and a request target that means it (protocol §4).
TARGETS_OF_KEYS = {
    "slash as it is": ("a/b", "/kms/data/a/b"),
    "slash encoded": ("a/b", "/kms/data/a%2Fb"),
    "slash encoded in lower case": ("a/b", "/kms/data/a%2fb"),
    "slash in front": ("/a", "/kms/data//a"),
    "slash in front, encoded": ("/a", "/kms/data/%2Fa"),
    "slash behind": ("a/", "/kms/data/a/"),
    "two slashes": ("a//b", "/kms/data/a//b"),
    "space encoded": ("a b", "/kms/data/a%20b"),
    "space as a form writes it": ("a b", "/kms/data/a+b"),
    "plus encoded": ("c+d", "/kms/data/c%2Bd"),
    "plus as it is": ("c+d", "/kms/data/c+d"),
    "plus and space": ("e+f g", "/kms/data/e%2Bf+g"),
    "percent": ("50%", "/kms/data/50%25"),
    "an encoding encoded": ("a%2Fb", "/kms/data/a%252Fb"),
    "question mark": ("a?b", "/kms/data/a%3Fb"),
    "hash": ("a#b", "/kms/data/a%23b"),
    "ampersand": ("a&key=b", "/kms/data/a&key=b"),
    "two bytes": ("é", "/kms/data/%C3%A9"),
    "four bytes": ("\U0001f600", "/kms/data/%F0%9F%98%80"),
    "letters encoded": ("abc", "/kms/data/%61%62%63"),
    "dots": ("..", "/kms/data/.."),
    "dots encoded": ("..", "/kms/data/%2e%2e"),
    "dots inside": ("a/../b", "/kms/data/a/../b"),
    "a route's name": ("data", "/kms/data/data"),
    "query slash": ("a/b", "/kms/data?key=a/b"),
    "query slash encoded": ("a/b", "/kms/data?key=a%2Fb"),
    "query space": ("a b", "/kms/data?key=a+b"),
    "query space encoded": ("a b", "/kms/data?key=a%20b"),
    "query plus": ("c+d", "/kms/data?key=c%2Bd"),
    "query two bytes": ("é", "/kms/data?key=%C3%A9"),
    "query ampersand": ("a&b", "/kms/data?key=a%26b"),
    "query equals": ("a=b", "/kms/data?key=a=b"),
    "query with other members": ("abc", "/kms/data?x=1&key=abc&y=2"),
    "query and a fragment of it": ("a?b", "/kms/data?key=a?b"),
}
# Targets that name no key at all, and what they are answered.
BAD_TARGETS = {
    "empty key": ("/kms/data/", BAD_REQUEST),
    "invalid UTF-8": ("/kms/data/%FF", BAD_REQUEST),
    "half a character": ("/kms/data/%C3", BAD_REQUEST),
    "overlong UTF-8": ("/kms/data/%C0%AF", BAD_REQUEST),
    "a surrogate": ("/kms/data/%ED%A0%80", BAD_REQUEST),
    "query key empty": ("/kms/data?key=", BAD_REQUEST),
    "query key without a value": ("/kms/data?key", BAD_REQUEST),
    "query key twice": ("/kms/data?key=mine&key=mine", BAD_REQUEST),
    "query invalid UTF-8": ("/kms/data?key=%FF", BAD_REQUEST),
    "query half a character": ("/kms/data?key=%C3", BAD_REQUEST),
    "a key that is not there": ("/kms/data/absent", NOT_FOUND),
    "a key of a NUL that is not there": ("/kms/data/%00", NOT_FOUND),
    "a query key that is not there": ("/kms/data?key=absent", NOT_FOUND),
    "a key twice encoded": ("/kms/data/%256D%2569ne", NOT_FOUND),
}
# Targets whose reading may be strict or lenient, but not a 500.
ODD_TARGETS = (
    "/kms/data/%",
    "/kms/data/%2",
    "/kms/data/%zz",
    "/kms/data/%u0041",
    "/kms/data/" + "k" * 1025,
    "/kms/data/" + "%C3%A9" * 513,
    "/kms/data/" + "k" * 20_000,
    "/kms/data?" + "&".join(f"a{number}=1" for number in range(200)),
    "/kms/data?key=" + "k" * 2000,
    "/kms/data?%",
    "/kms/data?&&&",
    "/kms/data?key=%zz",
    "/kms/data?key;key",
    "/kms/data%2Fmine",
    "/kms%2Fdata/mine",
    "/kms%2Fdata%2Fmine",
    "%2Fkms/data/mine",
    "/%6bms/data/mine",
    "//kms/data/mine",
    "/kms/./data/mine",
    "/kms/data/mine;a=b",
    "/kms/data/\xe9",
    "/kms/data?key=\xe9",
    "http://127.0.0.1/kms/data/mine",
    "*",
)


class TestKeysOfTargets:
    def get(self, app: RawApp, target: str) -> Answer:
        proof = proof_of(app)
        headers = proof.headers()
        answer = Answer(exchange(app.target.url, "GET", target, headers), dict(headers)["X-App-Signature"].decode())
        if answer.status == 200:
            app.verify(answer)
        return answer

    @pytest.mark.parametrize(("key", "target"), TARGETS_OF_KEYS.values(), ids=TARGETS_OF_KEYS)
    def test_a_target_finds_its_key(self, keyed: RawApp, key: str, target: str) -> None:
        answer = self.get(keyed, target)
        assert answer.status == 200, answer.response.text
        assert answer.inner["key"] == key
        assert wire.parse_base64(answer.inner["value"]) == key.encode()

    @pytest.mark.parametrize(("target", "expected"), BAD_TARGETS.values(), ids=BAD_TARGETS)
    def test_a_target_that_names_no_key_is_refused(self, app: RawApp, target: str, expected: tuple[int, str]) -> None:
        assert_signed_refusal(self.get(app, target), app, expected)

    @pytest.mark.parametrize("target", ODD_TARGETS, ids=[target[:32] for target in ODD_TARGETS])
    def test_an_odd_target_is_answered_somehow(self, app: RawApp, target: str) -> None:
        assert_never_a_bug(self.get(app, target).response, {200, 400, 404, 405})

    def test_the_literal_key_comes_before_the_one_with_spaces(self, bench: ApiBench) -> None:
        app = bench.new_app()
        app.put("a b", b"space")
        assert self.get(app, "/kms/data/a+b").inner["key"] == "a b"
        app.put("a+b", b"plus")
        assert self.get(app, "/kms/data/a+b").inner["key"] == "a+b"
        assert app.delete("a+b")
        assert self.get(app, "/kms/data/a+b").inner["key"] == "a b"

    def test_an_encoded_plus_is_never_a_space(self, bench: ApiBench) -> None:
        app = bench.new_app()
        app.put("a b", b"space")
        assert_signed_refusal(self.get(app, "/kms/data/a%2Bb"), app, NOT_FOUND)
        assert_signed_refusal(self.get(app, "/kms/data?key=a%2Bb"), app, NOT_FOUND)

    @pytest.mark.parametrize("target", ["/kms/data", "/kms/data?", "/kms/data?other=1", "/kms/data?KEY=mine"])
    def test_without_a_key_the_keys_are_listed(self, keyed: RawApp, target: str) -> None:
        answer = self.get(keyed, target)
        assert answer.status == 200
        keys = {key for key, _ in TARGETS_OF_KEYS.values()}
        assert (sorted(answer.inner["keys"]), answer.inner["count"]) == (sorted(keys), len(keys))


MEDIA_TYPES_REFUSED = (
    None,
    "",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/jsonx",
    "application/json-patch+json",
    "json",
    "text/json",
    "text/plain; application/json",
    "\xe9",
)


class TestMediaTypesAndFraming:
    @pytest.mark.parametrize(
        ("method", "path"), [("POST", "/kms/derive"), ("PUT", "/kms/data"), ("DELETE", "/kms/data")]
    )
    @pytest.mark.parametrize("media_type", MEDIA_TYPES_REFUSED)
    def test_another_media_type_is_refused(self, app: RawApp, method: str, path: str, media_type: str | None) -> None:
        body = json.dumps(seal(app.identity, app.target.tee_pubkey, {"path": "disk", "key": "mine"})).encode()
        headers = [*proof_of(app).headers(), ("Content-Length", b"%d" % len(body))]
        if media_type is not None:
            headers.append(("Content-Type", media_type.encode("latin-1")))
        assert_refused(exchange(app.target.url, method, path, headers, body), UNSUPPORTED)

    @pytest.mark.parametrize(
        "media_type", ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json ;x"]
    )
    def test_json_is_json_however_it_is_written(self, app: RawApp, media_type: str) -> None:
        assert app.send("POST", "/kms/derive", {"path": "disk"}, headers={"Content-Type": media_type}).status == 200

    @pytest.mark.parametrize("size", [1, 7, 4096])
    def test_a_body_may_come_in_chunks(self, app: RawApp, size: int) -> None:
        body = json.dumps(seal(app.identity, app.target.tee_pubkey, {"path": "disk"})).encode()
        pieces = chunked(*(body[start : start + size] for start in range(0, len(body), size)))
        headers = [*proof_of(app).headers(), ("Content-Type", b"application/json"), ("Transfer-Encoding", b"chunked")]
        assert exchange(app.target.url, "POST", "/kms/derive", headers, pieces).status_code == 200

    @pytest.mark.parametrize(
        "framing", [("Content-Length", b"0"), ("Transfer-Encoding", b"chunked")], ids=["0", "chunked"]
    )
    @pytest.mark.parametrize(
        ("method", "path"), [("POST", "/kms/derive"), ("PUT", "/kms/data"), ("DELETE", "/kms/data")]
    )
    def test_an_empty_body_is_refused(self, app: RawApp, method: str, path: str, framing: tuple[str, bytes]) -> None:
        headers = [*proof_of(app).headers(), ("Content-Type", b"application/json"), framing]
        body = b"" if framing[1] == b"0" else chunked()
        response = exchange(app.target.url, method, path, headers, body)
        assert_signed_refusal(Answer(response, dict(headers)["X-App-Signature"].decode()), app, BAD_REQUEST)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.sampled_from([2**62, 2**63 - 1, 2**63, 2**64, -(2**63), VALUE, "QQ==", "32", "0", "a/b", "\x00", ""]),
)
values = st.recursive(
    scalars,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=6,
)
inners = st.dictionaries(
    st.sampled_from(["path", "context", "length", "key", "value", "ttl_ms", "pop_nonce", "extra"]), values, max_size=6
)
endpoints = st.sampled_from([("POST", "/kms/derive"), ("PUT", "/kms/data"), ("DELETE", "/kms/data")])
fuzzing = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    derandomize=True,
    database=None,
)


class TestFuzz:
    @settings(fuzzing, max_examples=150)
    @given(endpoint=endpoints, inner=inners)
    def test_no_inner_object_is_a_bug(
        self, fuzzed: RawApp, endpoint: tuple[str, str], inner: dict[str, object]
    ) -> None:
        assert_never_a_bug(fuzzed.send(*endpoint, inner).response, {200, 400, 403, 404})

    @settings(fuzzing, max_examples=60)
    @given(endpoint=endpoints, plaintext=st.binary(max_size=60))
    def test_no_sealed_bytes_are_a_bug(self, fuzzed: RawApp, endpoint: tuple[str, str], plaintext: bytes) -> None:
        envelope = wire.seal(fuzzed.identity.tee, fuzzed.target.tee_pubkey, wire.CAPSULE_LABEL, plaintext)
        assert_never_a_bug(fuzzed.send(*endpoint, envelope=envelope).response, {400})

    @settings(fuzzing, max_examples=60)
    @given(
        endpoint=endpoints,
        body=st.one_of(
            st.binary(max_size=60),
            st.dictionaries(st.sampled_from(["sender_tee_pubkey", "nonce", "encrypted_data", "x"]), values).map(
                lambda body: json.dumps(body).encode()
            ),
        ),
    )
    def test_no_body_is_a_bug(self, fuzzed: RawApp, endpoint: tuple[str, str], body: bytes) -> None:
        assert_never_a_bug(fuzzed.send(*endpoint, body=body).response, {400, 403})

    @settings(fuzzing, max_examples=60)
    @given(
        target=st.lists(
            st.sampled_from(
                ["a", "/", "%2F", "%", "%C3", "%A9", "+", "%2B", ".", "?", "key", "=", "&", ";", "~", "%00"]
            ),
            max_size=8,
        )
    )
    def test_no_target_is_a_bug(self, fuzzed: RawApp, target: list[str]) -> None:
        response = exchange(fuzzed.target.url, "GET", "/kms/data/" + "".join(target), proof_of(fuzzed).headers())
        assert_never_a_bug(response, {200, 400, 404})

"""The emulator of the platform's API against what is known about that API, so that tests on it mean something."""

import hashlib
import json
from collections.abc import Iterator

import httpx
import pytest

from tests.support.odyn_emulator import REPLAY_MEMORY, OdynEmulator, serve_odyn
from tests.support.secure_module import SecureModuleBench

ENCLAVE_SCALAR = int.from_bytes(b"\x11" * 48)
CLIENT_SPKI = (
    "3076301006072a8648ce3d020106052b8104002203620004"
    "4f2bda7fd2105f8467e21f45223ad58863ffa4c084832d9f6c64ffc47fdd519727ab53cb71f9c40de24b64acde61f02f"
    "c7dce130b612fa5dbcac94573a2354fd005d8e9caefdc5fde48304474708bbd82f77e1fd2c630bea236f6f8dccc1678e"
)
ENCLAVE_SPKI = (
    "3076301006072a8648ce3d020106052b8104002203620004"
    "386e767ea5cb716c9cd620ff7342129c892a6fccefe612140c80bff59e943468019dda16e5079b0c1d9001d23a624b6d"
    "d088d0c3826394194787403e8a7d07e5e22f7e9c0b8e80fa1faff5d28b4bb597b267f0b87023ca61fc8454bddefd2e0e"
)
NONCE = "000102030405060708090a0b"
SEALED = "648f1dca6ee3251fa897aa113a5c05285d82042d5335c8e62dd00c277f"  # of "hello enclave"


@pytest.fixture
def emulator() -> OdynEmulator:
    return OdynEmulator(agreement_scalar=ENCLAVE_SCALAR)


@pytest.fixture
def client(emulator: OdynEmulator) -> Iterator[httpx.Client]:
    with serve_odyn(emulator) as url, httpx.Client(base_url=url, trust_env=False) as client:
        yield client


def decrypt(client: httpx.Client, **changes: str) -> httpx.Response:
    request = {"nonce": NONCE, "client_public_key": CLIENT_SPKI, "encrypted_data": SEALED, **changes}
    return client.post("/v1/encryption/decrypt", json=request)


def test_it_opens_the_known_answer_once(client: httpx.Client) -> None:
    assert decrypt(client).json() == {"plaintext": "hello enclave"}

    again = decrypt(client)
    assert (again.status_code, again.text) == (400, "Nonce reuse detected for client_public_key")
    assert "content-type" not in again.headers


def test_a_failed_attempt_burns_the_nonce(client: httpx.Client) -> None:
    assert decrypt(client, encrypted_data="00" * 29).text.startswith("Decryption failed: ")
    assert decrypt(client).text == "Nonce reuse detected for client_public_key"


def test_the_fingerprint_is_of_the_key_as_sent_and_the_nonce(emulator: OdynEmulator, client: httpx.Client) -> None:
    decrypt(client)

    assert hashlib.sha256(bytes.fromhex(CLIENT_SPKI + NONCE)).hexdigest() == (
        "d99a3e84ad0e864aaa40f8c8e7b34823fcbbb326887f8a3454f6cd990c423b24"
    )
    assert [seen.hex()[:8] for seen in emulator._seen] == ["d99a3e84"]
    assert decrypt(client, client_public_key=CLIENT_SPKI + "00").status_code == 200


def test_it_forgets_the_oldest_of_more_than_4096_nonces(emulator: OdynEmulator) -> None:
    request = {"client_public_key": CLIENT_SPKI, "encrypted_data": "00" * 16}
    for number in range(REPLAY_MEMORY + 1):
        with pytest.raises(Exception, match="Decryption failed"):
            emulator._decrypt({**request, "nonce": number.to_bytes(12).hex()})

    for number, text in ((0, "Decryption failed"), (REPLAY_MEMORY, "Nonce reuse")):
        with pytest.raises(Exception, match=text):
            emulator._decrypt({**request, "nonce": number.to_bytes(12).hex()})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"nonce": "zz"}, "Invalid nonce hex: "),
        ({"nonce": "00 01"}, "Invalid nonce hex: "),
        ({"nonce": "00" * 16}, "Invalid nonce length: expected 12 bytes (or 32-byte legacy nonce), got 16"),
        ({"client_public_key": "0x0"}, "Invalid client_public_key hex: "),
        ({"encrypted_data": "x"}, "Invalid encrypted_data hex: "),
        ({"client_public_key": "00"}, "Decryption failed: "),
        ({"encrypted_data": ""}, "Decryption failed: "),
    ],
)
def test_bad_input_is_a_400_in_plain_text(client: httpx.Client, changes: dict[str, str], text: str) -> None:
    answer = decrypt(client, **changes)

    assert answer.status_code == 400
    assert answer.text.startswith(text)
    assert "content-type" not in answer.headers


def test_hex_may_have_a_prefix_and_either_case(client: httpx.Client) -> None:
    assert decrypt(client, nonce="0x" + NONCE.upper(), encrypted_data="0x" + SEALED.upper()).status_code == 200


def test_json_errors_are_a_400_and_a_content_type_does_not_matter(client: httpx.Client) -> None:
    missing = client.post("/v1/encryption/decrypt", content=b"{}")

    assert (missing.status_code, missing.text) == (400, "missing field `nonce` at line 1 column 2")
    assert client.post("/v1/eth/sign", content=b"{").status_code == 400
    assert (
        client.post("/v1/eth/sign", content=b'{"message":"x"}', headers={"Content-Type": "text/x"}).status_code == 200
    )
    assert client.post("/v1/eth/sign", json={"message": ""}).text == "Message cannot be empty"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("PUT", "/v1/random", 405)])
def test_unknown_paths_and_methods_are_empty(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)

    assert (answer.status_code, answer.content) == (status, b"")


def test_a_body_over_ten_mebibytes_is_a_413(client: httpx.Client) -> None:
    answer = client.post("/v1/eth/sign", content=b" " * (10 * 1024 * 1024 + 1))

    assert answer.status_code == 413
    assert answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/attestation", {}), ("/v1/eth/sign", {"message": "x", "include_attestation": True})],
)
def test_a_handler_that_fails_drops_the_connection(client: httpx.Client, path: str, body: dict[str, object]) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        client.post(path, json=body)

    assert client.get("/v1/random").status_code == 200


def test_attestation_can_be_refused_instead(emulator: OdynEmulator, client: httpx.Client) -> None:
    emulator.faults.attestation = "refuse"

    assert client.post("/v1/attestation", json={}).status_code == 400


def test_identity_has_the_documented_forms(emulator: OdynEmulator, client: httpx.Client) -> None:
    address = client.get("/v1/eth/address").json()
    key = client.get("/v1/encryption/public_key").json()

    assert address["address"] == emulator.address == emulator.address.lower()
    assert address["public_key"].startswith("0x04")
    assert len(address["public_key"]) == 132
    assert key["public_key_der"] == "0x" + ENCLAVE_SPKI
    assert key["public_key_pem"].splitlines()[0] == "-----BEGIN PUBLIC KEY-----"
    assert key["public_key_pem"].endswith("-----END PUBLIC KEY-----")


def test_what_it_encrypts_comes_without_a_prefix(client: httpx.Client) -> None:
    answer = client.post("/v1/encryption/encrypt", json={"plaintext": "hé", "client_public_key": CLIENT_SPKI}).json()

    assert answer["enclave_public_key"] == ENCLAVE_SPKI
    assert len(bytes.fromhex(answer["nonce"])) == 12
    assert len(bytes.fromhex(answer["encrypted_data"])) == 3 + 16


def test_a_document_states_what_the_runtime_adds_and_cuts() -> None:
    module = SecureModuleBench()
    emulator = OdynEmulator(secure_module=module.exchange)
    with serve_odyn(emulator) as url, httpx.Client(base_url=url, trust_env=False) as client:
        bare = client.post("/v1/attestation", json={})
        pem = client.get("/v1/encryption/public_key").json()["public_key_pem"]
        full = client.post(
            "/v1/attestation",
            json={"nonce": "bm9uY2U=", "public_key": pem, "user_data": {"eth_addr": "0x00", "a": 1}},
        )
        refused = client.post("/v1/attestation", json={"user_data": "YQ=="})

    assert bare.headers["content-type"] == "application/cbor"
    stated = module.verify(bare.content, None)
    assert (stated.public_key, stated.nonce) == (emulator.public_der, None)
    assert stated.user_data == b'{"eth_addr":"%b"}' % emulator.address.encode()
    stated = module.verify(full.content, b"nonce")
    assert stated.public_key == emulator.public_der[-97:]
    assert json.loads(stated.user_data or b"") == {"eth_addr": emulator.address, "a": 1}
    assert refused.status_code == 400

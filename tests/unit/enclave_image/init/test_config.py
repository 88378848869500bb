"""Measured configuration and run-time parameters: what is taken, what is refused, what is hashed."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_image.init.config import (
    parameters_digest,
    parse_measured_config,
    parse_parameters,
    service_environment,
)
from enclave_image.init.errors import BootError

COMMITTED = (Path(__file__).parents[4] / "enclave_image/appliance.toml").read_bytes()


def test_the_committed_configuration_is_one():
    config = parse_measured_config(COMMITTED)
    assert config.environment["IN_ENCLAVE"] == "true"
    assert (config.user, config.group) == (1000, 1000)
    assert (config.parent_cid, config.heartbeat_port) == (3, 9000)


REFUSED_CONFIGS = {
    "not TOML": b"[",
    "not UTF-8": b"\xff",
    "no service": COMMITTED.replace(b"[service]", b"[other]"),
    "relative program": COMMITTED.replace(b"/usr/bin/python3.13", b"python3.13"),
    "no command": COMMITTED.replace(b"command =", b"commands ="),
    "user as text": COMMITTED.replace(b"user = 1000", b'user = "root"'),
    "unknown name": COMMITTED.replace(b"[parent]", b"[parent]\nother = 1"),
    "unknown table": COMMITTED + b"[more]\n",
    "lower-case variable": COMMITTED + b'path = "x"\n',
    "number as value": COMMITTED + b"CHAIN_ID = 1\n",
}


@pytest.mark.parametrize("data", REFUSED_CONFIGS.values(), ids=REFUSED_CONFIGS)
def test_another_form_of_the_configuration_is_refused(data):
    with pytest.raises(BootError):
        parse_measured_config(data)


def test_parameters_of_the_allow_list_are_taken():
    data = b'{"egress":"3:8001","instance_url":"https://kms.example:8443","log_level":"WARNING"}'
    parameters = parse_parameters(data)
    assert parameters_digest(parameters) == hashlib.sha384(data).digest()
    environment = service_environment(parse_measured_config(COMMITTED), parameters, bytes(48))
    assert environment["NODE_INSTANCE_URL"] == "https://kms.example:8443"
    assert (environment["EGRESS_PROXY"], environment["LOG_LEVEL"]) == ("3:8001", "WARNING")
    assert environment["ENCLAVE_CONFIG_DIGEST"] == "00" * 48


def test_the_digest_does_not_depend_on_how_the_parent_spells_the_object():
    spelled = b' { "log_level" : "INFO" , "egress" : "3:8001" } '
    assert (
        parameters_digest(parse_parameters(spelled))
        == hashlib.sha384(b'{"egress":"3:8001","log_level":"INFO"}').digest()
    )


def test_no_bytes_are_no_parameters():
    assert parse_parameters(b"") == {}


REFUSED_PARAMETERS = {
    "not JSON": b"{",
    "no object": b"[]",
    "trust root": b'{"chain_id":"1"}',
    "variable by its name": b'{"KMS_APP_ID":"1"}',
    "repeated": b'{"log_level":"INFO","log_level":"DEBUG"}',
    "number": b'{"log_level":1}',
    "unknown level": b'{"log_level":"TRACE"}',
    "other scheme": b'{"instance_url":"file:///etc"}',
    "space in URL": b'{"instance_url":"https://a b"}',
    "line break in URL": b'{"instance_url":"https://a\\nb"}',
    "long URL": b'{"instance_url":"https://' + b"a" * 241 + b'"}',
    "egress without port": b'{"egress":"3"}',
    "egress port too large": b'{"egress":"3:4294967295"}',
    "egress in other digits": '{"egress":"3:８"}'.encode(),
    "too long": b'{"log_level":"INFO"}' + b" " * 4096,
    "deep": b"[" * 4000,
    "not UTF-8": b'{"log_level":"\xff"}',
}


@pytest.mark.parametrize("data", REFUSED_PARAMETERS.values(), ids=REFUSED_PARAMETERS)
def test_other_parameters_are_refused(data):
    with pytest.raises(BootError):
        parse_parameters(data)


@given(st.binary(max_size=200))
def test_no_parameters_break_the_parser(data):
    try:
        parse_parameters(data)
    except BootError:
        return

"""Run-time parameters: what is sent is what the image's first process takes."""

import anyio
import pytest

from appliance.host.parameters import RuntimeParameters, answer_parameters, encode_parameters
from appliance.settings import LogLevel
from enclave_image.init.config import parse_parameters
from tests.support.unix_wires import UnixWires, received

PORT = 9001
ALL = RuntimeParameters("https://kms1.example.org", LogLevel.DEBUG, "3:8001")


@pytest.mark.parametrize(
    ("parameters", "held"),
    [
        (ALL, {"instance_url": "https://kms1.example.org", "log_level": "DEBUG", "egress": "3:8001"}),
        (RuntimeParameters(egress="3:8001"), {"egress": "3:8001"}),
        (RuntimeParameters(), {}),
    ],
    ids=["all", "one", "none"],
)
def test_the_first_process_takes_them(parameters: RuntimeParameters, held: dict[str, str]) -> None:
    assert parse_parameters(encode_parameters(parameters)) == held


@pytest.mark.anyio
async def test_they_are_told_once(wires: UnixWires) -> None:
    listener = wires.listen(PORT)
    async with anyio.create_task_group() as group:
        group.start_soon(answer_parameters, listener, ALL)
        async with await wires.connect_from_enclave(PORT) as stream:
            assert await received(stream) == encode_parameters(ALL)
    assert listener.fileno() == -1
    with pytest.raises(OSError, match="refused"):
        await wires.connect_from_enclave(PORT)


@pytest.mark.anyio
async def test_a_connection_that_breaks_does_not_use_them_up(wires: UnixWires) -> None:
    listener = wires.listen(PORT)
    async with await wires.connect_from_enclave(PORT):
        pass  # gone before anybody accepted it
    async with anyio.create_task_group() as group:
        group.start_soon(answer_parameters, listener, ALL)
        with anyio.fail_after(10):
            async with await wires.connect_from_enclave(PORT) as stream:
                assert await received(stream) == encode_parameters(ALL)

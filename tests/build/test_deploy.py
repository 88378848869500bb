"""The container recipes: what they copy exists, what they set is accepted, and their ports agree."""

import json
import re
from pathlib import Path

import pytest

from appliance.settings import Settings, TeeProviderName
from appliance.urls import url_origin
from appliance.variables import TcpAddress

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ROOT / "deploy" / "Dockerfile"
PLATFORM = ROOT / "deploy" / "container" / "Dockerfile"
MANIFEST = ROOT / "deploy" / "container" / "capsule.yaml"
KNOWN = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "ENTRYPOINT", "CMD", "ENV"}


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Instruction and arguments of each line, continued lines joined, comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def environment() -> dict[str, str]:
    """What the platform's container sets."""
    return dict(word.split("=", 1) for name, rest in instructions(PLATFORM) if name == "ENV" for word in rest.split())


def manifest_value(name: str) -> list[str]:
    return re.findall(rf"^\s*(?:- )?{name}: \"?([^\"\n]+)\"?$", MANIFEST.read_text(), re.MULTILINE)


@pytest.mark.parametrize("dockerfile", [PLAIN, PLATFORM], ids=["plain", "platform"])
def test_every_line_is_an_instruction_we_mean(dockerfile: Path) -> None:
    names = [name for name, _ in instructions(dockerfile)]
    assert names[0] == "FROM"
    assert set(names) <= KNOWN


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    ignored = (PLAIN.parent / "Dockerfile.dockerignore").read_text().splitlines()
    copies = [rest.split() for name, rest in instructions(PLAIN) if name == "COPY" and not rest.startswith("--from")]
    sources = [source for *some, _ in copies for source in some]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source.rstrip('/')}" in ignored


def test_stages_that_are_copied_from_are_defined() -> None:
    lines = instructions(PLAIN)
    stages = {rest.split()[-1] for name, rest in lines if name == "FROM" and " AS " in rest}
    assert {rest.split()[0] for name, rest in lines if name == "COPY" and rest.startswith("--from")} == {
        f"--from={stage}" for stage in stages
    }


def test_python_packages_are_installed_by_hash_and_offline_otherwise() -> None:
    installs = re.findall(r"pip (?:install|wheel) ([^&]*)", "&".join(rest for _, rest in instructions(PLAIN)))
    assert len(installs) == 4
    assert all("--require-hashes" in words or "--no-index" in words for words in installs)


def test_the_node_runs_without_privileges() -> None:
    last_stage = instructions(PLAIN)[max(i for i, (name, _) in enumerate(instructions(PLAIN)) if name == "FROM") :]
    assert [rest for name, rest in last_stage if name == "USER"] == ["nova-kms"]
    entry = [json.loads(rest) for name, rest in last_stage if name in ("ENTRYPOINT", "CMD")]
    assert entry == [["/opt/nova-kms/bin/nova-kms"], ["serve"]]


def test_what_the_platform_s_container_sets_is_accepted_and_its_ports_are_the_manifest_s() -> None:
    settings = Settings.from_environ(environment())
    assert settings.tee_provider is TeeProviderName.ODYN
    assert set(environment()) <= {variable.name for variable in Settings.describe()}
    assert isinstance(settings.bind_addr, TcpAddress)
    assert isinstance(settings.egress_proxy, TcpAddress)
    assert manifest_value("listen_port") == [str(settings.bind_addr.port), str(url_origin(settings.odyn_url)[2])]
    assert manifest_value("proxy_port") == [str(settings.egress_proxy.port)]
    assert manifest_value("local_rpc_port") == [str(url_origin(settings.helios_rpc_urls[0])[2])]
    assert manifest_value("network_id") == [str(settings.chain_id)]


def test_the_manifest_has_the_names_of_its_schema_only() -> None:
    names = re.findall(r"^([a-z_]+):", MANIFEST.read_text(), re.MULTILINE)
    assert len(names) == len(set(names))
    assert set(names) <= {
        "version", "name", "target", "sources", "signature", "ingress", "egress", "defaults", "api", "aux_api",
        "storage", "kms_integration", "helios_rpc", "clock_sync",
    }  # fmt: skip

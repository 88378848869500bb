"""What is in an image, as CycloneDX 1.6 JSON: packages, wheels and the kernel, each by version and SHA-256."""

import json
from typing import Final
from urllib.parse import quote

from enclave_image.lock import Lock, Use
from enclave_image.wheel import split_wheel_name

SPEC_VERSION: Final = "1.6"


def _component(kind: str, name: str, version: str, purl: str, sha256: str) -> dict[str, object]:
    return {
        "type": kind,
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": sha256}],
    }


def encode_sbom(lock: Lock, name: str, version: str, eif_sha256: str, kernel_version: str) -> str:
    """The SBOM of an image made from `lock`: without time and serial number, so the same for the same image."""
    components: list[dict[str, object]] = []
    for deb in lock.debs_for(Use.RUNTIME):
        purl = f"pkg:deb/debian/{quote(deb.name)}@{quote(deb.version, safe='')}?arch={deb.architecture}&distro=trixie"
        components.append(_component("library", deb.name, deb.version, purl, deb.sha256))
    for wheel in lock.wheels_for(Use.RUNTIME):
        package, release = split_wheel_name(wheel.file_name)
        purl = f"pkg:pypi/{package}@{quote(release, safe='')}"
        components.append(_component("library", package, release, purl, wheel.sha256))
    for deb in lock.debs_for(Use.KERNEL):
        purl = f"pkg:deb/debian/{quote(deb.name)}@{quote(deb.version, safe='')}?arch={deb.architecture}&distro=trixie"
        component = _component("operating-system", "linux", kernel_version.split(" ", 1)[0], purl, deb.sha256)
        components.append(component)
    subject = {
        "type": "firmware",
        "bom-ref": name,
        "name": name,
        "version": version,
        "hashes": [{"alg": "SHA-256", "content": eif_sha256}],
    }
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {"component": subject},
        "components": components,
        "dependencies": [{"ref": name, "dependsOn": [component["bom-ref"] for component in components]}],
    }
    return json.dumps(document, indent=2, ensure_ascii=True) + "\n"

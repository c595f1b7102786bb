"""What deploy/ holds for a real server: valid by the formats' own schemas, closed by default, without a secret."""

import configparser
import json
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = [DEPLOY / "compose.yaml", DEPLOY / "celery/compose.yaml"]
UNITS = sorted([*DEPLOY.glob("systemd/*.service"), *DEPLOY.glob("celery/*.service")])
# What a unit of ours must say; systemd's own verdict on the whole is a system test.
HARDENED = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "CapabilityBoundingSet": "",
    "EnvironmentFile": "/etc/uuid-pipeline/env",
    "User": "uuid-pipeline",
    "UMask": "0077",
}


def compose_schema() -> Any:
    vendored = resources.files("check_jsonschema.builtin_schemas.vendor").joinpath("compose-spec.json")
    return json.loads(vendored.read_text())


def read_compose(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict)
    return found


def read_unit(path: Path) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser["Service"]


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.parent.name)
def test_a_compose_file_is_valid_by_the_formats_own_schema(path: Path) -> None:
    jsonschema.validate(read_compose(path), compose_schema())


def test_the_schema_refuses_what_is_no_compose_file() -> None:
    broken = read_compose(COMPOSE[0])
    broken["services"]["webserver"]["prots"] = ["443:443"]

    with pytest.raises(jsonschema.ValidationError, match="prots"):
        jsonschema.validate(broken, compose_schema())


def test_only_the_proxys_port_is_published_and_every_service_gives_up_its_rights() -> None:
    services = {name: service for path in COMPOSE for name, service in read_compose(path)["services"].items()
                if "image" in service}  # fmt: skip

    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"webserver": ["443:443"]}
    assert {"webserver", "daemon", "health", "proxy", "redis", "worker-1", "worker-2"} <= set(services)
    for name, service in services.items():
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
    webserver = services["webserver"]["command"]
    assert webserver[webserver.index("--host") + 1] == "127.0.0.1"
    assert services["proxy"]["network_mode"] == "service:webserver"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_is_hardened_and_listens_on_loopback_if_at_all(path: Path) -> None:
    unit = read_unit(path)

    assert {name: unit.get(name) for name in HARDENED} == HARDENED
    words = shlex.split(unit["ExecStart"])
    assert words[0].startswith("/opt/uuid-pipeline/bin/")
    for option in ("--host", "--listen"):
        if option in words:
            assert words[words.index(option) + 1].startswith("127.0.0.1")


def test_there_is_a_unit_for_each_process() -> None:
    assert [path.name for path in UNITS] == [
        "uuid-pipeline-worker@.service",
        "uuid-pipeline-daemon.service",
        "uuid-pipeline-health.service",
        "uuid-pipeline-webserver.service",
    ]


def test_no_file_holds_a_secret() -> None:
    in_url = re.compile(r"://[^/\s:@]*:([^@\s]+)@")
    files = [path for path in DEPLOY.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        text = path.read_text()
        assert [secret for secret in in_url.findall(text) if secret not in ("CHANGE_ME", "PASSWORD")] == [], path
        assert not re.search(r"(?i)^\s*[a-z_]*password\s*[:=]\s*[^\s$]", text, re.MULTILINE), path
    instance = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    assert instance["storage"]["postgres"]["postgres_url"] == {"env": "UUID_PIPELINE_DAGSTER_URL"}

"""What docs/deploy starts exists: manifests hang together, and every command is one that the real parsers take."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from torch.distributed.run import get_args_parser
from typer.core import TyperGroup
from typer.exceptions import TyperException

from rookery.cli.main import app
from rookery.config.loader import parse_config
from rookery.parallel.config import ParallelConfig
from rookery.ranker.config import RankerConfig
from rookery.twhin.config import TwhinConfig

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
SCRIPTS = sorted((DEPLOY / "slurm").glob("*.sbatch"))
KINDS = {
    "Service": "v1",
    "Job": "batch/v1",
    "Deployment": "apps/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PyTorchJob": "kubeflow.org/v1",
}


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def all_documents() -> list[dict[str, Any]]:
    return [document for file in MANIFESTS for document in documents(file)]


def templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of a document."""
    spec = document["spec"]
    replicas = spec.get("pytorchReplicaSpecs", {}).values()
    return [spec["template"]] if "template" in spec else [replica["template"] for replica in replicas]


def containers() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """File, pod and container of every container."""
    return [
        (file.name, template["spec"], container)
        for file in MANIFESTS
        for document in documents(file)
        for template in templates(document)
        for container in (*template["spec"].get("initContainers", ()), *template["spec"]["containers"])
    ]


def lines_of(script: Path) -> Iterator[list[str]]:
    """The commands of a script that start something, without what launches them and what follows."""
    for line in script.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        started = re.match(r"(?:srun (?:--\S+ )*)?((?:torchrun|rookery) .*?)\s*&?$", line)
        if started:
            yield shlex.split(re.sub(r'(--processes|--per-machine) "\$[^"]+"', r"\1 2", started[1]))


def in_the_dockerfile() -> list[str]:
    (command,) = re.findall(r"^CMD (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return yaml.safe_load(command)


COMMANDS = [
    *[(name, container["command"]) for name, _, container in containers()],
    *[(script.name, command) for script in SCRIPTS for command in lines_of(script)],
    ("Dockerfile", in_the_dockerfile()),
]


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that ``words`` name, and what is passed to it."""
    command: Any = typer.main.get_command(app)
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]!r}; there are {sorted(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(words: list[str]) -> None:
    """Raises what typer raises for flags that do not exist and arguments that are missing or too many."""
    command, rest = resolve(words)
    if rest != ["--help"]:
        command.make_context(command.name, rest)


def settings(command: list[str]) -> dict[str, str]:
    """What a command sets with ``--set``, by field."""
    words = " ".join(command).replace("--set=", "--set ").split()
    pairs = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    return dict(pair.split("=", 1) for pair in pairs)


def rookery_part(command: list[str]) -> list[str]:
    """What the command passes to rookery; torchrun's own part goes through its own parser."""
    if command[0] == "rookery":
        return command[1:]
    assert command[0] == "torchrun", command
    launch = get_args_parser().parse_args(command[1:])
    assert (launch.module, launch.training_script) == (True, "rookery")
    return launch.training_script_args


@pytest.mark.parametrize(("file", "command"), COMMANDS, ids=[f"{f}: {' '.join(c[:3])}" for f, c in COMMANDS])
def test_every_command_is_one_that_there_is(file, command):
    parse(rookery_part(command))


@pytest.mark.parametrize(
    "words",
    ["twhin trian c.yaml", "twhin train c.yaml --savedir x", "twhin train", "ranker evaluate r s --follow"],
)
def test_a_wrong_command_would_be_found(words):
    with pytest.raises((TyperException, AssertionError)):
        parse(words.split())


@pytest.mark.parametrize("schema", [TwhinConfig, RankerConfig])
def test_every_field_that_is_set_is_one_that_there_is(schema):
    paths = {path for _, command in COMMANDS for path in settings(command)}
    assert paths == {"parallel.num_lanes"}
    for path in paths:
        model: Any = schema
        for name in path.split("."):
            model = model.model_fields[name].annotation


def test_every_file_starts_something():
    assert {name for name, _ in COMMANDS} == {file.name for file in (*MANIFESTS, *SCRIPTS)} | {"Dockerfile"}


def test_documents_are_of_known_kinds():
    found = {(document["kind"], document["apiVersion"]) for document in all_documents()}
    assert found == set(KINDS.items())
    assert all(document["metadata"]["name"] for document in all_documents())


def test_selectors_select_pods_that_there_are():
    labels = [template["metadata"]["labels"] for document in all_documents() for template in templates(document)]
    for document in all_documents():
        spec = document["spec"]
        selector = spec.get("podSelector") or spec.get("selector")
        if selector:
            wanted = selector.get("matchLabels", selector)
            pods = [one["metadata"]["labels"] for one in templates(document)] or labels
            assert any(wanted.items() <= pod.items() for pod in pods), document["metadata"]


def test_services_name_ports_that_containers_open():
    for file in MANIFESTS:
        services = [document["spec"] for document in documents(file) if document["kind"] == "Service"]
        opened = {
            (port["name"], port["containerPort"])
            for name, _, container in containers()
            for port in container.get("ports", [])
            if name == file.name
        }
        assert {(port["name"], port["port"]) for spec in services for port in spec["ports"]} == opened
        assert all(spec["clusterIP"] == "None" for spec in services)


@pytest.mark.parametrize(("file", "pod", "container"), containers(), ids=lambda value: str(value)[:16])
def test_pods_are_whole(file, pod, container):
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert mounted <= volumes if container in pod.get("initContainers", ()) else mounted == volumes
    assert pod["securityContext"]["runAsNonRoot"] and not container["securityContext"]["allowPrivilegeEscalation"]
    assert f"--uid {pod['securityContext']['runAsUser']}" in (ROOT / "Dockerfile").read_text()
    assert container["image"] == "rookery:latest"
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    mounts = tuple(mount["mountPath"] for mount in container["volumeMounts"])
    paths = [word for word in container["command"] if word.startswith("/")]
    assert paths and all(path.startswith(mounts) for path in paths)


def test_the_configuration_names_the_service_of_the_readers():
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", (DEPLOY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    readers = parse_config(ParallelConfig, yaml.safe_load(text)["parallel"], "README.md").readers
    service = documents(DEPLOY / "kubernetes" / "readers.yaml")[0]
    assert readers is not None and readers.environment == "kubernetes"
    assert readers.addresses == (f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}",)
    mounted = [container["volumeMounts"] for name, _, container in containers() if name == "train.yaml"]
    assert str(readers.token_file.parent) in {mount["mountPath"] for mounts in mounted for mount in mounts}


def test_the_job_meets_at_its_first_pod():
    service, job = documents(DEPLOY / "kubernetes" / "train.yaml")
    spec, name = job["spec"], job["metadata"]["name"]
    pod = spec["template"]["spec"]
    launch = get_args_parser().parse_args(pod["containers"][0]["command"][1:])
    assert spec["completionMode"] == "Indexed"
    assert int(launch.nnodes) == spec["completions"] == spec["parallelism"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert launch.rdzv_endpoint == f"{name}-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}"
    assert service["spec"]["publishNotReadyAddresses"]


def test_jobs_fail_at_once_where_a_container_can_end_with_2():
    """torchrun cannot: it ends with 1 whatever its ranks end with."""
    for document in all_documents():
        for rule in document["spec"].get("podFailurePolicy", {}).get("rules", ()):
            if rule["action"] == "FailJob":
                name = rule["onExitCodes"]["containerName"]
                pod = document["spec"]["template"]["spec"]
                (command,) = (
                    each["command"]
                    for each in (*pod.get("initContainers", ()), *pod["containers"])
                    if each["name"] == name
                )
                assert command[0] == "rookery"


def test_elastic_trainings_have_a_lane_for_every_process():
    """By default a run has as many as the processes that begin it: 2 of up to 4 machines."""
    (job,) = documents(DEPLOY / "kubernetes" / "pytorchjob.yaml")
    most = job["spec"]["elasticPolicy"]["maxReplicas"] * int(job["spec"]["nprocPerNode"])
    (template,) = templates(job)
    assert int(settings(template["spec"]["containers"][0]["command"])["parallel.num_lanes"]) >= most


def test_ranks_have_time_for_a_checkpoint():
    for _, pod, container in containers():
        if container["command"][0] == "torchrun":
            launch = get_args_parser().parse_args(container["command"][1:])
            assert pod["terminationGracePeriodSeconds"] > launch.shutdown_timeout > 30
    (script,) = (DEPLOY / "slurm").glob("train.sbatch")
    (command,) = (command for command in lines_of(script) if command[0] == "torchrun")
    (before_s,) = re.findall(r"^#SBATCH --signal=B:TERM@(\d+)$", script.read_text(), re.MULTILINE)
    assert int(before_s) > get_args_parser().parse_args(command[1:]).shutdown_timeout


def test_hadolint_finds_nothing():
    linter = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([linter, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_the_image_installs_as_the_project_does():
    text = (ROOT / "Dockerfile").read_text()
    named = set(re.findall(r"(?:scripts|requirements)/[\w.-]+", text))
    assert named == {"scripts/install", *(f"requirements/{file.name}" for file in (ROOT / "requirements").iterdir())}
    assert all((ROOT / name).is_file() for name in named)
    assert not re.search(r"https?://", text)
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    kept = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert {name for names in copied for name in names.split()} == kept


def stages() -> dict[str, str]:
    """The stages of the Dockerfile by name, the last one under ``""``."""
    text = (ROOT / "Dockerfile").read_text()
    parts = re.split(r"^(?=FROM )", text, flags=re.MULTILINE)[1:]
    named = [re.match(r"FROM \S+(?: AS (\S+))?", part) for part in parts]
    return {(match[1] or "") if match else "": part for match, part in zip(named, parts, strict=True)}


def extras_in(stage: str) -> set[str]:
    """The extras that pip installs on the way to a stage, in those that it is made from or copies from."""
    text = stages()[stage]
    from_here = set(re.findall(r"\.\[([\w-]+)\]", text))
    if "scripts/install base" in text:
        (line,) = re.findall(r"^base\) (.+)$", (ROOT / "scripts" / "install").read_text(), re.MULTILINE)
        from_here |= set(re.findall(r"\.\[([\w-]+)\]", line))
    before = set(re.findall(r"^(?:FROM |COPY --from=)(\S+)", text, re.MULTILINE)) & stages().keys()
    return from_here.union(*map(extras_in, before))


def test_the_images_have_the_extras_of_their_roles():
    """An extra that a command asks for at run time is in one of the images, or the page says that it is in none."""
    asked = {
        extra
        for file in (ROOT / "src" / "rookery").rglob("*.py")
        for extra in re.findall(r"pip install 'rookery\[([\w-]+)\]'", file.read_text(encoding="utf-8"))
    }
    page = (DEPLOY / "README.md").read_text()
    (absent,) = re.findall(r"Neither image has the extras (.+?)\.", " ".join(page.split()))
    assert extras_in("") == {"serve", "object-store", "cluster"}
    assert extras_in("spark") == extras_in("") | {"spark"}
    assert asked | {"cluster"} == extras_in("spark") | set(re.findall(r"`([\w-]+)`", absent))


def test_java_is_where_the_ingest_looks_for_it():
    text = stages()["spark"]
    (home,) = re.findall(r"^ENV JAVA_HOME=(\S+)$", text, re.MULTILINE)
    (version,) = re.findall(rf"^COPY --from=eclipse-temurin:(\d+)-jre \S+ {re.escape(home)}$", text, re.MULTILINE)
    assert int(version) >= 17


def test_spark_is_asked_of_no_other_image():
    assert not any("spark" in command for _, command in COMMANDS)
    assert "--target spark" in (DEPLOY / "README.md").read_text()

"""prefect.kubernetes.yaml as Prefect reads it: flows that are there, parameters and job variables that are known."""

import json
from pathlib import Path

import jsonschema
import prefect
import pytest
import yaml
from paths import ROOT
from prefect.cli.deploy._config import _load_deploy_configs_and_actions
from prefect.flows import load_flow_from_entrypoint
from rich.console import Console

FILE = ROOT / "prefect.kubernetes.yaml"
KINDS = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"


def loaded(file: Path) -> list:
    """(flow, deployment) of each deployment in the file. Prefect's loader leaves out those that it cannot read."""
    deployments, actions = _load_deploy_configs_and_actions(file, console=Console())
    assert actions["pull"]
    return [(load_flow_from_entrypoint(deployment["entrypoint"]), deployment) for deployment in deployments]


def test_every_deployment_can_be_made(monkeypatch):
    monkeypatch.chdir(ROOT)
    template = json.loads(KINDS.read_text())["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    variables = template["variables"]
    found = loaded(FILE)
    assert [flow.name for flow, _ in found] == ["curate-instructar", "rerun-stage"]
    for flow, deployment in found:
        config = flow.validate_parameters(deployment["parameters"])["config"]
        assert config.root.startswith("s3://")
        pool = deployment["work_pool"]
        assert pool["name"] == "kubernetes"
        assert set(pool["job_variables"]) <= set(variables["properties"])
        jsonschema.validate(pool["job_variables"], variables)


@pytest.mark.parametrize("entrypoint", ["flows/curate.py:curate_instructor", "flows/curat.py:curate_instructar"])
def test_a_misspelt_entrypoint_is_found(tmp_path, monkeypatch, entrypoint):
    monkeypatch.chdir(ROOT)
    settings = yaml.safe_load(FILE.read_text())
    settings["deployments"][0]["entrypoint"] = entrypoint
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(Exception, match=r"not found|No such file|curate_instructor"):
        loaded(tmp_path / "prefect.yaml")

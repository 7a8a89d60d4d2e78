"""What Prefect makes a form of: the flows' parameters, a choice of backends for every section."""

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import is_valid, validate

from flows.curate import curate_instructar, rerun_stage
from flows.evaluate import evaluate_tokenar
from flows.train import train_tokenar
from pipeline.config import STAGE_SECTIONS, CurationConfig

BACKENDS = {
    "synthesis": ["collage", "dreamrelation", "own stage"],
    "matting": ["grabcut", "ben2", "pasted", "own stage"],
    "semantics": ["imagenet", "transformers", "openai", "none", "own stage"],
    "identity": ["efficientnet", "timm", "none", "own stage"],
    "quality": ["correspondence", "none", "own stage"],
}


def schema_of(flow):
    return parameter_schema(flow.fn).model_dump_for_openapi()


@pytest.mark.parametrize("flow", [curate_instructar, rerun_stage, train_tokenar, evaluate_tokenar])
def test_the_form_knows_every_kind_of_choice(flow):
    """``oneOf`` is a field of raw JSON in it, ``anyOf`` a row of buttons with the titles."""
    assert "oneOf" not in str(schema_of(flow))


@pytest.mark.parametrize("flow", [curate_instructar, rerun_stage, train_tokenar, evaluate_tokenar])
def test_the_form_says_what_every_parameter_means(flow):
    schema = schema_of(flow)
    forms = {f"{name}.": form for name, form in schema["definitions"].items() if "properties" in form} | {"": schema}
    shown = {name + key: p for name, form in forms.items() for key, p in form["properties"].items()}
    assert [key for key, parameter in shown.items() if not parameter.get("description")] == []


@pytest.mark.parametrize("section", STAGE_SECTIONS)
def test_every_backend_has_a_form_of_its_own(section):
    definitions = schema_of(curate_instructar)["definitions"]
    choices = definitions["CurationConfig"]["properties"][section]["anyOf"]
    shown = [definitions[choice["$ref"].rsplit("/", 1)[1]] for choice in choices]
    assert [form["title"] for form in shown] == BACKENDS[section]
    for form in shown[:-1]:
        assert form["properties"]["backend"]["const"] == form["title"]
        assert not form.get("required"), "choosing a backend is enough"


def test_what_the_form_sends_is_checked_before_a_run_starts():
    schema = schema_of(curate_instructar)
    assert is_valid({"config": {"matting": {"backend": "ben2", "side": 512}}}, schema)
    assert is_valid({"config": {"matting": {"use": "mine:Matting"}}}, schema)
    assert validate({"config": {"matting": {"backend": "ben3"}}}, schema)


def test_a_filled_form_does_not_override_the_profile_with_defaults():
    """The form sends every field, changed or not."""

    def sent(**changes):
        return CurationConfig.model_validate(CurationConfig().model_dump(mode="json") | changes).on_profile("paper")

    config = sent(samples=8, references={"pool": "packaged", "size": 128})
    assert (config.samples, config.references.size, config.semantics.backend) == (8, 128, "transformers")
    assert config.references.pool == CurationConfig.load("paper").references.pool
    assert sent(synthesis={"backend": "collage", "size": 512, "fault_share": 0.2}).synthesis.backend == "collage"
    written = CurationConfig.parse({"semantics": {"backend": "imagenet"}}, "test")
    assert written.on_profile("paper").semantics.backend == "imagenet"

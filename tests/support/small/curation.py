"""The small curation on packaged photographs that several tests run."""

from pipeline.config import CurationConfig

SMALL = {"samples": 12, "part_size": 4, "planning": {"test_share": 0.25}, "shards": {"samples_per_shard": 4}}


def small_config(root, **changes) -> CurationConfig:
    return CurationConfig.parse({"name": "small", "root": str(root), **SMALL, **changes}, "test")


def made(result) -> set[str]:
    """Stages of which a part was made rather than found."""
    return {stage for stage, parts in result.summaries.items() if not all(p.cached for p in parts)}

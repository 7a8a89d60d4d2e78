"""Croissant metadata of an exported dataset: which files there are, and what their columns mean.

The format is MLCommons' Croissant 1.0, a JSON-LD vocabulary on top of schema.org (https://docs.mlcommons.org/croissant).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipeline.exchange.preview import PICTURES

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
PARQUET = "application/x-parquet"
PAPER = (
    "TokenAR: Multiple Subject Generation via Autoregressive Token-level Enhancement. arXiv:2510.16332, 2025. "
    "https://arxiv.org/abs/2510.16332"
)


def croissant(
    name: str,
    version: str,
    licence: str,
    description: str,
    files: Mapping[str, str],
    manifest: pa.Schema,
    preview: pa.Schema,
) -> dict[str, Any]:
    """The metadata as plain values. ``files`` maps the manifest's and the shards' names to their SHA-256."""
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "version": version,
        "license": licence,
        "citeAs": PAPER,
        "keywords": ["multi-subject generation", "text-to-image", "webdataset"],
        "distribution": [
            *(_file(file, digest) for file, digest in files.items()),
            {
                "@type": "cr:FileSet",
                "@id": "previews",
                "name": "previews",
                "description": "The samples of each shard with thumbnails.",
                "encodingFormat": PARQUET,
                "includes": "preview/*.parquet",
            },
        ],
        "recordSet": [
            _records("preview", "The samples that are in shards, with thumbnails.", preview, {"fileSet": "previews"}),
            _records(
                "manifest",
                "Every planned sample with its scores, the decision and its reasons.",
                manifest,
                {"fileObject": "manifest.parquet"},
            ),
        ],
    }


def _file(name: str, digest: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "encodingFormat": PARQUET if name.endswith(".parquet") else "application/x-tar",
        "sha256": digest,
    }


def _records(name: str, description: str, schema: pa.Schema, source: Mapping[str, str]) -> dict[str, Any]:
    ((kind, file),) = source.items()
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": description,
        "key": {"@id": f"{name}/sample_id"},
        "field": list(_fields(name, schema, {kind: {"@id": file}})),
    }


def _fields(records: str, schema: pa.Schema, source: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for field in schema:
        told = {
            key.decode(errors="replace"): value.decode(errors="replace")
            for key, value in (field.metadata or {}).items()
        }
        found = {
            "@type": "cr:Field",
            "@id": f"{records}/{field.name}",
            "name": field.name,
            "description": f"{told.get('meaning', '')} ({told.get('unit', '')})",
            "dataType": _data_type(field, records),
            "source": {**source, "extract": {"column": field.name}},
        }
        if pa.types.is_struct(field.type):
            found["source"]["transform"] = {"jsonPath": "bytes"}
        yield found | ({"repeated": True} if _is_list(field.type) else {})


def _data_type(field: pa.Field, records: str) -> str:
    kind = field.type.value_type if _is_list(field.type) else field.type
    if records == "preview" and field.name in PICTURES:
        return "sc:ImageObject"
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind))

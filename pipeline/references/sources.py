"""Reference pictures before they are decoded: what is known about each, where its bytes are, and reading them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.storage import Unreadable
from pipeline.references.boxes import Box
from pipeline.references.generated.subjects import Generated
from pipeline.references.parquet import PictureColumn
from pipeline.references.places import Place, read_place


@dataclass(frozen=True)
class PictureLocation:
    """Where the bytes of a picture are: a file, or a row and column of a Parquet file."""

    path: Place
    row: int | None = None
    column: str = ""


@dataclass(frozen=True)
class Source:
    """One reference picture before it is decoded.

    ``source`` is its file (and row) relative to the pool. ``sha256`` is that of its bytes, or empty if they cannot be
    read; for a generated subject, that of what it is made from. ``box`` is the part of the picture that shows the
    subject; None for all of it. ``inside`` and ``outside`` are parts that certainly are or are not the subject.
    ``mask`` is a label map, in which ``labels`` (None: all but 0) mark the subject. ``mirror`` says
    whether a picture may show it mirrored.
    """

    reference_id: str
    subject_id: str
    name: str
    category: str
    source: str
    sha256: str
    location: PictureLocation | Generated
    box: Box | None = None
    inside: tuple[Box, ...] = ()
    outside: tuple[Box, ...] = ()
    mask: PictureLocation | None = None
    mask_sha256: str = ""
    labels: tuple[int, ...] | None = None
    mirror: bool = True


class Reader:
    """Reads the bytes of pictures from files and Parquet files. Rows of a Parquet file are fast in ascending order."""

    def __init__(self) -> None:
        self._columns: dict[PictureLocation, PictureColumn] = {}

    def read(self, location: PictureLocation, source: str) -> bytes:
        """The bytes of one picture, at most pictures.MAX_BYTES.

        Raises UserError that names ``source`` if there are none.
        """
        try:
            data = self._bytes(location)
        except Unreadable:
            raise
        except UserError as error:  # the path on this machine must not be stored
            raise UserError(f"{source}{str(error).removeprefix(str(location.path))}") from error
        if data is None:
            raise UserError(f"{source}: column {location.column!r} holds no bytes in this row; embed its pictures")
        return data

    def _bytes(self, location: PictureLocation) -> bytes | None:
        if location.row is not None:
            return self._column(location).at(location.row)
        if not location.path.is_file():
            raise UserError(f"{location.path}: not a file that can be read; replace or remove it")
        return read_place(location.path, "replace or remove it", pictures.MAX_BYTES)

    def _column(self, location: PictureLocation) -> PictureColumn:
        key = replace(location, row=None)
        if key not in self._columns:
            for other in [k for k in self._columns if k.path != location.path]:  # files are read one after another
                self._columns.pop(other).close()
            self._columns[key] = PictureColumn(location.path, location.column)
        return self._columns[key]

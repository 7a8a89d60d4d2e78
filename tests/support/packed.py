"""A tar as the part store writes it, in memory."""

import io

from pipeline.core.tar_writer import write_tar


def pack_tar(members) -> bytes:
    buffer = io.BytesIO()
    write_tar(buffer, members.items())
    return buffer.getvalue()

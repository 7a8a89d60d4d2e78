"""Uploading an exported dataset to the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from data_schemas.errors import UserError
from data_schemas.io.text import one_line
from data_schemas.networks import HUB_ID

STALE = ["*.tar", "preview/*", "cards/*"]
"""Files of an earlier upload that are removed from the repository if the folder does not hold them."""


def need_token(repository: str) -> str:
    """The token of the environment. UserError if there is none, if the machine is offline, or for a wrong name."""
    if not HUB_ID.fullmatch(repository):
        raise UserError(f"--push {repository}: expected owner/name of a dataset repository")
    if constants.HF_HUB_OFFLINE:
        raise UserError("--push: HF_HUB_OFFLINE is set; unset it to upload")
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise UserError("--push: set HF_TOKEN to a token that may write (huggingface.co/settings/tokens)")
    return token


def push_folder(folder: Path, repository: str, token: str) -> str:
    """Upload the folder in one commit and return the repository's address. A new repository is private.

    Files that are there already are not sent again. Raises UserError if the Hub refuses or cannot be reached.
    """
    api = HfApi(token=token)
    try:
        url = str(api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True))
        api.upload_folder(
            repo_id=repository, repo_type="dataset", folder_path=folder, delete_patterns=STALE,
            commit_message="Dataset exported by instructar",
        )  # fmt: skip
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            why = "HF_TOKEN may not write there; give a token with write access to it"
        else:
            why = f"{one_line(error, 200)}; the folder is whole, so try again"
        raise UserError(f"--push {repository}: {why.replace(token, '***')}") from error
    except Exception as error:  # no network, in the words of whichever HTTP library; the Hub does not take the card
        reason = one_line(error, 200).replace(token, "***") or type(error).__name__
        raise UserError(f"--push {repository}: {reason}; the folder is whole, so try again") from error
    return url

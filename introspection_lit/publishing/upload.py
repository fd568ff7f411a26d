"""Uploads a folder to the Hugging Face hub in one commit: all of it is there afterwards, or nothing of it."""

from __future__ import annotations

from pathlib import Path

from introspection_lit.publishing.folder import PUBLISHED
from introspection_lit.utils.errors import ConfigurationError, RunError

MESSAGE = "Upload with introspection_lit"


def upload_problems() -> list[str]:
    """Why nothing can be uploaded, as far as is known without asking the hub."""
    from huggingface_hub import constants, get_token

    problems = []
    if constants.HF_HUB_OFFLINE:
        problems.append("HF_HUB_OFFLINE is set: nothing can be uploaded. Unset it, or write the folder with --dry-run.")
    if get_token() is None:
        problems.append(
            "no token for the hub: log in with 'hf auth login', or set HF_TOKEN to a token that may write. --dry-run "
            "needs none."
        )
    return problems


def upload(folder: Path, name: str, private: bool) -> str:
    """Upload a folder's files, and remove files of an earlier upload that are not among them, in one commit.

    Args:
        folder: The files.
        name: The repository's id; it is made if it is not there.
        private: Make it private, and refuse one that is public.

    Returns:
        The address of the commit.

    Raises:
        ConfigurationError: The repository is public, and should be private.
        RunError: The hub, or the way to it, has failed.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(name, private=private or None, exist_ok=True)
        there = api.model_info(name)
        if private and not there.private:
            raise ConfigurationError(
                [f"--private: {name} is there and public. Make it private in its settings on the hub, or name another one."]
            )
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=MESSAGE,
            parent_commit=there.sha,  # or somebody has changed it since
            delete_patterns=list(PUBLISHED),
        )
    except ConfigurationError:
        raise
    except Exception as error:  # of the hub, of the network, of the storage: each has an error of its own
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise RunError(
            [
                f"{name}: the upload has stopped ({type(error).__name__}: {reason}). It is one commit, which was not made: "
                "the repository holds what it held before, and an empty one may have been made. The same command tries "
                "again."
            ]
        ) from error
    return str(commit.commit_url)

"""The Hugging Face Hub: repositories written to and read from, and nothing else is known of it.

The client retries uploads by itself, and neither the creation of a repository nor a commit, so both are tried here a
bounded number of times. What was uploaded before a cut is not sent again.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from tl_nlp.errors import CheckpointError, HubError, NoRunError, RecipeError
from tl_nlp.pretrained import checked
from tl_nlp.run import RECIPE, read_recipe
from tl_nlp.untrusted import refuse_config

Kind = Literal["model", "dataset", "space"]

ARTIFACT = (
    "*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "*.spm", "*.model", "chat_template.jinja", "recipe.json", "results.json", "README.md",
)  # fmt: skip
"""What of an artifact is published, and all that is fetched of one."""

_N_TRIES = 5
_LONGEST_WAIT = 60.0  # seconds
_PASSING = (408, 429, 500, 502, 503, 504)
_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_T = TypeVar("_T")


def local(name: str | Path) -> Path:
    """The folder that is meant by a run: a path of which the first part is here, else owner/name or owner/name@revision
    on the Hub, which is fetched."""
    path = Path(name)
    found = _ID.fullmatch(str(name))
    if found is None or path.exists() or Path(path.parts[0]).exists():
        return path
    return pull(found[1], found[2])


def pull(repo_id: str, revision: str | None = None) -> Path:
    """The local copy of an artifact on the Hub, at the commit that `revision` is now; from the cache where the Hub is
    out of reach. Raises HubError, and CheckpointError for one that is not to be trusted."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(ARTIFACT)))
    except HFValidationError:
        raise RecipeError(f"{repo_id!r} is no name of a repository, which is owner/name") from None
    except RepositoryNotFoundError:
        raise NoRunError(
            f"no run {repo_id!r}: neither here nor on the Hub, or there a private one that the token may not read"
        ) from None
    except RevisionNotFoundError:
        raise HubError(f"{repo_id!r}: the Hub has no revision {revision!r} of it") from None
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        cause = type(error.__cause__ or error).__name__
        kind = NoRunError if cause == "OfflineModeIsEnabled" else HubError
        raise kind(f"no run {repo_id!r} here, nor in the cache, and the Hub is out of reach ({cause})") from None
    return _trusted(folder, repo_id)


def _trusted(folder: Path, repo_id: str) -> Path:
    if not (folder / RECIPE).is_file():
        raise CheckpointError(
            f"{repo_id} holds no {RECIPE}, so nothing says how to read it; a plain checkpoint is what a recipe begins "
            f"with: checkpoint={repo_id}"
        )
    recipe = read_recipe(folder)
    if not recipe.method.is_adapter:
        return checked(folder)
    base = recipe.checkpoint.name
    if not base.startswith("package:") and _ID.fullmatch(base) is None:
        raise CheckpointError(f"{repo_id} is an adapter for {base!r}, which is no name on the Hub")
    if (folder / "adapter_config.json").is_file():
        refuse_config(folder / "adapter_config.json")
    return folder


def is_id(name: str) -> bool:
    """Whether it is owner/name, and no path here."""
    return "@" not in name and _ID.fullmatch(name) is not None and not Path(name).exists()


def send(
    folder: Path,
    repo_id: str,
    kind: Kind = "model",
    *,
    owned: Sequence[str] = ARTIFACT,
    private: bool = False,
    revision: str | None = None,
    message: str = "",
) -> str:
    """Makes a repository hold the files of `folder`, in one commit; others that it held and `owned` matches go. Returns
    where it is.

    Files that it has already are not sent. Called again after a cut it goes on. Raises HubError, also where somebody
    else changed the repository meanwhile, and RecipeError for a name that cannot be one.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    client = _Client(repo_id, kind)
    client.make(private)
    head = client.head(revision, private)
    changed, gone = client.difference(folder, owned, head)
    if changed or gone:
        size = sum((folder / name).stat().st_size for name in changed) / 1e6
        print(f"sending {len(changed)} files, {size:.1f} MB, to {client.url}", file=sys.stderr)
        additions = [CommitOperationAdd(name, str(folder / name)) for name in changed]
        client.upload(additions, revision)
        operations = [*additions, *(CommitOperationDelete(name) for name in gone)]
        client.commit(operations, revision, head, message, lambda now: client.difference(folder, owned, now))
    return client.url if revision is None else f"{client.url}/tree/{revision}"


def readme(repo_id: str, kind: Kind = "model", revision: str | None = None) -> str | None:
    """The README.md of a repository as it is now, where both are there."""
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    client = _Client(repo_id, kind)
    try:
        path = client.tried("read", lambda: client.api.hf_hub_download(repo_id, "README.md", **client.at(revision)))
    except (RepositoryNotFoundError, EntryNotFoundError, RevisionNotFoundError):
        return None
    return Path(path).read_text("utf-8")


def licence_of(repo_id: str, kind: Kind, revision: str | None = None) -> str | None:
    """The licence that the card of a repository states, None where there is none. Raises HubError."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    client = _Client(repo_id, kind, needs_token=False)
    try:
        about: Any = client.tried("read", lambda: client.api.repo_info(repo_id, **client.at(revision)))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None
    card = about.card_data or {}
    named = card.get("license_name") if card.get("license") == "other" else card.get("license")
    return " AND ".join(named) if isinstance(named, list) else named


class _ChangedError(HubError):
    """The repository is not at the commit any more that this was to follow."""


class _Client:
    """The Hub's client for one repository, with bounded tries and errors in our words."""

    def __init__(self, repo_id: str, kind: Kind, needs_token: bool = True):
        from huggingface_hub import HfApi, constants, get_token

        if _ID.fullmatch(repo_id) is None or "@" in repo_id or ".." in repo_id:
            raise RecipeError(f"{repo_id!r} is no name of a repository, which is owner/name, as in alice/sentiment")
        if needs_token and not get_token():
            raise HubError(
                "there is no token for the Hub: hf auth login stores one, or the environment's HF_TOKEN holds it; it "
                "must be one that may write"
            )
        self.api, self.repo_id, self.kind = HfApi(), repo_id, kind
        self.endpoint = constants.ENDPOINT
        self.url = f"{self.endpoint}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"

    def at(self, revision: str | None) -> dict[str, Any]:
        return {"repo_type": self.kind, "revision": revision}

    def make(self, private: bool) -> None:
        options: dict[str, Any] = {"space_sdk": "gradio"} if self.kind == "space" else {}
        self.tried(
            "create",
            lambda: self.api.create_repo(
                self.repo_id, repo_type=self.kind, private=private or None, exist_ok=True, **options
            ),
        )

    def head(self, revision: str | None, private: bool) -> str:
        """The commit that the revision is at; a branch that is not there is begun."""
        from huggingface_hub.errors import RevisionNotFoundError

        about = self.tried("read", lambda: self.api.repo_info(self.repo_id, repo_type=self.kind))
        if private and not about.private:
            raise HubError(f"{self.url} is there and public; another name, or make it private first")
        if revision is None:
            return str(about.sha)
        try:
            return str(self.tried("read", lambda: self.api.repo_info(self.repo_id, **self.at(revision))).sha)
        except RevisionNotFoundError:
            begin: dict[str, Any] = {"repo_type": self.kind, "branch": revision, "exist_ok": True}
            self.tried("create a branch", lambda: self.api.create_branch(self.repo_id, **begin))
            return str(about.sha)

    def difference(self, folder: Path, owned: Sequence[str], commit: str) -> tuple[list[str], list[str]]:
        """The files of `folder` that are not so in the commit, and those of the commit that `owned` matches and are not
        in `folder`."""
        listed: list[Any] = self.tried(
            "read", lambda: list(self.api.list_repo_tree(self.repo_id, recursive=True, **self.at(commit)))
        )
        theirs = {one.path: one.lfs.sha256 if one.lfs else one.blob_id for one in listed if hasattr(one, "blob_id")}
        ours = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        changed = [name for name, path in ours.items() if theirs.get(name) not in _hashes(path)]
        theirs.pop(".gitattributes", None)
        gone = [name for name in theirs if name not in ours and any(fnmatch.fnmatch(name, one) for one in owned)]
        return changed, gone

    def upload(self, additions: list[Any], revision: str | None) -> None:
        self.tried(
            "upload",
            lambda: self.api.preupload_lfs_files(self.repo_id, additions, free_memory=False, **self.at(revision)),
            n_tries=1,  # the client has tries of its own
        )

    def commit(
        self,
        operations: list[Any],
        revision: str | None,
        parent: str,
        message: str,
        left: Callable[[str], tuple[list[str], list[str]]],
    ) -> None:
        """Commits. An answer that was lost may have done it: then the commit is another, and nothing is `left`."""
        try:
            self.tried(
                "commit",
                lambda: self.api.create_commit(
                    self.repo_id, operations, commit_message=message, parent_commit=parent, **self.at(revision)
                ),
            )
        except _ChangedError:
            now = str(self.tried("read", lambda: self.api.repo_info(self.repo_id, **self.at(revision))).sha)
            if left(now) != ([], []):
                raise

    def tried(self, what: str, call: Callable[[], _T], n_tries: int = _N_TRIES) -> _T:
        """What `call` answers; where it fails for a reason that may pass, it is called again after a while."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

        for n_failed in range(1, n_tries + 1):
            try:
                return call()
            except (HTTPError, ConnectionError, RuntimeError) as raised:
                # what an upload ends with has the reason behind it
                error = raised.__cause__ if isinstance(raised, RuntimeError) and raised.__cause__ else raised
            if isinstance(error, RuntimeError):
                raise error
            if isinstance(error, OfflineModeIsEnabled):
                raise HubError(f"{what}: HF_HUB_OFFLINE=1 keeps the Hub out of reach")
            if isinstance(error, HfHubHTTPError):
                status, response = error.response.status_code, error.response
                if status not in _PASSING:
                    self._refuse(what, status, error)
                told = f"answered {status}"
            elif "404" in str(error) and "/xet-" in str(error):  # the client has no way back from it
                raise HubError(
                    f"{what}: {self.endpoint} keeps no files by xet; HF_HUB_DISABLE_XET=1 sends them without"
                )
            else:
                told, response = f"could not be reached ({type(error).__name__})", None
            if n_failed < n_tries:
                wait = _wait(response, n_failed)
                print(f"{what}: the Hub {told}; again in {wait:.0f} s", file=sys.stderr)
                time.sleep(wait)
        raise HubError(
            f"{what}: the Hub at {self.endpoint} {told}; nothing was lost, and the same command goes on later"
        )

    def _refuse(self, what: str, status: int, error: Exception) -> None:
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

        if status == 401 or (isinstance(error, RepositoryNotFoundError) and what != "read"):
            raise HubError(
                f"{what}: the Hub does not know the token, or it has ended; hf auth login, or another HF_TOKEN"
            ) from None
        if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | EntryNotFoundError):
            raise error
        if status == 412:
            raise _ChangedError(f"{self.url} was changed by somebody else meanwhile; look at it, and push again")
        told = {
            400: f"the Hub does not take it: {_first_line(error)}",
            403: f"the token may not write to {self.repo_id}; one that may has the role write",
            409: f"{self.url} is there already and is not of this kind",
        }
        raise HubError(f"{what}: {told.get(status, f'the Hub answered {status}')}") from None


def _wait(response: Any, n_failed: int) -> float:
    """Seconds until the next try: what the Hub asks for, else twice as long each time."""
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked) if asked.isdigit() else 2.0 ** (n_failed - 1), _LONGEST_WAIT)


def _hashes(path: Path) -> tuple[str, str]:
    """What the Hub knows a file by: its sha256 in large file storage, else git's hash of it."""
    sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            sha256.update(piece)
            git.update(piece)
    return sha256.hexdigest(), git.hexdigest()


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and "http" not in line]
    return (lines or [type(error).__name__])[-1][:200]

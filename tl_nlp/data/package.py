"""Files inside an installed Python package."""

from pathlib import Path

from tl_nlp.data.files import Files
from tl_nlp.errors import DataError
from tl_nlp.packages import package_folder


class Package(Files):
    """As kind `files`; paths count from the package's own folder. Nothing of the package is run."""

    module: str

    @property
    def origin(self) -> tuple[str, str]:
        return "package", self.module

    def locate(self, path: Path) -> Path:
        folder = package_folder(self.module, DataError)
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{str(path)!r} leads out of the package {self.module}; kind files reads files anywhere")
        return folder / path

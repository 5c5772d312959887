"""A generated application: where its package is, and where its project."""

from importlib import import_module
from pathlib import Path
from typing import Any


def package_of(application: type[Any]) -> str:
    """The name of the package that holds a generated application, its models and its contract.json."""
    return application.__module__.rpartition(".")[0]


def project_folder(application: type[Any]) -> Path:
    """The folder that holds the package of a generated application: the same one wherever a process is started."""
    package = import_module(application.__module__.partition(".")[0])
    return Path(package.__path__[0]).resolve().parent


def operation_of(router: Any, name: str) -> Any:
    """The endpoint of an operation in a generated application's router, by its name in the contract."""
    for step in name.split("."):
        router = getattr(router, step)
    return router

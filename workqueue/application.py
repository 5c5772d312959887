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


def path_of(operation: str) -> tuple[str, ...]:
    """The attributes that lead to an operation's endpoint in a router, as the generator makes them of its id."""
    from asyncapi_python.utils import snake_case  # takes a while, for nothing where no router is looked through

    return tuple(snake_case(part) for part in operation.replace("/", ".").split("."))


def operation_of(router: Any, name: str) -> Any:
    """The endpoint of an operation in a generated application's router, by its name in the contract."""
    for step in path_of(name):
        router = getattr(router, step)
    return router

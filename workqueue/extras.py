"""The package's extras: what is installed only where it is wanted. Its absence is one line that names the extra."""

from collections.abc import Iterator
from contextlib import contextmanager

from workqueue.errors import ExtraMissing

EXTRAS = {
    "asyncapi_python_codegen": "generate",
    "black": "generate",
    "datamodel_code_generator": "generate",
    "jinja2": "generate",
    "psycopg": "postgres",
    "psycopg_binary": "postgres",
    "opentelemetry": "tracing",
    "prometheus_client": "metrics",
    "rich": "cli",
    "typer": "cli",
    "yaml": "generate",
}
"""By the module that is imported."""


@contextmanager
def needed(what: str) -> Iterator[None]:
    """For the imports that `what` needs. Raises ExtraMissing for the module of an extra that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        raise ExtraMissing(what, module, EXTRAS[module]) from error

"""The AsyncAPI generator, without what importing it does to the process.

A module of it takes Ctrl-C for itself, as if it were the program: the process would exit with 0, and a test run would
go on with its next test.
"""

import signal

_before = signal.getsignal(signal.SIGINT)

from asyncapi_python_codegen.generators import CodeGenerator  # noqa: E402

signal.signal(signal.SIGINT, _before)

__all__ = ["CodeGenerator"]

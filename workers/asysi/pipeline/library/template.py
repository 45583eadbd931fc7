"""Sandboxed Jinja templates over rows; a missing field is an error."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from asysi.contract.errors import ConfigError
from asysi.pipeline.operators.operator import BaseOperator, Made, Row

# Templates render prompts, not HTML: escaping would change them.
_jinja = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def template(text: str) -> jinja2.Template:
    """Compile a template.

    Raises:
        ConfigError: a syntax error; the message gives the line.
    """
    try:
        return _jinja.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"template {text[:60]!r}, line {error.lineno}: {error.message}") from error


def expression(text: str) -> Callable[[Mapping[str, Any]], Any]:
    """Compile an expression into a function of the fields.

    Raises:
        ConfigError: a syntax error.
    """
    try:
        found = _jinja.compile_expression(text, undefined_to_none=False)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"expression {text[:60]!r}: {error.message}") from error
    return found


class Template(BaseOperator):
    """Fills fields from templates over the row.

    Args:
        fields: a template per output field; all of them see the input row.
        keep: whether to keep the row's other fields.

    Raises:
        ConfigError: a template is invalid.
    """

    harmless = True

    def __init__(self, fields: Mapping[str, str], keep: bool = True) -> None:
        self.fields, self.keep = dict(fields), keep
        self._templates = {name: template(text) for name, text in fields.items()}

    def process_item(self, item: Row, ctx: Any = None) -> Made:
        """Return the row with the fields filled.

        Raises:
            jinja2.UndefinedError: a template uses a field that the row does not have.
            jinja2.sandbox.SecurityError: a template violates the sandbox.
        """
        made = {name: found.render(item) for name, found in self._templates.items()}
        return {**item, **made} if self.keep else made

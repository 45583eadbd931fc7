"""Text from rows: Jinja templates, in a sandbox, where a missing field is an error."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from asysi.contract.errors import ConfigError
from asysi.pipeline.operators.operator import BaseOperator, Made, Row

# What is rendered is a prompt, no HTML: escaping would change it.
_jinja = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def template(text: str) -> jinja2.Template:
    """Return a template.

    Raises:
        ConfigError: it is none; it says where.
    """
    try:
        return _jinja.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"template {text[:60]!r}, line {error.lineno}: {error.message}") from error


def expression(text: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return a function from fields to the value of an expression.

    Raises:
        ConfigError: it is none.
    """
    try:
        found = _jinja.compile_expression(text, undefined_to_none=False)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"expression {text[:60]!r}: {error.message}") from error
    return found


class Template(BaseOperator):
    """Fills fields from templates over the row.

    Args:
        fields: a template for each field that is to be made; all see the row as it came.
        keep: whether the row's other fields stay.

    Raises:
        ConfigError: a template cannot be read.
    """

    harmless = True

    def __init__(self, fields: Mapping[str, str], keep: bool = True) -> None:
        self.fields, self.keep = dict(fields), keep
        self._templates = {name: template(text) for name, text in fields.items()}

    def process_item(self, item: Row, ctx: Any = None) -> Made:
        """Return the row with the fields filled.

        Raises:
            jinja2.UndefinedError: a template asks for a field that the row does not have.
            jinja2.sandbox.SecurityError: a template does what the sandbox forbids.
        """
        made = {name: found.render(item) for name, found in self._templates.items()}
        return {**item, **made} if self.keep else made

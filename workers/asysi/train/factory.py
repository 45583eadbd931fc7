"""Objects named by import path in a configuration."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from asysi.contract.errors import ConfigError

TARGET = "_target_"


def instantiated(config: Mapping[str, Any] | None, **given: Any) -> Any:
    """Return the object described by `{_target_: package.module.Name, parameter: value}`, None for None.

    Args:
        config: import path and parameters; a parameter may itself be such a mapping.
        given: parameters added by the program; those in the configuration take precedence.

    Raises:
        ConfigError: the name does not exist, or it does not take these parameters.
    """
    if config is None:
        return None
    target = config.get(TARGET)
    if not isinstance(target, str):
        raise ConfigError(f"{dict(config)} has no _target_: name a class, such as torch.optim.AdamW")
    values = given | {key: _value(value) for key, value in config.items() if key != TARGET}
    found = imported(target)
    try:
        return found(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{target} cannot be made with {', '.join(values) or 'nothing'}: {error}"
        ) from error


def imported(path: str) -> Any:
    """Return the object at an import path such as `package.module.Name`.

    Raises:
        ConfigError: there is no such object, or its module cannot be imported.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be imported: {error}") from error


def _value(value: Any) -> Any:
    return instantiated(value) if isinstance(value, Mapping) and TARGET in value else value

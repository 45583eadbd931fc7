"""Errors that a person can act on."""


class ConfigError(Exception):
    """Bad configuration or input: exit code 2, trying again cannot help.

    Attributes:
        problems: one complete sentence each, naming the thing, why it is wrong and what to do.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)

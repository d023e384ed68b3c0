"""How the name of a field is written on the command line."""


def option_name(field: str) -> str:
    """``--batch-size`` for ``batch_size``."""
    return "--" + field.replace("_", "-")

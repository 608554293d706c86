"""Config files merged with their bases, as the documentation of `base` describes."""

import yaml


def merged(path):
    """A config file with its bases, as plain values.

    Args:
        path: The file.
    """
    content = yaml.safe_load(path.read_text())
    bases = content.pop("base", [])
    whole = {}
    for base in bases if isinstance(bases, list) else [bases]:
        whole = over(whole, merged(path.parent / base))
    return over(whole, content)


def over(below, above):
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if below.get("class_path") != above.get("class_path", below.get("class_path")):
        below = {}
    return {**below, **{key: over(below.get(key), value) for key, value in above.items()}}

"""YAML that people and strangers write: read whole, in bounded time, or refused by line."""

from typing import Any, Final

import yaml

# A settings file has some hundred values, and lists of criteria a few thousand. Aliases let a file
# of ten lines stand for billions.
_MOST_VALUES: Final = 100_000
_MOST_CHARACTERS: Final = 1_000_000


class InvalidYaml(ValueError):
    """A text that is not YAML, or not such as settings are written in.

    Attributes:
      problem: What is wrong.
      line: Where, from 1; None where the text as a whole is meant.
      readable: Whether it is YAML all the same.
    """

    def __init__(self, problem: str, mark: yaml.Mark | None = None, readable: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.readable = problem, readable
        self.line = None if mark is None else mark.line + 1


def load_yaml(text: str) -> Any:
    """Reads a YAML document; a key that stands twice is an error.

    Raises:
      InvalidYaml: If the text is none, or holds more than settings ever do.
    """
    if len(text) > _MOST_CHARACTERS:
        raise InvalidYaml(f"has {len(text)} characters, of at most {_MOST_CHARACTERS}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > _MOST_VALUES:
            raise InvalidYaml(f"stands for more than {_MOST_VALUES} values by its aliases")
        return loader.construct_document(node)
    except yaml.constructor.ConstructorError as error:
        raise InvalidYaml(str(error.problem), error.problem_mark, readable=True) from None
    except yaml.MarkedYAMLError as error:
        raise InvalidYaml(str(error.problem), error.problem_mark) from None
    except yaml.YAMLError as error:
        raise InvalidYaml(str(error).partition("\n")[0]) from None
    except RecursionError:
        raise InvalidYaml("is nested too deeply, or holds itself") from None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Counts the values that a node stands for, its aliases written out."""
    if id(node) not in known:
        # Until it is counted: a node within itself has no end.
        known[id(node)] = _MOST_VALUES + 1
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        known[id(node)] = 1 + sum(_size(each, known) for each in inner)
    return known[id(node)]


class _Loader(yaml.SafeLoader):
    """Refuses a repeated key; PyYAML itself keeps the last value silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            # Deep, so that keys that are lists are built before they are compared.
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                problem = "a key must be a text or a number"
            elif key in seen:
                problem = f"the key {key!r} stands twice"
            else:
                seen.add(key)
                continue
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_checked(self, node: yaml.Node) -> Any:
        """Constructs a value whose text may be of its kind and say nothing, as a 99th of May."""
        try:
            return yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(
                None, None, str(error), node.start_mark
            ) from None


for _kind in ("timestamp", "int", "float", "binary"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_checked)

"""A small interpreter of pickles that imports nothing and calls nothing.

It follows every opcode, so that harmless objects beside the weights do not matter. Containers and the tensors of
``torch_objects`` become plain Python values; whatever else a pickle would make is an ``Inert`` name.
"""

import pickletools
from collections.abc import Sequence
from typing import IO, Any

from mlx_depth_convert.sources.torch_objects import (
    CALLS,
    Global,
    Inert,
    OddTensor,
    Storage,
    Tensor,
    is_harmless,
    storage,
)

MAX_STEPS = 3_000_000  # opcodes; the pickle of a 500-tensor model with its optimizer has about 100,000

_IGNORED = {"PROTO", "FRAME", "STOP", "READONLY_BUFFER"}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_FRESH = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SET = Inert("builtins.set")


def interpret(stream: IO[bytes], machine: "Machine") -> Any:
    """Follow one pickle to its end and return what it makes.

    Raises:
        ValueError: If it cannot be a pickle, or has more than ``MAX_STEPS`` opcodes.
    """
    machine.stack, machine.marks, machine.memo = [], [], {}
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except (IndexError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error


class Machine:
    """The stack, marks and memo of a pickle, and what all pickles of a file ask for."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.asked: list[str] = []  # names beyond plain data, in the order in which they came
        self.steps = 0

    def step(self, name: str, argument: Any) -> None:
        """Follow one opcode."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ValueError(f"more than {MAX_STEPS:,} steps, too many for weights")
        stack = self.stack
        if name in _IGNORED:
            return
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _FRESH:
            stack.append(_FRESH[name]())
        elif name in _TUPLES:
            stack.append(tuple(self.take(_TUPLES[name])))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            if argument not in self.memo:
                raise ValueError(f"nothing was kept as number {argument}")
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(stack)
            self.stack = []
        else:
            self.build(name, argument)

    def build(self, name: str, argument: Any) -> None:
        """Follow an opcode that makes, fills or drops an object."""
        match name:
            case "TUPLE" | "LIST" | "DICT" | "FROZENSET":
                items = self.unmark()
                self.stack.append(tuple(items) if name == "TUPLE" else _SET if name == "FROZENSET" else items)
                if name == "DICT":
                    self.stack[-1] = {}
                    self.fill(items)
            case "APPEND":
                (item,) = self.take(1)
                self.extend([item])
            case "APPENDS":
                self.extend(self.unmark())
            case "SETITEM":
                self.fill(self.take(2))
            case "SETITEMS":
                self.fill(self.unmark())
            case "EMPTY_SET":
                self.stack.append(_SET)
            case "ADDITEMS":
                self.unmark()
                self.top(Inert)
            case "BUILD":
                self.take(1)  # attributes, such as the module versions in a state dict's `_metadata`
                self.top(dict, Inert, Tensor, OddTensor)
            case "POP":
                if self.stack:
                    self.stack.pop()
                else:
                    self.stack = self.marks.pop()
            case "POP_MARK":
                self.unmark()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "BINPERSID":
                self.stack.append(self.persistent(*self.take(1)))
            case "NEXT_BUFFER":
                self.stack.append(Inert("builtins.bytearray"))
            case _:
                self.name_or_call(name, argument)

    def name_or_call(self, name: str, argument: Any) -> None:
        """Follow an opcode that asks for something by name, or would call it."""
        match name:
            case "GLOBAL":
                self.stack.append(self.globally(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, attribute = self.take(2)
                if type(module) is not str or type(attribute) is not str:
                    raise ValueError("a global without a name")
                self.stack.append(self.globally(f"{module}.{attribute}"))
            case "EXT1" | "EXT2" | "EXT4":
                self.stack.append(self.globally(f"copyreg extension {argument}"))
            case "INST":
                arguments = tuple(self.unmark())
                self.stack.append(self.call(self.globally(argument.replace(" ", ".", 1)), arguments))
            case "OBJ":
                function, *rest = self.unmark() or [None]
                self.stack.append(self.call(function, tuple(rest)))
            case "REDUCE" | "NEWOBJ":
                self.stack.append(self.call(*self.take(2)))
            case "NEWOBJ_EX":
                function, arguments, _ = self.take(3)
                self.stack.append(self.call(function, arguments))
            case _:
                raise ValueError(f"the opcode {name}")

    def take(self, count: int) -> list[Any]:
        """Remove the topmost items, the deepest first."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def unmark(self) -> list[Any]:
        """Remove the items since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def top(self, *kinds: type) -> Any:
        """The object on top, which an opcode fills."""
        if type(self.stack[-1]) not in kinds:
            raise ValueError(f"no {kinds[0].__name__} where one is needed")
        return self.stack[-1]

    def extend(self, items: Sequence[Any]) -> None:
        """Put items at the end of the list on top."""
        target = self.top(list, Inert)
        if type(target) is list:
            target.extend(items)

    def fill(self, items: Sequence[Any]) -> None:
        """Put keys and values into the dict on top; those with keys that are no plain text or number are let go."""
        target = self.top(dict, Inert)
        if len(items) % 2:
            raise ValueError("a dict with a key and no value")
        if type(target) is dict:
            # Hashing a deeply nested tuple would overflow the C stack.
            plain = (pair for pair in zip(items[::2], items[1::2], strict=True) if type(pair[0]) in (str, int))
            target.update(plain)

    def globally(self, name: str) -> Global:
        """A name, remembered where it is more than plain data."""
        if name not in CALLS and not is_harmless(name):
            self.asked.append(f"{name:.100}")
        return Global(name)

    def call(self, function: Any, arguments: Any) -> Any:
        """What a known function returns, without the function; an inert object for any other."""
        if not isinstance(function, (Global, Inert)) or type(arguments) not in (tuple, Inert):
            raise ValueError("a call of something that is no function")
        if isinstance(function, Global) and function.name in CALLS and type(arguments) is tuple:
            return CALLS[function.name](arguments)
        return Inert(function.name)

    def persistent(self, identity: Any) -> Storage | Inert:
        """The storage that a persistent id names."""
        found = storage(identity)
        if isinstance(found, Storage) and self.storages.setdefault(found.key, found) != found:
            raise ValueError(f"two different storages are called {found.key!r:.60}")
        return found

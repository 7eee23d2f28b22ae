"""The rules about a record's turns: who speaks, in which order, and whether anything is said."""

from collections.abc import Sequence
from typing import Any

from .records import Batch, PlainChat
from .report import LineErrors

FIXES = {
    "empty_content": "Fill it in or leave the record out.",
    "no_assistant": "Add the answer that the model is to learn.",
    "last_not_assistant": "End the chat with the assistant's answer, or leave the last message out.",
    "roles_out_of_order": "Let user and assistant take turns, after at most one system message at the start.",
}


REMEMBERED = 100  # roles of an order that is remembered at most: else hostile files would fill the memory with orders


class Turns:
    """Checks chats. Orders of roles that were found good are remembered: a file has few of them."""

    def __init__(self, errors: LineErrors) -> None:
        self._errors = errors
        self._good: set[tuple[str, ...]] = set()

    def good(self, batch: Batch, names: Sequence[str]) -> tuple[Batch, list[str], list[tuple[str, ...]]]:
        """The chats that break no rule, the contents of all their messages, and of each chat the roles in order.

        What is wrong with the others is reported; ``names``, if any, are what the file calls a chat's two messages.
        """
        chats = batch.records
        contents = [message.content for chat in chats for message in chat.messages]
        orders = [tuple([message.role for message in chat.messages]) for chat in chats]
        bad: set[int] = set()
        if not self._good.issuperset(orders):
            bad = {index for index, order in enumerate(orders) if not self._remember(order)}
        # A list is faster here than a generator, and this is one of three loops over all messages.
        if not all(contents) or any([content.isspace() for content in contents]):  # noqa: C419
            bad |= {index for index, chat in enumerate(chats) if any(not m.content.strip() for m in chat.messages)}
        if chats and not isinstance(chats[0], PlainChat):
            bad |= {index for index, chat in enumerate(chats) if _nothing_weighs(chat.messages)}
        if not bad:
            return batch, contents, orders
        for index in sorted(bad):
            self._explain(chats[index].messages, batch.numbers[index], names)
        return self.good(batch.without(bad), names)

    def _remember(self, order: tuple[str, ...]) -> bool:
        if order in self._good:
            return True
        good = _problem(order) is None
        if good and len(order) <= REMEMBERED:
            self._good.add(order)
        return good

    def _explain(self, messages: Sequence[Any], number: int, names: Sequence[str]) -> None:
        for index, message in enumerate(messages):
            if not message.content.strip():
                path = names[index] if names else f"messages[{index}].content"
                self._tell("empty_content", f"{path} is empty.", number, path)
        problem = _problem(tuple(message.role for message in messages))
        if problem is not None:
            self._tell(*problem, number)
        elif _nothing_weighs(messages):
            self._tell("no_assistant", "Every answer of the assistant has weight 0.", number)

    def _tell(self, code: str, message: str, line: int, path: str = "") -> None:
        self._errors.add(code, message, FIXES[code], line, path=path)


def _nothing_weighs(messages: Sequence[Any]) -> bool:
    return all(getattr(message, "weight", None) == 0 for message in messages if message.role == "assistant")


def _problem(order: tuple[str, ...]) -> tuple[str, str] | None:
    """The first rule that this order of roles breaks, and what is wrong."""
    if "assistant" not in order:
        return "no_assistant", "No message is the assistant's: there is nothing to learn from."
    turns = order[1:] if order[0] == "system" else order
    if any(role != ("user", "assistant")[place % 2] for place, role in enumerate(turns)):
        shown = ", ".join(order[:8]) + (", …" if len(order) > 8 else "")
        return "roles_out_of_order", f"The roles are {shown}."
    if order[-1] != "assistant":
        return "last_not_assistant", f"The last message is the {order[-1]}'s."
    return None

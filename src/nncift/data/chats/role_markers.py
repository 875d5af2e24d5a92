"""Chats in one text with role markers: the notations of chat templates and of popular sets with a single text column.

White space around a turn and end markers belong to the notation, and are not part of the turn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nncift.data.chats.messages import Messages

NOTATIONS = (  # for users
    "### Human: / ### Assistant:, ### Instruction: / ### Response:, <|user|> / <|assistant|>, <|im_start|>, [INST],"
    " <|start_header_id|>, <start_of_turn>, or Human: / Assistant: at the start of a line"
)
_ROLES = {
    **dict.fromkeys(("system", "context"), "system"),
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter", "instruction", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "ai", "response", "answer"), "assistant"),
    **dict.fromkeys(("tool", "ipython", "observation"), "tool"),
    "input": "input",  # of an instruction
}
_ENDS = re.compile(r"(?:\s|</s>|<s>|<\|(?:im_end|eot_id|eom_id|end|endoftext|end_of_text|begin_of_text)\|>|<eos>)+\Z")
_STARTS = re.compile(r"\A(?:\s|<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>)+")
_ALPACA_PREAMBLE = re.compile(r"\ABelow is an instruction that describes a task\b[^\n]*\Z")
_TOKEN = re.compile(r"</s>|<\|\w+\|>|<end_of_turn>|\[INST\]")
_LLAMA_START = re.compile(r"(?:\s|<s>)*(?:\[INST\]|<<SYS>>|\[SYSTEM_PROMPT\])")
_LLAMA_SYSTEM = re.compile(r"\A\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)


@dataclass(frozen=True)
class _Notation:
    """A way to mark turns: the pattern of a marker, whose group is the role."""

    marker: re.Pattern[str]
    at_start: bool = False  # the text starts with a marker, so that a sentence which contains one is no chat


def _notation(pattern: str, *, flags: int = 0, at_start: bool = False) -> _Notation:
    return _Notation(re.compile(pattern, flags), at_start)


_NOTATIONS = (
    _notation(r"<\|im_start\|>[ \t]*(\w+)[ \t]*\n?"),
    _notation(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>"),
    _notation(r"<start_of_turn>(\w+)\n?"),
    _notation(r"<\|(system|user|human|prompter|assistant|model|tool|observation)\|>"),
    _notation(r"^[ \t]*#{2,3} ?(Instruction|Input|Response|Context)s?: ?", flags=re.MULTILINE),
    _notation(r"#{2,3} ?(System|Human|User|Assistant|GPT|Bot|AI|Question|Answer)s?: ?", flags=re.IGNORECASE),
    _notation(r"^(System|Human|User|Assistant|AI|Question|Answer): ?", flags=re.MULTILINE, at_start=True),
    _notation(r"(?:^|(?<=\s)|(?<=</s>))(SYSTEM|USER|ASSISTANT): ?"),
)


def marked_messages(text: str) -> Messages | None:
    """The messages of a text with role markers; None if no turn of an assistant is marked after one of a user."""
    is_inst = "[/INST]" in text  # perhaps only as words of another notation's turn
    if is_inst and _LLAMA_START.match(text) and (messages := _inst_messages(text)) is not None:
        return messages
    for notation in _NOTATIONS:
        parts = notation.marker.split(text)
        before = _STARTS.sub("", parts[0]).rstrip()
        if len(parts) < 3 or (notation.at_start and before):
            continue
        messages = _joined(before, zip(parts[1::2], parts[2::2], strict=True))
        roles = [message["role"] for message in messages]
        if "user" in roles and "assistant" in roles[roles.index("user") :]:
            return messages
    return _inst_messages(text) if is_inst else None


def is_between_turns(before: str, after: str) -> bool:
    """Whether one turn can end and the next begin between two parts of a text: at white space or a marker."""
    if before[-1:].isspace() or after[:1].isspace() or before.endswith("[/INST]") or _TOKEN.match(after):
        return True
    return any(
        notation.marker.match(after) or any(found.end() == len(before) for found in notation.marker.finditer(before))
        for notation in _NOTATIONS
    )


def _joined(before: str, turns: zip[tuple[str, str]]) -> Messages:
    messages: Messages = []
    if before and not _ALPACA_PREAMBLE.match(before):
        messages.append({"role": "system", "content": before})
    for name, words in turns:
        role = _ROLES.get(name.lower(), "user")
        content = _ENDS.sub("", words.replace("<end_of_turn>", "")).lstrip()
        if role == "input":
            if content and messages:
                messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}\n\n{content}".lstrip()}
        elif content or role != "assistant":  # a marker at the end only asks for a response
            messages.append({"role": role, "content": content})
    return messages


def _inst_messages(text: str) -> Messages | None:
    """Llama 2 and Mistral: [INST] request [/INST] response."""
    messages: Messages = []
    start, *turns = re.split(r"\[INST\]", text)
    system = _STARTS.sub("", re.sub(r"\[/?SYSTEM_PROMPT\]", "", start)).strip()
    for turn in turns:
        request, marker, response = turn.partition("[/INST]")
        if not marker:
            return None
        if (found := _LLAMA_SYSTEM.match(request)) is not None:
            system, request = found[1].strip(), request[found.end() :]
        messages.append({"role": "user", "content": request.strip()})
        if response := _ENDS.sub("", response).strip():
            messages.append({"role": "assistant", "content": response})
    if not any(message["role"] == "assistant" for message in messages):
        return None
    return [{"role": "system", "content": system}, *messages] if system else messages

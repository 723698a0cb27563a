"""What a job's command becomes for its parameters: the words that are executed; no I/O.

In a command's words, `$1 $2 ...` and `{1} {2} ...` stand for a parameter, `{name}` for one that has
a name, `{}` for all of them, `{#}` for the job's number. Within the braces may follow what is
wanted of a path: `{.}` without its extension, `{/}` its last part, `{//}` its folder, `{/.}` the
last part without extension; so also `{1.}` or `{name/}`. A command without any of these gets the
parameters as further words. Of a job without parameters only `{#}` is replaced.

A parameter is never split into words, and no shell reads it: words are executed as they are.
A command that is a text for the shell gets its parameters as $1, $2, ...; a `{...}` in it becomes a
reference to a variable, quoted as its place asks for. So a parameter is a value there too, whatever
stands in it; a place that was judged wrongly yields odd words, never a command.
"""

import re
import shlex
from typing import Any, Callable, Dict, Iterable, List, Sequence, Tuple

from worker_payload.jobs.lines import Plan

Expand = Callable[[Sequence[str], int, str], Tuple[str, ...]]
_CACHED = 64  # commands; a pod has one, so a worker rarely knows more than a few
_known = {}  # type: Dict[Tuple, Expand]
_SHELL_TAKES = re.compile(r"\$\{?[#!]?[1-9@*]|\$\{?#")  # a text that asks for its parameters itself


def expand(plan, params, number, job_path=""):
    # type: (Plan, Sequence[str], int, str) -> Tuple[str, ...]
    """The words to execute. params: the job's own. number: of the job in its submission, from 1.
    job_path: of the file of a dropped job, which is its command's last word."""
    key = (plan.kind, plan.words, plan.shell, plan.names)
    found = _known.get(key)
    if found is None:
        if len(_known) >= _CACHED:
            _known.clear()
        found = _known[key] = _compiled(plan)
    return found(params, number, job_path)


def text(argv):
    # type: (Iterable[str]) -> str
    """The words as one would type them."""
    return " ".join(shlex.quote(word) for word in argv)


def shown(plan, params, number, job_path=""):
    # type: (Plan, Sequence[str], int, str) -> str
    """The command for people and logs: that of a shell's text with the values in it."""
    if not plan.shell or plan.kind == "drop":
        return text(expand(plan, params, number, job_path))
    pieces = _pieces(plan.words[0], plan.names)
    line = "".join(
        piece if isinstance(piece, str) else text(_values(piece, params, number, piece.written))
        for piece in pieces
    )
    return line if _takes(plan) or not params else "%s %s" % (line, text(params))


def fill(plan, template, params, number):
    # type: (Plan, str, Sequence[str], int) -> str
    """A text of the plan other than its command, such as its log file, with the values in it."""
    return _joined(_pieces(template, plan.names), params, number)


def placeholders(words, names=()):
    # type: (Iterable[str], Sequence[str]) -> List[str]
    """The placeholders as they stand in the words, in order; for who wants to check them."""
    return [
        piece.written
        for word in words
        for piece in _pieces(word, names)
        if isinstance(piece, _Place)
    ]


def highest(words, names=()):
    # type: (Iterable[str], Sequence[str]) -> int
    """The greatest number of a parameter that the words ask for, by number or name; else 0."""
    return max(
        [
            piece.index
            for word in words
            for piece in _pieces(word, names)
            if isinstance(piece, _Place)
        ]
        or [0]
    )


# --- placeholders ------------------------------------------------------------------------------


class _Place(object):
    """written: as it stands in the command. index: of the parameter from 1; 0 for all of them.
    change: what is wanted of a path. number: it is the job's number instead."""

    __slots__ = ("change", "index", "number", "written")

    def __init__(self, written, index=0, change="", number=False):
        # type: (str, int, str, bool) -> None
        self.written = written
        self.index = index
        self.change = change
        self.number = number


def _pieces(word, names):
    # type: (str, Sequence[str]) -> List[Any]
    """The word as texts and _Places in turn."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern = r"\{(?:(#)|(%s)?(//|/\.|/|\.)?)\}|\$([1-9][0-9]{0,5})" % "|".join(
        ["[1-9][0-9]{0,5}"] + [re.escape(name) for name in longest_first]
    )
    pieces = []  # type: List[Any]
    at = 0
    for match in re.finditer(pattern, word):
        number, key, change, dollar = match.groups()
        key = dollar or key
        if match.start() > at:
            pieces.append(word[at : match.start()])
        at = match.end()
        index = list(names).index(key) + 1 if key in names else int(key or 0)
        pieces.append(_Place(match.group(), index, change or "", bool(number)))
    if at < len(word) or not pieces:
        pieces.append(word[at:])
    return pieces


def _changed(value, change):
    # type: (str, str) -> str
    if change.startswith("//"):
        folder = value.rpartition("/")[0]
        return folder or ("/" if value.startswith("/") else ".")
    if change.startswith("/"):
        value = value.rpartition("/")[2]
    if change.endswith("."):
        front, dot, last = value.rpartition(".")
        if dot and last and "/" not in last:
            return front
    return value


def _values(place, params, number, otherwise):
    # type: (_Place, Sequence[str], int, str) -> List[str]
    """What a place stands for. One past the parameters that the job has is empty."""
    if place.number:
        return [str(number)]
    if not params:
        return [otherwise]
    if place.index == 0:
        return [_changed(value, place.change) for value in params]
    if place.index > len(params):
        return [""]
    return [_changed(params[place.index - 1], place.change)]


def _joined(pieces, params, number):
    # type: (List[Any], Sequence[str], int) -> str
    return "".join(
        piece if isinstance(piece, str) else " ".join(_values(piece, params, number, piece.written))
        for piece in pieces
    )


def _takes(plan):
    # type: (Plan) -> bool
    """Whether the command says itself where its parameters go."""
    if placeholders(plan.words, plan.names):
        return True
    return plan.shell and _SHELL_TAKES.search(plan.words[0]) is not None


# --- words that are executed -------------------------------------------------------------------


def _compiled(plan):
    # type: (Plan) -> Expand
    words = tuple(plan.words)
    if plan.kind == "drop":
        return lambda params, number, job_path: words + (job_path,)
    if plan.shell:
        return _shell(words[0], plan.names, _takes(plan))
    if not _takes(plan):
        return lambda params, number, job_path: words + tuple(params)
    split = [_pieces(word, plan.names) for word in words]

    def build(params, number, job_path):
        # type: (Sequence[str], int, str) -> Tuple[str, ...]
        argv = []  # type: List[str]
        for pieces in split:
            if len(pieces) == 1 and isinstance(pieces[0], _Place):
                # a word of its own: `{}` may be many words, each of them whole
                argv += _values(pieces[0], params, number, pieces[0].written)
                continue
            argv.append(_joined(pieces, params, number))
        return tuple(argv)

    return build


# --- a text for sh -----------------------------------------------------------------------------

_PLAIN, _SINGLE, _DOUBLE = "plain", "single", "double"


def _shell(line, names, takes):
    # type: (str, Sequence[str], bool) -> Expand
    pieces = [
        # $1 is sh's own
        piece.written if isinstance(piece, _Place) and piece.written.startswith("$") else piece
        for piece in _pieces(line, names)
    ]

    def build(params, number, job_path):
        # type: (Sequence[str], int, str) -> Tuple[str, ...]
        assigned = []  # type: List[str]
        out = []  # type: List[str]
        state = _Quotes()
        for piece in pieces:
            if isinstance(piece, str):
                state.read(piece)
                out.append(piece)
            elif piece.number or not params:
                out.append(str(number) if piece.number else piece.written)
            else:
                out.append(state.quoted(_references(piece, params, assigned)))
        if params and not takes:
            out.append(' "$@"')
        return ("/bin/sh", "-c", "".join(assigned + out), "sh") + tuple(params)

    return build


def _references(place, params, assigned):
    # type: (_Place, Sequence[str], List[str]) -> List[str]
    """Variables with the values of a place; those that are no parameter as such are assigned."""
    indexes = range(1, len(params) + 1) if place.index == 0 else [place.index]
    found = []
    for index in indexes:
        if not place.change or index > len(params):
            found.append("${%d}" % index)
            continue
        name = "jam_%d" % (len(assigned) + 1)
        assigned.append("%s=%s; " % (name, shlex.quote(_changed(params[index - 1], place.change))))
        found.append("${%s}" % name)
    return found


class _Quotes(object):
    """In which quotes a place of a shell's text stands, read from its beginning. No more is known
    of the language than quotes, backslashes and $( ): where that errs, words come out odd."""

    def __init__(self):
        # type: () -> None
        self._stack = [_PLAIN]

    def read(self, part):
        # type: (str) -> None
        stack = self._stack
        at = 0
        while at < len(part):
            letter, here = part[at], stack[-1]
            at += 1
            if here == _SINGLE:
                if letter == "'":
                    stack.pop()
            elif letter == "\\":
                at += 1
            elif letter == '"':
                if here == _DOUBLE:
                    stack.pop()
                else:
                    stack.append(_DOUBLE)
            elif letter == "'" and here == _PLAIN:
                stack.append(_SINGLE)
            elif letter == "$" and part[at : at + 1] == "(":
                at += 1
                stack.append(_PLAIN)
            elif letter == ")" and here == _PLAIN and len(stack) > 1:
                stack.pop()

    def quoted(self, references):
        # type: (List[str]) -> str
        here = self._stack[-1]
        if here == _PLAIN:
            return " ".join('"%s"' % reference for reference in references)
        joined = " ".join(references)
        return joined if here == _DOUBLE else "'\"%s\"'" % joined

"""Read job command files: text in, steps out.

A statement is `#`, blanks, `@`, blanks, `keyword = value`; anything else that starts with `#` is a
comment. `queue` closes a step, and what a later step does not say it inherits from the first.
"""

import re

STATEMENT = re.compile(r"\s*#\s*@(.*)")
ASSIGNMENT = re.compile(r"([A-Za-z][\w.]*)\s*=\s*(.*)")
VARIABLE = re.compile(r"\$\((\w+)\)")
NOT_INHERITED = {"step_name", "dependency"}


class RefusedError(Exception):
    """The job is not submitted; the message says why."""


def statements(text):
    """Yield `(statement, None)` or `(None, line)` for each logical line."""
    lines = iter(text.splitlines())
    for line in lines:
        match = STATEMENT.match(line)
        if not match:
            yield None, line
            continue
        statement = match[1].strip()
        while statement.endswith("\\"):
            continued = next(lines, "")
            if STATEMENT.match(continued):
                raise RefusedError(
                    f"a continued line must not begin with '# @': {continued.strip()}"
                )
            statement = statement[:-1].rstrip() + " " + continued.strip().removeprefix("#").strip()
        yield statement, None


def parse(text):
    """Return the steps of `text`, dicts with keywords in small letters, and what is no statement.

    Of the variables, keywords said earlier are replaced here, and others by `resolve`.
    """
    steps, current, script = [], {}, []
    for statement, line in statements(text):
        if statement is None:
            script.append(line)
        elif statement.lower() == "queue":
            steps.append({**_inherited(steps), **current})
            current = {}
        elif assignment := ASSIGNMENT.fullmatch(statement):
            known = {**_inherited(steps), **current}
            current[assignment[1].lower()] = expand(assignment[2].strip(), known)
        elif not re.fullmatch(r"\w*", statement):
            raise RefusedError(f"syntax error: # @ {statement}")
    if not steps:
        raise RefusedError("the job command file has no 'queue' statement")
    return steps, "\n".join(script)


def expand(value, variables):
    """Replace the `$(name)` that are among `variables`, whatever their case; leave the others."""
    return VARIABLE.sub(lambda match: str(variables.get(match[1].lower(), match[0])), value)


def resolve(keywords, variables):
    """Return the step with what only the schedd knows: `$(jobid)`, `$(host)`, `$(stepid)`, ..."""
    return {keyword: expand(value, variables) for keyword, value in keywords.items()}


def _inherited(steps):
    first = steps[0] if steps else {}
    return {keyword: value for keyword, value in first.items() if keyword not in NOT_INHERITED}

"""mgran-fast doctor: what is installed, what runs where, and why; what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from mgran_fast.cli import START, app


@app.command(rich_help_panel=START)
def doctor(json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Tell versions, devices, which backend each op uses and why, and what to do.

    Example: mgran-fast doctor
    """
    from mgran_fast.cli import common
    from mgran_fast.diagnosis import doctor as look

    found = look()
    if json_:
        common.print_json(found)
        return
    say = common.console.print
    say(f"Python {found['python']} on {found['platform']}")
    for name, version in found["packages"].items():
        say(f"{name}: {version or 'not installed'}")
    for name, value in found["extension"].items():
        say(f"extension {name}: {value or 'none'}")
    say(f"torch was built with CUDA: {found['cuda'] or 'no'}")
    say(f"devices: {', '.join(found['devices'])}")
    for op, choices in found["ops"].items():
        for device, choice in choices.items():
            say(f"{op} on {device}: {choice}")
    for name, extra in found["extras"].items():
        if extra["missing"]:
            say(f"not installed, for {extra['for']}: pip install 'mgran_fast[{name}]' ({', '.join(extra['missing'])})")
    for line in found["advice"]:
        say(f"advice: {line}", style="yellow")
    if not found["advice"]:
        say("nothing to mend", style="green")

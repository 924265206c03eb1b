"""mgran-fast doctor: what is installed, what runs where, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from mgran_fast.cli import app


@app.command()
def doctor(json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Tell versions, devices, and which backend each op uses and why.

    Example: mgran-fast doctor
    """
    from mgran_fast.cli import common
    from mgran_fast.diagnosis import doctor as look

    found = look()
    if json_:
        common.print_json(found)
        return
    common.console.print(f"Python {found['python']} on {found['platform']}")
    for name, version in found["packages"].items():
        common.console.print(f"{name}: {version or 'not installed'}")
    for name, value in found["extension"].items():
        common.console.print(f"extension {name}: {value or 'none'}")
    common.console.print(f"devices: {', '.join(found['devices'])}")
    for op, choices in found["ops"].items():
        for device, choice in choices.items():
            common.console.print(f"{op} on {device}: {choice}")
    for line in found["advice"]:
        common.console.print(f"advice: {line}", style="yellow")

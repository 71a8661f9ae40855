"""Prints the kill table of the wrong-answer banks at the end of a test run."""


def pytest_terminal_summary(terminalreporter):
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    rows = sorted(value for r in reports for key, value in getattr(r, "user_properties", []) if key == "bank")
    if not rows:
        return
    terminalreporter.section("wrong-answer bank")
    for topic, name, killed, wrong, accepted, right in rows:
        terminalreporter.line(
            f"{topic:<22}{name:<26}{killed:>4} of {wrong:<4} wrong rejected  {accepted:>4} of {right:<4} right accepted"
        )
    killed, wrong, accepted, right = (sum(row[k] for row in rows) for k in range(2, 6))
    terminalreporter.line(
        f"kill rate {killed / wrong:.0%} ({killed} of {wrong}), accepted {accepted / right:.0%} ({accepted} of {right})"
    )

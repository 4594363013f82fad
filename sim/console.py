"""What a person (or a program, with --json) reads at the end of an exploration."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from sim.explore import Budget, Found, Result
from sim.native import compiled
from sim.totals import COMPLETE, FOUND
from sim.trace.format import Trace
from sim.trace.replay import Divergence
from sim.workload import Program, Workload

EXIT_PROVED, EXIT_FINDING, EXIT_USAGE, EXIT_INCONCLUSIVE, EXIT_DIVERGED, EXIT_INTERNAL = range(6)

LONG_S = 10.0  # a search that took so long had better be compiled
MILLION = 1e6  # from here on numbers are shown with an exponent

EXIT_CODES = {"proved": EXIT_PROVED, "finding": EXIT_FINDING, "inconclusive": EXIT_INCONCLUSIVE}


def machine_line(program: Program) -> str:
    """On what the workload runs: ``v5.10 model``; empty if on no model."""
    return program.machine.environment.get("model", "")


def params_line(program: Program) -> str:
    """The parameters, as they would be given: ``readers=1 updates=2``."""
    return " ".join(f"{name}={_text(value)}" for name, value in program.params.items())


def workloads_json(workloads: Mapping[str, Workload]) -> list[dict[str, Any]]:
    """Workloads by name, as JSON objects."""
    return [
        {
            "name": name,
            "summary": made.summary,
            "params": {p.name: p.default for p in made.all_parameters().values()},
        }
        for name, made in workloads.items()
    ]


def result_json(program: Program, options: dict[str, Any], result: Result) -> dict[str, Any]:
    """The result as one JSON object; `options` are strategy, seed and budget."""
    return {
        "verdict": result.verdict,
        "workload": program.workload.name,
        "kernel": program.machine.version,
        "model": machine_line(program),
        "params": dict(program.params),
        **result.remarks,
        **options,
        "executions": result.executions,
        "directed": result.directed,
        "cut": result.cut,
        "redundant": result.redundant,
        "fatal": result.fatal,
        "blocked": result.blocked,
        "classes": result.classes,
        "steps": result.steps,
        "elapsed_s": round(result.elapsed_s, 3),
        "complete": result.exhausted,
        "joint_waits": result.joint_waits,
        "shared_cpu": result.shared_cpu,
        "holder_waited": result.holder_waited,
        "doubts": sorted(result.doubts),
        "preemption_bound": result.bound,
        "preemptions_finished": None if result.cut else result.finished,
        "stopped": _stopped(result),
        "estimate": result.estimate,
        "estimate_low": result.estimate_low,
        "estimate_high": result.estimate_high,
        "at_least": result.at_least,
        "digest": program.digest,
        "findings": [_found_json(found) for found in result.findings],
        "races": [_found_json(found) for found in result.races],
        "predicted": result.predicted,
        "outcomes": [
            {"outcome": _plain(outcome), "executions": count}
            for outcome, count in sorted(result.outcomes.items(), key=_outcome_key)
        ],
    }


def _found_json(found: Found) -> dict[str, Any]:
    return {
        "kind": found.finding.kind,
        "title": found.finding.title,
        "threads": list(found.finding.threads),
        "execution": found.number,
        "directed": found.directed,
        "probed": found.probed,
        "preemptions": found.within,
        "trace": found.trace,
    }


def run_json(trace: Trace, verdict: str) -> dict[str, Any]:
    """One execution as a JSON object."""
    return {
        "verdict": verdict,
        "workload": trace.header.workload,
        "kernel": trace.header.environment.get("kernel", ""),
        "strategy": trace.header.strategy,
        "seed": trace.header.seed,
        "ended": trace.verdict.verdict if trace.verdict else "",
        "steps": len(trace.events),
        "choices": list(trace.choices),
        "findings": [_record_json(trace, number) for number in range(len(trace.findings))],
    }


def trace_json(trace: Trace) -> dict[str, Any]:
    """What a trace is of, as a JSON object; its events are in the file, one a line."""
    header = trace.header
    return {
        **run_json(trace, "finding" if any(f.decides for f in trace.findings) else "inconclusive"),
        "params": header.parameters,
        "environment": header.environment,
        "threads": list(trace.threads),
        "trace": trace.path,
    }


def replay_json(trace: Trace, divergence: Divergence | None) -> dict[str, Any]:
    """A replay as a JSON object."""
    return {
        "verdict": "agrees" if divergence is None else "diverged",
        "workload": trace.header.workload,
        "trace": trace.path,
        "steps": len(trace.events),
        "findings": [_record_json(trace, number) for number in range(len(trace.findings))],
        "divergence": None if divergence is None else str(divergence),
    }


def _record_json(trace: Trace, number: int) -> dict[str, Any]:
    found = trace.findings[number]
    return {
        "kind": found.kind,
        "title": found.title,
        "threads": list(found.threads),
        "decides": found.decides,
        "trace": trace.path,
    }


def summary(program: Program, result: Result) -> list[str]:
    """The verdict and what it rests on, in lines for a person."""
    lines = [
        f"{_headline(program, result)}: {_count(result.executions, 'execution')}, "
        f"{_count(result.steps, 'step')}, {result.elapsed_s:.2f} s "
        f"({_rate(result.executions, result.elapsed_s)} executions/s, "
        f"{_rate(result.steps, result.elapsed_s)} steps/s)"
    ]
    if result.redundant:
        lines.append(
            f"  {result.redundant:,} of them ended early, where they came to what had been run "
            "before"
        )
    lines += _what_it_means(program, result)
    titles = Counter(found.finding.title for found in result.findings)
    for found in result.findings:
        how = ", by a search directed at a predicted one" if found.directed else ""
        if found.probed:
            how = ", or rather one run behind it to estimate how many there are"
        if found.within is not None:
            how += f", within {_count(found.within, 'preemption')}"
        if titles[found.finding.title] > 1:
            how += f"; tasks {', '.join(found.finding.threads)}"
        lines.append(f"  {found.finding.title}  (execution {found.number}{how})")
        lines += _where(found)
    if result.races:
        lines.append("data races that the kernel allows by design (they decide nothing):")
        for found in result.races:
            lines.append(f"  {found.finding.title}  (execution {found.number})")
            lines += _where(found)
    for predicted in result.predicted:
        lines.append(f"predicted, not witnessed: {predicted}")
    lines += _outcomes(result)
    return lines


def _headline(program: Program, result: Result) -> str:
    name = program.workload.name
    machine = machine_line(program)
    on = f" on {machine}" if machine else ""
    remarks = "".join(f", {what}: {said}" for what, said in result.remarks.items())
    return f"{result.verdict.upper()}: {name}{on}{remarks}"


def _what_it_means(program: Program, result: Result) -> list[str]:
    """How far the verdict reaches, stated plainly."""
    if result.verdict == "proved":
        return [
            f"all interleavings explored, {_classes(result)}up to the order of independent steps: "
            "no finding, under sequential consistency, unbounded, "
            f"for {params_line(program) or 'this program'} (model digest {program.digest})",
            *(["  some classes may have been run more than once"] if result.joint_waits else []),
        ]
    if result.verdict == "finding":
        return _all_of_it(result)
    lines = []
    if result.complete and result.bound is not None and not result.cut:
        bound = _count(result.bound, "preemption")
        lines.append(
            f"no finding within {bound} (all such interleavings explored, sequential "
            "consistency): more preemptions may still find something; this is no proof"
        )
        lines += [f"  {reason}" for reason in sorted(result.reasons)]
    else:
        if result.complete and not result.cut:
            lines.append("nothing found in all interleavings explored, but this is no proof:")
            lines += [f"  {reason}" for reason in sorted(result.reasons)]
        elif result.exhausted:
            lines.append("nothing found, but executions were cut: this is no proof")
        elif result.complete:
            lines.append(
                "nothing found, but executions were cut, and what other threads could have done in "
                "them is not explored (--strategy random samples it): this is no proof"
            )
        else:
            lines.append(
                f"nothing found before {result.stopped} ended the search: this is no proof"
            )
        if result.finished is not None and not result.cut:
            lines.append(f"  no finding within {_count(result.finished, 'preemption')}")
        if not result.cut:
            lines += _size(result)
        if result.elapsed_s >= LONG_S and not compiled():
            lines.append("  the engine runs as Python: rcusim-compile makes it much faster")
    if result.cut:
        lines.append(
            f"  {_count(result.cut, 'execution')} cut at the step budget (--max-steps); a loop "
            "that spins until others change a cell needs cpu_relax(cell, seen) in it"
        )
    return lines


def _all_of_it(result: Result) -> list[str]:
    """That there is nothing more to find, if so, though something was found."""
    if not result.complete or result.bound is not None or result.cut or result.reasons:
        return []
    ended = f", {_count(result.fatal, 'execution')} ended by a finding" if result.fatal else ""
    ended += f", {result.directed:,} directed at predicted ones" if result.directed else ""
    return [
        f"all interleavings explored, {_classes(result)}up to the order of independent steps{ended}"
    ]


def _stopped(result: Result) -> str:
    return "the step limit" if result.complete and not result.exhausted else result.stopped


def _size(result: Result) -> list[str]:
    """How many executions there are in all, as far as that is known."""
    about, low, high = result.estimate, result.estimate_low, result.estimate_high
    if about is None:
        if result.at_least is None:
            return []
        least = f"at least {_count(result.at_least, 'execution')} in all"
        return [f"  {least}; no estimate, for samples take too long"]
    if low is None or high is None:
        return [f"  about {_rough(about)} executions in all (a rough estimate)"]
    if low == high:
        return [f"  {about:,.0f} executions in all"]
    between = f"between {_rough(low)} and {_rough(high)}"
    least = f"at least {result.at_least:,} for certain"
    return [f"  about {_rough(about)} executions in all ({between}), {least}"]


def _rough(number: float) -> str:
    """Two digits of a number, without an exponent if that is short."""
    if math.isinf(number):
        return "more than 1e308"
    text = f"{number:.1e}"
    if number >= MILLION:
        digits, _, exponent = text.partition("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return f"{float(text):,.0f}"


def _classes(result: Result) -> str:
    return "" if result.classes is None else f"{_count(result.classes, 'class', 'classes')} "


def _where(found: Found) -> list[str]:
    if not found.trace:
        return []
    return [f"    replay: rcusim replay {found.trace}", f"    show:   rcusim show {found.trace}"]


def _outcomes(result: Result) -> list[str]:
    if not result.outcomes:
        return []
    shown = sorted(result.outcomes.items(), key=_outcome_key)
    width = max(len(str(count)) for _, count in shown)
    lines = ["outcomes (executions that ended so):"]
    return lines + [f"  {count:>{width}}  {_outcome_text(outcome)}" for outcome, count in shown]


def _outcome_key(item: tuple[tuple[Any, ...], int]) -> str:
    return _outcome_text(item[0])


def _outcome_text(outcome: tuple[Any, ...]) -> str:
    return ", ".join(_text(value) for value in outcome)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "(" + ", ".join(_text(item) for item in value) + ")"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, int | str | None) else str(value)


def _count(n: int, what: str, many: str = "") -> str:
    return f"{n:,} " + (what if n == 1 else many or f"{what}s")


def _rate(n: int, seconds: float) -> str:
    return f"{n / seconds:,.0f}" if seconds > 0 else "-"


# -- while it runs ---------------------------------------------------------------------------------


def intro(program: Program, strategy: str, seed: int, budget: Budget) -> str:
    """What is about to be explored, how, and within which budget."""
    most = budget.executions
    limit = f"{_count(most, 'execution')} or " if most is not None else ""
    machine = machine_line(program) or "no model"
    seeded = "" if strategy in ("dfs", "dpor") else f", seed {seed}"
    return "\n".join(
        [
            f"{program.workload.name} on {machine}: {params_line(program) or 'no parameters'}",
            f"strategy {strategy}{seeded}; at most {limit}{budget.seconds:g} s "
            "(--max-executions, --max-duration)",
        ]
    )


class ProgressLine:
    """One line on the terminal that says how far the search is; silent where there is none."""

    def __init__(self, *, enabled: bool) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"))
        console = Console(stderr=True)
        self.shown = enabled and console.is_terminal
        self._bar = Progress(*columns, console=console, transient=True, disable=not self.shown)
        self._task = self._bar.add_task("starting")

    def __enter__(self) -> ProgressLine:
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    def show(self, result: Result) -> None:
        """Show how far the exploration is; called now and then."""
        self._bar.update(self._task, description=progress_text(result))


def progress_text(result: Result) -> str:
    """How far an exploration is: executions, how fast, classes, how many there may be, findings."""
    rate = _rate(result.executions, result.elapsed_s)
    told = [f"{_count(result.executions, 'execution')}, {rate}/s"]
    of = "" if result.estimate is None else f" of about {_rough(result.estimate)}"
    if result.optimal and not result.joint_waits:
        told.append(_count(result.distinct, "class", "classes") + of)
    else:
        told[0] = f"{_count(result.executions, 'execution')}{of}, {rate}/s"
    if result.optimal and result.stopped not in ("", COMPLETE, FOUND):
        told.append("estimating")
    else:
        told.append(_count(len(result.findings), "finding"))
    return ", ".join(told)


def terminal_width() -> int:
    """The columns of the terminal; 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns

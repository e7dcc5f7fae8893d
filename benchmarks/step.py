"""Time and memory of one step compared with other libraries, and how far it is from the machine's own limit.

    python benchmarks/step.py            # one to two hours on two cores
    python benchmarks/step.py --quick    # seconds: only to see that it works
    python benchmarks/step.py --cases small ragged --peers trl_step "trl 0.7.11" --rounds 5
    python benchmarks/step.py --cases small grpo gspo own-loss --peers trl_step "trl 1.16.0"
    python benchmarks/step.py --cases group-long-prompt --peers trl_step "trl_step apart"

Every run is a fresh process: one warm-up, then `--steps` steps. The contenders alternate, `--rounds` times, and so do
the cases of equal shape, whose times are compared. A run in which the machine's matrix rate changed by more than 15 %
between start and end is repeated, at most `--retries` times.

No time is reported before the libraries agree: with "gae" the warm-up's statistics and weights with release 0.7.11
(without it, with the first contender), and a loss of the user's own with the built-in one; with group advantages, the
movement of all weights in one step on a small batch that is a single mini-batch, as every library draws mini-batches in
another order.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

from cases import CASES, Case, comparable, families, quick, quick_names
from command_line import options, parse
from peers import APART, OURS, PEERS, python_of, run
from report import bars, save, show

REFERENCE = "trl 0.7.11"
GOALS = {  # time over the reference's, time over the limit, peak over the reference's
    "small": (0.45, 2.2, 0.35),
    "fixed": (0.45, 1.6, 0.45),
    "ragged": (0.25, 2.2, 0.3),
    "long-prompt": (0.35, 2.2, 0.3),
    "shared": (0.3, 1.8, 0.35),
    "lora": (0.45, 1.8, 0.45),
}
SHARING_GOALS = {  # time and peak over those without sharing
    "group-long-prompt": (0.35, 0.5),
}
ALGORITHM_GOALS = {  # time over that of the clipped loss with the same advantages; peak as there
    "own-loss": 1.05,
    "gspo": 1.35,
}


def differences(ours: dict[str, Any], theirs: dict[str, Any], rtol: float = 2e-3, atol: float = 2e-4) -> list[str]:
    """Statistics and weights (sum and norm of each) that do not agree after one step."""
    found = []
    for kind in ("stats", "weights"):
        for name, value in theirs[kind].items():
            mine = ours[kind].get(name)
            pairs = [(mine, value)] if kind == "stats" else zip(mine or (), value, strict=True)
            if mine is None or any(abs(a - b) > atol + rtol * abs(b) for a, b in pairs):
                found.append(f"{kind} {name}: {mine} against {value}")
    return found


def far_apart(ours: dict[str, list[float]], theirs: dict[str, list[float]], rtol: float = 1e-3) -> str:
    """What differs between two movements of the weights; empty if they agree."""
    if ours.keys() != theirs.keys():
        return f"weights that only one of them trains: {sorted(ours.keys() ^ theirs.keys())}"
    pairs = [(a, b) for name in theirs for a, b in zip(ours[name], theirs[name], strict=True)]
    distance = math.sqrt(sum((a - b) ** 2 for a, b in pairs) / sum(b * b for _, b in pairs))
    return "" if distance <= rtol else f"the weights moved elsewhere: {distance:.2%} of the way"


def check_movement(case: Case, peers: list[str], pythons: dict[str, str], threads: int) -> None:
    """Stop unless all libraries move the weights alike in a step of the case's algorithm."""
    job = {"case": comparable(case).arguments(), "compare": True, "threads": threads}
    moved = {name: run(pythons[name], "worker.py", job | {"library": PEERS[name].library})["moved"] for name in peers}
    for name in peers[1:]:
        if wrong := far_apart(moved[peers[0]], moved[name]):
            raise SystemExit(f"{case.name}: {peers[0]} does not agree with {name}: {wrong}")


def measure(
    family: list[Case], peers: list[str], pythons: dict[str, str], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """All runs of cases of one shape, with alternating cases and contenders: case, library, summary."""
    pairs = [(case, name) for case in family for name in peers if PEERS[name].runs(case)]
    for case in family:
        able = [name for name in peers if PEERS[name].runs(case)]
        if case.grouped and len(able) > 1:
            check_movement(case, able, pythons, args.threads)
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {(case.name, name): [] for case, name in pairs}
    for _ in range(args.rounds):
        for case, name in pairs:
            result = steady(case, name, pythons[name], args)
            runs[case.name, name].append(result)
            trusted = REFERENCE if REFERENCE in peers else peers[0]
            known = (case.like, name) if case.algorithm == "own-loss" else (case.name, trusted)
            if runs.get(known) and known != (case.name, name):
                wrong = differences(result, runs[known][0])
                if case.algorithm == "own-loss":  # which does not say what it clips
                    wrong = [line for line in wrong if not line.startswith("stats ppo/policy/clipfrac")]
                if wrong:
                    raise SystemExit(f"{case.name}: {name} does not agree with {known}:\n" + "\n".join(wrong[:10]))
    found: dict[str, dict[str, Any]] = {case.name: {} for case in family}
    for case, name in pairs:
        found[case.name][name] = summary(case, runs[case.name, name])
    return found


def steady(case: Case, name: str, python: str, args: argparse.Namespace) -> dict[str, Any]:
    """One run, repeated if the machine was not steady."""
    job = {"library": PEERS[name].library, "case": case.arguments(), "steps": args.steps, "threads": args.threads,
           "config": dict(PEERS[name].settings)}  # fmt: skip
    for attempt in range(args.retries + 1):
        result = run(python, "worker.py", job)
        before, after = result["rate"]
        if abs(before - after) <= 0.15 * max(before, after) or attempt == args.retries:
            break
    return result


def summary(case: Case, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and minimum over all steps of all runs."""
    seconds = [s for result in results for s in result["seconds"]]
    rate = max(rate for result in results for rate in result["rate"])
    limit = case.flops() / rate
    return {
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "cpu_seconds": statistics.median([s for result in results for s in result["cpu_seconds"]]),
        "peak_mb": statistics.median([result["peak_mb"] for result in results]),
        "gflops": rate / 1e9,
        "limit_seconds": limit,
        "ratio_to_limit": ratio(case, results),
        "versions": results[0]["versions"],
    }


def ratio(case: Case, results: list[dict[str, Any]]) -> float:
    """Median time of a step divided by that of its products alone, at the best rate of the same process."""
    return statistics.median([s * max(result["rate"]) / case.flops() for result in results for s in result["seconds"]])


def table(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """One row per case and peer."""
    rows = []
    for case, by_peer in found.items():
        base = by_peer.get(REFERENCE)
        for peer, r in by_peer.items():
            relative = [over(r[key], base[key] if base else 0) for key in ("seconds", "cpu_seconds", "peak_mb")]
            rows.append(
                [f"{case}: {peer}", f"{r['seconds']:.2f}", f"{r['seconds_min']:.2f}", relative[0], relative[1],
                 f"{r['ratio_to_limit']:.2f}", f"{r['peak_mb']:.0f}", relative[2]]
            )  # fmt: skip
    return rows


def algorithm_table(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """One row per case and peer, where a shape was measured with several algorithms."""
    rows = []
    for family in families(list(found)):
        if len(family) < 2:
            continue
        gae = found.get(family[0].shape, {}).get(OURS.name)
        grpo = next((found[case.name].get(OURS.name) for case in family if case.algorithm == "grpo"), None)
        for case in family:
            ours = found[case.name].get(OURS.name)
            clip = grpo if case.grouped else gae
            for peer, r in found[case.name].items():
                rows.append(
                    [f"{case.name}: {peer}", f"{r['seconds']:.2f}",
                     *(over(r["seconds"], base["seconds"] if base else 0) for base in (gae, clip, ours)),
                     f"{r['peak_mb']:.0f}", over(r["peak_mb"], gae["peak_mb"] if gae else 0)]
                )  # fmt: skip
    return rows


def sharing_table(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """One row per case that was measured with and without sharing; the least times are compared."""
    rows = []
    for case, by_peer in found.items():
        ours, apart = by_peer.get(OURS.name), by_peer.get(APART.name)
        if ours and apart:
            rows.append(
                [case, f"{ours['seconds_min']:.2f}", f"{apart['seconds_min']:.2f}",
                 over(ours["seconds_min"], apart["seconds_min"]), over(ours["peak_mb"], apart["peak_mb"])]
            )  # fmt: skip
    return rows


def over(value: float, base: float) -> str:
    return f"{value / base:.2f}" if base > 0 else ""


def main() -> None:
    parser = options(__doc__, list(PEERS), rounds=3, steps=5, retries=2)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    args = parse(parser)
    names = quick_names() if args.quick and args.cases == list(CASES) else args.cases
    pythons = {name: python_of(PEERS[name], dict(args.python)) for name in args.peers}
    found: dict[str, dict[str, Any]] = {}
    for family in families(names):
        found |= measure([quick(case) for case in family] if args.quick else family, args.peers, pythons, args)
        header = ["case: library", "s/step", "min", "time /0.7.11", "CPU /0.7.11", "/limit", "peak MB",
                  "peak /0.7.11"]  # fmt: skip
        show("one step, float32", header, table(found))
        if rows := algorithm_table(found):
            header = ["case: library", "s/step", "time /gae", "time /clip", "time /trl_step", "peak MB", "peak /gae"]
            show("the same shape, another algorithm", header, rows)
        if rows := sharing_table(found):
            show("a query once", ["case", "s/step", "s/step apart", "time /apart", "peak /apart"], rows)
        if not args.quick:
            record(found, args)


def record(found: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """Write what is measured so far: step.json against older releases, algorithms.json where algorithms differ,
    sharing.json with a query once and with each sample's own."""
    gae = {name: by_peer for name, by_peer in found.items() if CASES[name].algorithm == "gae" and REFERENCE in by_peer}
    if gae:
        save("step", {"goals": GOALS, "cases": gae}, args.output)
        peers = [peer for peer in args.peers if all(peer in by_peer for by_peer in gae.values())]
        series = {peer: [by_peer[peer]["seconds"] for by_peer in gae.values()] for peer in peers}
        bars(args.output / "step.png", "seconds per PPO step", list(gae), series, "s")
    shared = {name: by_peer for name, by_peer in found.items() if OURS.name in by_peer and APART.name in by_peer}
    if shared:
        save("sharing", {"goals": SHARING_GOALS, "cases": shared}, args.output)
    compared = [case.name for family in families(list(found)) if len(family) > 1 for case in family]
    if compared:
        cases = {name: found[name] for name in compared}
        save("algorithms", {"goals": ALGORITHM_GOALS, "cases": cases}, args.output)


if __name__ == "__main__":
    main()

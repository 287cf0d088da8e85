"""report.html: a run's curves, samples and scores in one file that opens from disk.

`write_report` reads a run folder (metrics.jsonl, samples/, config.json), or a demo folder with
several runs, and writes HTML without scripts and without anything from the network: curves are
inline SVG, pictures are embedded.
"""

import base64
import html
import json
import math
from pathlib import Path
from typing import Any

from minimodal.errors import UserError
from minimodal.files import write_atomically
from minimodal.training.checkpoint import load_run_config, read_metrics
from minimodal.training.recipes import SYSTEMS

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #8884; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: 13px; } svg { width: 100%; height: auto; }
path { fill: none; stroke: #2a6fb0; stroke-width: 1.5; } rect { fill: #8881; }
text { font-size: 10px; fill: currentColor; } img { max-width: 100%; image-rendering: pixelated; }
table { border-collapse: collapse; } td { padding: .1rem 1rem .1rem 0; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } pre { overflow-x: auto; }
"""
WIDTH, HEIGHT = 280, 120
NOT_CURVES = {"step", "seconds", "done"}
LATEST = 3  # sample pictures shown of a run, the newest last


def curve(name: str, points: list[tuple[float, float]]) -> str:
    """One metric over the steps, as an SVG figure."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    # A loss that falls by more than a factor of 20 is only readable on a logarithmic axis.
    logarithmic = "loss" in name and min(ys) > 0 and max(ys) > 20 * min(ys)
    levels = [math.log10(y) for y in ys] if logarithmic else ys
    low, high = min(levels), max(levels)
    span_x, span_y = (max(xs) - min(xs)) or 1, (high - low) or 1
    places = [
        f"{(x - min(xs)) / span_x * WIDTH:.1f},{HEIGHT - (y - low) / span_y * HEIGHT:.1f}"
        for x, y in zip(xs, levels, strict=True)
    ]
    scale = ", log scale" if logarithmic else ""
    return (
        f'<figure><svg viewBox="0 -14 {WIDTH} {HEIGHT + 28}" role="img">'
        f'<rect width="{WIDTH}" height="{HEIGHT}"/><path d="M{" L".join(places)}"/>'
        f'<text x="2" y="-4">{max(ys):.4g}</text>'
        f'<text x="2" y="{HEIGHT + 11}">{min(ys):.4g}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 11}" text-anchor="end">step {max(xs):g}</text></svg>'
        f"<figcaption>{html.escape(name)}: {ys[-1]:.4g}{scale}</figcaption></figure>"
    )


def is_number(value: Any) -> bool:
    """What a curve can show."""
    sort = isinstance(value, (int, float)) and not isinstance(value, bool)
    return sort and math.isfinite(value)


def curves(lines: list[dict[str, Any]]) -> str:
    """A figure for each metric that was logged more than once."""
    names = dict.fromkeys(name for line in lines for name in line if name not in NOT_CURVES)
    figures = []
    for name in names:
        points = [(line["step"], line[name]) for line in lines if is_number(line.get(name))]
        if len(points) > 1:
            figures.append(curve(name, points))
    return f'<div class="curves">{"".join(figures)}</div>' if figures else "<p>No curves yet.</p>"


def picture(path: Path) -> str:
    """A PNG, embedded."""
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.stem)
    return f'<figure><img alt="{name}" src="data:image/png;base64,{data}">' + (
        f"<figcaption>{name}</figcaption></figure>"
    )


def table(scores: dict[str, Any]) -> str:
    """Names and numbers."""
    rows = []
    for name, value in scores.items():
        shown = f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
        rows.append(f'<tr><td>{html.escape(name)}</td><td class="number">{shown}</td></tr>')
    return f"<table>{''.join(rows)}</table>"


def run_section(run: Path) -> str:
    """One run: last numbers, curves, samples, configuration."""
    lines = read_metrics(run)
    config = load_run_config(run)
    last = {k: v for line in lines[-2:] for k, v in line.items() if k != "done"}
    samples = sorted((run / "samples").glob("*.png"))[-LATEST:]
    return (
        f"<h2>{html.escape(run.resolve().name)} ({html.escape(str(config['kind']))})</h2>"
        + curves(lines)
        + "".join(picture(sample) for sample in samples)
        + table(last)
        + "<details><summary>configuration</summary><pre>"
        + html.escape(json.dumps(config, indent=2))
        + "</pre></details>"
    )


def scoreboard(path: Path) -> str:
    """The scores of a demo or a comparison, a table for each system."""
    try:
        board = json.loads(path.read_text(encoding="utf-8"))
        single = {name: value for name, value in board.items() if not isinstance(value, dict)}
    except (ValueError, AttributeError):
        raise UserError(f"{path} is damaged: expected the JSON that the demo writes") from None
    tables = {name: scores for name, scores in board.items() if isinstance(scores, dict)}
    parts = [(name, table(scores)) for name, scores in tables.items()]
    parts += [("run", table(single))] if single else []
    return "".join(f"<h2>scores: {html.escape(name)}</h2>{found}" for name, found in parts)


def find_runs(out: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs in it."""
    if (out / "config.json").exists():
        return [out]
    found = sorted(path.parent for path in out.glob("*/config.json"))
    order = list(SYSTEMS)  # as they are trained; other runs follow by name
    return sorted(found, key=lambda run: order.index(run.name) if run.name in order else len(order))


def write_report(out: Path) -> None:
    """Write report.html into a run folder or a demo folder."""
    if not out.is_dir():
        raise UserError(f"{out}: no such folder to report on; give one that train.py wrote")
    parts = [f"<h1>{html.escape(out.resolve().name)}</h1>"]
    if (out / "samples.png").exists():
        parts.append(picture(out / "samples.png"))
    if (out / "scoreboard.json").exists():
        parts.append(scoreboard(out / "scoreboard.json"))
    parts += [run_section(run) for run in find_runs(out)]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>minimodal</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    write_atomically(out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))

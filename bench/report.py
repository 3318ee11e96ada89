"""Results of bench/harness.py as text, Markdown and SVG, and in the documents."""
import json
import os
import re

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COLOURS = ["#1f6feb", "#79b8ff", "#2da44e", "#85e0a3", "#bf8700", "#e3b341", "#8250df", "#cf222e", "#8b8b8b"]

NOT_MEASURED = "not measured: "


def kernel_version(env):
    return ".".join(env["kernel"].split(".")[:2])


def failed(result, mode):
    return not result["problems"].get(mode, NOT_MEASURED).startswith(NOT_MEASURED)


def cell(result, mode, spread):
    value, ratio, samples = result["median"].get(mode), result["ratio"].get(mode), result["samples"].get(mode)
    if mode not in result["median"]:
        return ""  # joined results: this workload ran without this mode
    if value is None:
        return "failed" if failed(result, mode) else ""
    text = f"{value:.2f}"
    if spread:
        text += f" [{min(samples):.2f} to {max(samples):.2f}]"
    return text + (f" {ratio:.2f}x" if ratio is not None and mode != "kernel" else "")


def rows(results, modes, env, spread):
    out = [["work", "unit", *modes]]
    out += [[r["work"], r["unit"], *(cell(r, m, spread) for m in modes)] for r in results]
    if env.get("runsc", "").startswith("not installed"):
        out.append(["all of them under runsc", "", env["runsc"], *[""] * (len(modes) - 1)])
    return out


def table(results, modes, env):
    lines = rows(results, modes, env, False)
    widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]))]
    text = [" | ".join(c.rjust(w) if i > 1 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def markdown(results, modes, env, spread=True):
    lines = rows(results, modes, env, spread)
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join("| " + " | ".join(row) + " |\n" for row in lines)


def svg(results, modes, env):
    """Bars of the ratio to the kernel, one group for each workload where more is better."""
    shown = [m for m in modes if m != "kernel"]
    groups = [r for r in results if r["more_is_better"] and any(r["ratio"].get(m) is not None for m in shown)]
    bar, gap, left, scale = 12, 14, 260, 300
    height = 50 + len(groups) * (bar * len(shown) + gap) + 30
    width = max(left + scale * 2 + 60, left + 110 * len(shown))
    title = f"sluice against the plain kernel {kernel_version(env)}, {env['cores']} cores, {env['commit']}"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
           f'<text x="10" y="18" font-size="13">{title}</text>']
    for i, m in enumerate(shown):
        out.append(f'<rect x="{left + i * 110}" y="26" width="10" height="10" fill="{COLOURS[i % len(COLOURS)]}"/>'
                   f'<text x="{left + 14 + i * 110}" y="35">{m}</text>')
    y = 50
    for r in groups:
        out.append(f'<text x="{left - 8}" y="{y + bar * len(shown) / 2 + 4}" text-anchor="end">{r["work"]}</text>')
        for i, m in enumerate(shown):
            ratio = r["ratio"].get(m)
            if ratio is not None:
                out.append(f'<rect x="{left}" y="{y}" width="{min(ratio, 2) * scale:.0f}" height="{bar - 1}" fill="{COLOURS[i % len(COLOURS)]}"/>'
                           f'<text x="{left + min(ratio, 2) * scale + 4:.0f}" y="{y + 10}">{ratio:.2f}x</text>')
            y += bar
        y += gap
    out.append(f'<line x1="{left + scale}" y1="44" x2="{left + scale}" y2="{y}" stroke="#444" stroke-dasharray="3"/>'
               f'<text x="{left + scale}" y="{y + 14}" text-anchor="middle">the plain kernel</text></svg>')
    return "\n".join(out)


def save(env, results, modes, directory):
    print("\n" + table(results, modes, env))
    os.makedirs(directory, exist_ok=True)
    stem = os.path.join(directory, env["time"].replace(":", "").split("+")[0])
    with open(f"{stem}.json", "w", encoding="utf-8") as f:
        json.dump({"environment": env, "results": results}, f, indent=1)
    with open(f"{stem}.md", "w", encoding="utf-8") as f:
        f.write(markdown(results, modes, env) + "\n" + "".join(f"- {k}: {v}\n" for k, v in env.items()))
    with open(f"{stem}.svg", "w", encoding="utf-8") as f:
        f.write(svg(results, modes, env))
    print(f"\nsaved {stem}.json, .md and .svg")


def replace_between(path, text):
    """Puts `text` between the marks of a document."""
    with open(path, encoding="utf-8") as f:
        before = f.read()
    after, count = re.subn(r"(<!-- bench -->\n).*?(<!-- /bench -->\n)", lambda m: m.group(1) + text + m.group(2), before, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"bench: {path} has no marks <!-- bench --> and <!-- /bench -->")
    with open(path, "w", encoding="utf-8") as f:
        f.write(after)


def publish(env, results, modes, documents=ROOT):
    """The plot and the tables of README.md and docs/benchmarks.md."""
    with open(f"{documents}/docs/benchmarks.svg", "w", encoding="utf-8") as f:
        f.write(svg(results, modes, env))
    said = (f"Kernel {kernel_version(env)}, {env['cores']} cores ({env['cpu']}), {env['device']}, MTU {env['mtu']}, {env['congestion_control']}, "
            f"{env['placement']}, commit {env['commit']}; medians of {env['rounds']} interleaved rounds of {env['seconds']} s:\n`{env['command']}`.\n\n")
    if "runsc" in modes:
        said = said.rstrip() + f" runsc: {env['runsc']}, its defaults.\n\n"
    short = [m for m in ("kernel", "packet", "runsc") if m in modes]
    replace_between(f"{documents}/README.md", said + markdown(results, short, env, spread=False))
    replace_between(f"{documents}/docs/benchmarks.md", said + markdown(results, modes, env))

from __future__ import annotations

import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from factory import ROOT

from qgpo.experiments.measured_run import MACHINE
from qgpo.experiments.packing import PROVENANCE, ResultError, read_documents
from qgpo.experiments.report import figures, spread, table, to_html, write_report
from qgpo.experiments.results import Results, read_run
from qgpo.scripts import report as script

REFERENCE = {"minimum": 0.0, "maximum": 200.0, "source": "by hand"}
FIRST, SECOND = "test/first-v0", "test/second-v0"
DATA = {"id": FIRST, "fingerprint": FIRST, "returns": [50.0, 70.0], "reference": REFERENCE}
BEYOND = 10**400  # no float holds it


def write(
    folder: Path,
    label: str,
    seed: int,
    returns: dict[float | None, list[float]],
    on: str = FIRST,
    **changes,
) -> Path:
    """A cell's JSON; the headline scale is 1 where there is one."""
    folder.mkdir(exist_ok=True)
    about = {"id": on, "fingerprint": on, "returns": [50.0, 70.0]}
    cell = {
        "format_version": 1,
        "label": label,
        "preset": "laptop",
        "overrides": {},
        "measured": {"seed": seed},
        "headline_scale": None if None in returns else 1.0,
        "environment_steps": 0,
        "dataset": {**about, "reference": REFERENCE},
        "versions": {"python": "3.11", "qgpo": "0.1.0"},
        "machine": {"processor": "abacus", "cpus": 2, "device": "cpu", "threads": 1},
        "training": {"timesteps": 10, "wall_seconds": 100.0 + seed, "cpu_seconds": 90.0},
        "evaluation_seconds": 1.0,
        "evaluations": [
            {"guidance_scale": w, "returns": r, "lengths": [9] * len(r), "seeds": [*range(len(r))]}
            for w, r in returns.items()
        ],
    }
    path = folder / f"{on}-{label}-{seed}.json".replace("/", "-")
    path.write_text(json.dumps({**cell, **changes}))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two agents, two datasets, three seeds; `plain` lacks seed 2 on the second dataset."""
    folder = tmp_path / "cells"
    for seed in range(3):
        means = {0.0: 20.0, 1.0: 100.0 + 20.0 * seed, 2.0: 130.0}
        guided = {w: [m - 1.0, m + 1.0] for w, m in means.items()}
        write(folder, "guided", seed, guided)
        write(folder, "guided", seed, guided, SECOND)
        write(folder, "plain", seed, {None: [40.0, 60.0]})
        if seed < 2:
            write(folder, "plain", seed, {None: [110.0]}, SECOND)
    return folder


def test_cpu_time_counts_where_all_trained_on_cpus(folder):
    results = Results.read([folder])
    assert results.trained_on_cpu
    # 25 on one dataset with three seeds, 55 on the other with two; 90 seconds each
    assert results.center("plain") == (1.5, 40.0)
    gpu = {"processor": "abacus", "cpus": 2, "device": "cuda", "threads": 1}
    write(folder, "plain", 2, {None: [110.0]}, SECOND, machine=gpu)
    results = Results.read([folder])
    assert not results.trained_on_cpu
    # 100, 101 and 102 seconds of wall clock on both
    assert results.center("plain") == (pytest.approx(101 / 60), 40.0)
    unmeasured = {"timesteps": 10, "wall_seconds": 100.0, "cpu_seconds": None}
    write(folder, "plain", 2, {None: [110.0]}, SECOND, training=unmeasured)
    assert not Results.read([folder]).trained_on_cpu


def test_results_know_what_is_there_and_what_is_missing(folder):
    results = Results.read([folder])
    assert results.labels == ["guided", "plain"]
    assert results.datasets == [FIRST, SECOND]
    assert results.missing == [(SECOND, "plain", 2)]
    assert results.scores(FIRST, "guided").tolist() == [50.0, 60.0, 70.0]  # of 200
    assert results.scores(SECOND, "plain").tolist() == [55.0, 55.0]
    assert [len(task) for task in results.tasks("plain")] == [3, 2]
    assert results.tasks("plain", [FIRST])[0].tolist() == [25.0, 25.0, 25.0]
    assert results.best_scale(FIRST, "guided") == 2.0  # 130 against (100 + 120 + 140) / 3
    assert results.best_scale(FIRST, "plain") is None
    planned = [(FIRST, "plain", 0), (FIRST, "plain", 7), ("test/third-v0", "plain", 0)]
    assert Results.read([folder], planned).missing == planned[1:]
    assert Results.read([folder], planned).planned(SECOND, "plain") == []


def test_pairs_are_clear_when_the_interval_excludes_a_half(folder):
    [pair] = Results.read([folder]).improvements
    assert (pair.first, pair.second, pair.datasets, pair.runs) == ("guided", "plain", 2, 2)
    assert pair.probability == pytest.approx((1.0 + 2 / 3) / 2)
    assert pair.interval == (pytest.approx(0.5, abs=0.01), 1.0)
    assert not pair.is_clear
    for runs, clear in ((3, True), (1, False)):
        expected = [(FIRST, label, seed) for label in ("plain", "guided") for seed in range(runs)]
        [pair] = Results.read([folder], expected).improvements
        assert (pair.first, pair.probability, pair.interval) == ("plain", 0.0, (0.0, 0.0))
        assert pair.is_clear is clear


@pytest.mark.parametrize("reference", [None, {**REFERENCE, "maximum": 50.0}])
def test_the_score_is_of_the_environment_that_was_played(folder, reference, tmp_path):
    """Another one than that of the data may have other reference returns, or none."""
    path = write(tmp_path / "elsewhere", "elsewhere", 0, {None: [25.0]})
    document = json.loads(path.read_text())
    document["evaluations"][0]["reference"] = reference
    path.write_text(json.dumps(document))
    (run,) = Results.read([path.parent]).of(FIRST, "elsewhere")
    assert run.score == (None if reference is None else 50.0)
    with pytest.raises(ResultError, match=r"has the reference returns .*use separate folders"):
        Results.read([folder, path.parent])


def test_runs_that_are_not_expected_are_left_out(folder):
    every = Results.read([folder])
    expected = [key for key in every.runs if key[1] == "guided" and key[0] == FIRST]
    assert list(Results.read([folder], expected).runs) == expected
    without = Results.read([folder], [("test/none-v0", "guided", 0)])
    assert without.runs.keys() == every.runs.keys()


def test_runs_without_references_are_in_no_aggregate(folder):
    write(
        folder,
        "other",
        0,
        {None: [1.0]},
        "test/bare-v0",
        dataset={
            "id": "test/bare-v0",
            "fingerprint": "x",
            "returns": [2.0],
            "reference": None,
        },
    )
    results = Results.read([folder])
    assert results.covered("other") == []
    assert results.covered("guided") == [FIRST, SECOND]
    assert results.of("test/bare-v0", "other")[0].mean(None) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "plain", "measured": {"seed": 0}}, "there are two results of"),
        ({"dataset": {"id": FIRST, "fingerprint": "other", "returns": [], "reference": None}},
         "was measured on other data"),
        ({"evaluations": []}, "nothing was evaluated at its headline scale"),
        ({"training": {}}, "is not a cell's result"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused_by_name(change, message, folder):
    path = write(folder, "zzz", 0, {None: [1.0]})
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ResultError, match=message) as caught:
        Results.read([folder])
    assert path.stem in str(caught.value)


@pytest.mark.parametrize(
    ("measured", "scale", "message"),
    [
        ({"agent": "AEPO"}, 1.0, "has agent='AEPO', the result of 'one' with seed 0"),
        ({"agent": "QGPO", "config": {"beta": 10.0}}, 1.0, "has beta=10.0"),
        ({"agent": "QGPO", "chunk": 4}, 1.0, "has chunk=4"),
        ({"agent": "QGPO"}, 2.0, "has configured guidance scale=2.0"),
        ({"agent": "QGPO", "config": {"steps": 3}}, 1.0, None),  # a field that came later
    ],
)
def test_runs_of_one_label_differ_in_the_seed_alone(measured, scale, message, tmp_path):
    of_first = {"seed": 0, "agent": "QGPO", "config": {"beta": 1.0}}
    write(tmp_path, "one", 0, {1.0: [1.0], 2.0: [2.0]}, measured=of_first)
    more = {"measured": {"seed": 1, **measured}, "headline_scale": scale}
    write(tmp_path, "one", 1, {1.0: [1.0], 2.0: [2.0]}, **more)
    if message is None:
        assert len(Results.read([tmp_path]).runs) == 2
        return
    with pytest.raises(ResultError, match=message):
        Results.read([tmp_path])
    left_out = Results.read([tmp_path], skip=True)
    assert len(left_out.runs) == len(left_out.skipped) == 1


def test_files_of_the_benchmark_are_read():
    results = Results.read([ROOT / "benchmarks" / "locomotion"])
    runs = results.of("zoo/hopper/medium-expert-v0", "QGPO")
    assert len(runs) == 3
    assert [len(run.returns[1.0]) for run in runs] == [50, 50, 50]
    demo = json.loads((ROOT / "benchmarks" / "demo.json").read_text())
    with pytest.raises(ResultError, match=r"demo\.json is not a cell's result"):
        read_run(demo, "demo.json")


def test_spread_is_the_sample_standard_deviation():
    assert spread([1.0, 3.0, 5.0], 1) == "3.0 ± 2.0"  # (4 + 0 + 4) / 2
    assert spread(np.array([7.0]), 0) == "7"


def test_html_contains_the_pictures_and_no_other_markup(tmp_path):
    (tmp_path / "p.png").write_bytes(b"\x89PNG")
    text = "\n\n".join(
        [
            "## A < B",
            "see `x_1`, **now**, <script> [1, 2] (3)",
            table(["a|b", "c_d_e"], [["1", "`f-g`"]]),
            "![a picture](p.png)",
        ]
    )
    assert "| a\\|b | c_d_e |\n| --- | --- |\n| 1 | `f-g` |" in text
    page = to_html(text, tmp_path, "T & U")
    assert "<h2>A &lt; B</h2>" in page
    assert "<code>x_1</code>, <strong>now</strong>, &lt;script&gt; [1, 2] (3)</p>" in page
    assert "<th>a|b</th>\n<th>c_d_e</th>" in page
    assert "<td>1</td>\n<td><code>f-g</code></td>" in page
    assert "<title>T &amp; U</title>" in page
    assert 'src="data:image/png;base64,iVBORw=="' in page


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """The command, in the folder of the test: what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(*flags: str) -> str:
        monkeypatch.setattr(sys, "argv", ["qgpo-report", *flags])
        script.cli()
        return capsys.readouterr().out

    return call


def test_a_report_says_what_was_measured_and_what_is_missing(folder, report):
    before = read_documents(folder)
    printed = report("--results", "cells", "--title", "By hand", "--pack")
    assert "cells: 11 cells packed" in printed
    assert "11 of 12 cells have results" in printed
    assert [path.name for path in folder.glob("*.json")] == [PROVENANCE]
    assert read_documents(folder) == before
    text = (folder / "report" / "report.md").read_text()
    assert text.startswith("# By hand\n")
    assert "**1 of 12 runs are missing**" in text
    assert f"plain on `{SECOND}` (seeds 2)" in text
    assert f"| `{FIRST}` | 60 | 120 ± 20 (60.0 ± 10.0) | 50 ± 0 (25.0 ± 0.0) |" in text
    assert "110 ± 0 (55.0 ± 0.0), 2 of 3 seeds" in text
    # seeds of 99 and 101, 119 and 121, 139 and 141: drawn three times, the extremes are rare
    assert re.search(rf"\| `{FIRST}` \| guided \| 120 \[100, 140\] \| 3 \|", text)
    assert f"| `{SECOND}` | plain | 110 [110, 110] | 2 |" in text
    # guided has 50 50 60 60 70 70: without a quarter on each side 60. plain 25 25 25 55 55: 35
    assert "| guided | 2 of 2 | 6 | 60.0 [" in text
    assert "| plain | 2 of 2 | 5 | 35.0 [35.0, 35.0] | 37.0 |" in text
    # on the first dataset every run of guided is better, on the second two of three
    assert "| guided | plain | 0.83 [" in text
    assert f"| `{FIRST}` | guided | 120 ± 20 (w = 1) | 130 ± 0 (w = 2) |" in text
    assert "best w by online returns (upper bound)" in text
    assert "| guided | 6 | 101 | 90 (6 runs) |" in text
    assert "by hand" in text
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 6
    assert all((folder / "report" / p).read_bytes().startswith(b"\x89PNG") for p in pictures)
    page = (folder / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert 'src="http' not in page


def test_a_report_shows_the_latest_exactness_of_every_run(folder, report, monkeypatch):
    (folder / "report").mkdir()
    monkeypatch.setattr(figures, "save", lambda _, path: path.write_bytes(b"\x89PNG"))
    for run, date, error in (("a", "0101", 0.5), ("a", "0102", 0.4), ("b", "0101", None)):
        path = Path("runs") / run
        path.mkdir(parents=True, exist_ok=True)
        intervals = {"distance": [1.2, 1.1, 1.3], "effective_share": [0.5, 0.4, 0.6]}
        about = {"guidance_error": [error, 0.3, 0.6], **intervals, "effective": [0.5] * 7}
        document = {"dataset": {"id": FIRST}, **({"exactness": about} if error else {})}
        (path / f"evaluation-2026{date}-000000.json").write_text(json.dumps(document))
    report("--results", "cells", "--runs", "runs")
    text = (folder / "report" / "report.md").read_text()
    shown = "40.0 % [30.0, 60.0] | 1.20 [1.10, 1.30] | 50.0 % [40.0, 60.0]"
    assert f"| `a` | `{FIRST}` | 7 | {shown} |" in text
    assert "| `b` |" not in text
    report("--results", "cells")
    assert "Exactness" not in (folder / "report" / "report.md").read_text()
    with pytest.raises(SystemExit, match="error: absent is no folder"):
        report("--results", "cells", "--runs", "absent")
    about = {"dataset": {"id": FIRST}, "exactness": {"guidance_error": "small", "effective": []}}
    (Path("runs") / "b" / "evaluation.json").write_text(json.dumps(about))
    with pytest.raises(SystemExit, match="does not say how exact"):
        report("--results", "cells", "--runs", "runs")


def test_a_report_of_nothing_is_refused_in_one_line(report):
    with pytest.raises(SystemExit, match="error: no results in nowhere"):
        report("--results", "nowhere")
    with pytest.raises(SystemExit, match=r"absent\.toml"):
        report("--results", "nowhere", "--plan", "absent.toml")


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{}", '{"evaluations": 5}', '{"evaluations": [1]}', "[" * 100_000, "\ud83d"],
)
def test_one_bad_file_blocks_no_other(text, folder):
    (folder / "odd.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    (folder / PROVENANCE).write_text("[]")
    with pytest.raises(ResultError):
        Results.read([folder])
    results = Results.read([folder], skip=True)
    assert len(results.runs) == 11
    assert len(results.skipped) == 2
    assert PROVENANCE in results.skipped[0]
    assert "odd" in results.skipped[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"environment_steps": "many"},
        {"evaluations": [{"guidance_scale": None, "returns": []}]},
        {"evaluations": [{"guidance_scale": None, "returns": [float("nan")]}]},
        {"evaluations": [{"guidance_scale": None, "returns": ["much"]}]},
        {"versions": 3},
        {"machine": None},
        {"training": {"wall_seconds": "long", "cpu_seconds": None}},
        {"training": {"wall_seconds": float("inf"), "cpu_seconds": None}},
        {"training": {"wall_seconds": 1.0, "cpu_seconds": -5}},
        {"training": {"wall_seconds": 1.0, "cpu_seconds": True}},
        {"evaluations": [{"guidance_scale": None, "returns": [True]}]},
        {"evaluations": [{"guidance_scale": None, "returns": [1e308, 1e308]}]},
        {"evaluations": [{"guidance_scale": None, "returns": [BEYOND]}]},
        {"evaluations": [{"guidance_scale": s, "returns": [1.0]} for s in (None, "x")]},
        {"evaluations": [{"guidance_scale": s, "returns": [1.0]} for s in (None, float("inf"))]},
        {"evaluations": [{"guidance_scale": s, "returns": [1.0]} for s in (None, [1])]},
        {"evaluations": [{"guidance_scale": s, "returns": [1.0]} for s in (None, 1.0, 1)]},
        {"evaluations": [{"guidance_scale": True, "returns": [1.0]}], "headline_scale": True},
        {"dataset": {**DATA, "reference": {**REFERENCE, "maximum": BEYOND}}},
        {"dataset": {**DATA, "reference": {**REFERENCE, "maximum": 5e-324}}},
        {"dataset": {**DATA, "returns": [BEYOND]}},
        {"dataset": {**DATA, "returns": [1e308] * 3}},
        {"dataset": {**DATA, "id": ""}},
        {"measured": {"seed": True}},
        {"measured": {"seed": BEYOND}},
        {"environment_steps": -3},
        {"versions": {"torch": {"a": 1}}},
        {"machine": {"cpus": [1]}},
        {"label": "odd" * 1000},
        {"label": "odd\x1b[2J"},
        {"label": "odd\ud800"},
        {"label": 5},
    ],
    ids=lambda changes: f"{changes!a:.90}",
)
def test_an_odd_result_is_left_out_and_named(changes, folder):
    path = write(folder, "odd", 0, {None: [1.0]})
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    results = Results.read([folder], skip=True)
    assert results.labels == ["guided", "plain"]
    assert "odd" in results.skipped[0]


def test_what_is_no_result_is_said_in_words(folder):
    write(folder, "odd", 0, {None: [1.0]}, evaluations=[])
    (folder / "config.json").write_text('{"label": "of a run folder"}')
    path = write(folder, "again", 0, {None: [1.0]})
    path.write_text('{"label": "first", ' + path.read_text()[1:])
    document = json.loads(write(folder, "other", 0, {None: [1.0]}).read_text())
    del document["training"]
    (folder / "evaluation.json").write_text(json.dumps(document))
    wrong = "\n".join(Results.read([folder], skip=True).skipped)
    assert "config.json is not a cell's result: it has no 'evaluations'" in wrong
    assert "evaluation is not a cell's result: it has no 'training'" in wrong
    assert "an object has the name 'label' twice" in wrong


HOSTILE = [
    "[x](javascript:alert(1)) ![a](http://evil/x.png) `` ` ``[x](http://evil/)",
    "\\[x](http://evil/) [x][y] [y]: http://evil/",
    '<http://evil/> <a href="http://evil/">x</a> **a** _b_ | c_d *e* \\',
]


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list = []

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append((tag, attrs))


def test_no_link_or_picture_comes_from_a_text(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save", lambda _, path: path.write_bytes(b"\x89PNG"))
    expected = [("missing ![a](http://evil/x.png)", HOSTILE[0], 7)]
    for number, text in enumerate(HOSTILE):
        source = {**REFERENCE, "source": text}
        about = {"id": text, "fingerprint": text, "returns": [1.0], "reference": source}
        made = {"versions": {text: text}, "machine": dict.fromkeys(MACHINE, text)}
        path = write(tmp_path, f"{number}", 0, {None: [1.0]}, dataset=about, **made)
        path.write_text(json.dumps({**json.loads(path.read_text()), "label": text}))
        expected.append((text, text, 0))
    write_report(tmp_path, Results.read([tmp_path], expected), HOSTILE[0], False)
    page = (tmp_path / "report.html").read_text().partition("<body>")[2]
    tags = Tags()
    tags.feed(page)
    assert {tag for tag, _ in tags.found}.isdisjoint({"a", "em", "script"})
    sources = [value for _, about in tags.found for name, value in about if name != "alt"]
    assert sources == ["data:image/png;base64,iVBORw=="] * 4
    assert page.count("<strong>") == 1  # how many are missing
    for text in HOSTILE:
        assert f"<td>{html.escape(text, quote=False)}</td>" in page
        assert f"{html.escape(text, quote=False)} cores, device" in page


def test_a_label_of_several_lines_is_one(folder):
    path = write(folder, "several", 0, {None: [1.0]})
    path.write_text(json.dumps({**json.loads(path.read_text()), "label": "two\n$lines\u2028é/"}))
    assert "two $lines é/" in Results.read([folder]).labels

from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation.report import render


class Outside(HTMLParser):
    """Collects scripts, handlers and anything the page would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "link", "iframe", "object", "base", "form"):
            self.found.append(tag)
        self.found += [
            f"{k}={v[:40]}"
            for k, v in attrs
            if k.startswith("on") or (k in ("src", "href") and not v.startswith("data:image/"))
        ]


@pytest.fixture
def results():
    guarantee = {
        "epsilon": 1.25,
        "delta": 1e-5,
        "unit": "patient",
        "neighbours": "add or remove one",
        "accountant": "PLD",
    }
    return {
        "study": {"name": "s", "title": "<script>alert(1)</script>", "digest": "d" * 64, "family": "marginals"},
        "figures": {
            "tvd1": {"value": 0.1, "noisy": 0.2, "floor": 0.15, "reliable": True, "source": "x"},
            "tvd2": {"value": 0.3, "noisy": 0.5, "floor": 0.4, "reliable": False, "source": "x"},
            "tstr_auc": {"value": 0.8123, "plus_minus": 0.01, "reliable": True, "source": "x", "learner": "l"},
            "trtr_auc": {"value": None, "why": "noise leaves no count", "source": "x"},
        },
        "direct": None,
        "gate": {"passed": False, "checks": [{"name": "tvd2", "threshold": 0.1, "value": 0.3, "passed": False}]},
        "columns": [
            {"name": "a", "title": None, "labels": ["x", "missing"], "real_noised": [0.4, 0.6], "synthetic": [0.5, 0.5]}
        ],
        "pairs": [],
        "rounds": [
            {"step": "tables", "seconds": 1.0, "answered": ["n"], "missing": {"m": "late"}, "bytes_per_site": 4000}
        ],
        "sites": ["n", "m"],
        "privacy": {
            "private": True,
            "trust": "local",
            "aggregation": "plain addition of locally noised vectors",
            "guarantees": [
                {**guarantee, "adversary": "researcher"},
                {**guarantee, "adversary": "coordinator", "epsilon": 2.5},
            ],
            "max_records_per_patient": 1,
            "note": "A patient seen at m sites is counted at each of them.",
            "events": [
                {"step": "tables", "part": "train", "cargo": "secure-sum", "noise_multiplier": 3.7, "event": {}}
            ],
        },
    }


def test_the_page_is_self_contained_and_escapes_what_it_shows(results):
    page = render(results)
    parser = Outside()
    parser.feed(page)
    assert parser.found == [] and "url(" not in page and "@import" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_it_says_what_matters(results):
    page = render(results)
    for words in (
        "0.812",
        "1.250",
        "2.500",
        "1e-05",
        "No secure aggregation is claimed",
        "Withheld",
        "m (late)",
        "Not reliable",
        "noise leaves no count",
    ):
        assert words in page, words
    assert "NOT PRIVATE" not in page


def test_a_run_without_noise_is_shouted_at(results):
    results["privacy"]["private"] = False
    for g in results["privacy"]["guarantees"]:
        g["epsilon"] = None
    assert "NOT PRIVATE" in render(results)


def test_a_simulated_secure_sum_is_called_a_plain_addition(results):
    from strategies.publish import SIMULATED

    results["privacy"] |= {"trust": "secure-sum", "aggregation": SIMULATED}
    page = render(results)
    assert "plain addition in one process" in page and "securely" not in page


def test_survival_is_drawn_where_there_is_some(results):
    assert "<h2>Survival" not in render(results)
    curve = {"name": "drug", "real_noised": [0.9, 0.5], "synthetic": [0.8, 0.6]}
    page = render(results | {"survival": {"time": "days", "cuts": [0, 10, 20], "curves": [curve, curve]}})
    assert "<h2>Survival" in page and page.count("data:image/svg+xml") == render(results).count("data:image/svg") + 1


def test_memorisation_is_drawn_and_read_out(results):
    from evaluation import memorisation

    assert "remembered" not in render(results)
    few = np.array([40, 0, 0, 0, 60, 100, 0, 0.0]), np.array([0, 0, 0, 0, 80, 120, 0, 0.0])
    results["figures"]["memorisation"] = memorisation.figure(*few) | {"source": "x"}
    results["gate"]["checks"] = [{"name": "memorisation", "threshold": 0.01, "value": 0.0, "passed": False}]
    page = render(results)
    assert "remembered" in page and "Withheld" in page and "noise hides values below" in page
    assert "20.0 % of\ntraining patients, 0.0 % of hold-out patients" in page and "at most 0.010 asked" in page
    results["figures"]["memorisation"] = memorisation.figure(few[0], few[1], (400.0, 400.0))
    assert "noise hides how many patients" in render(results)


def test_missing_parts_do_not_break_it(results):
    results |= {"figures": {}, "gate": {"passed": True, "checks": []}, "rounds": [], "sites": []}
    results["columns"][0]["real_noised"] = None
    assert "No release gate" in render(results)


@pytest.mark.parametrize(
    "part", ["study", "figures", "direct", "gate", "columns", "pairs", "survival", "rounds", "sites", "privacy"]
)
def test_any_part_may_be_null(results, part):
    assert "</html>" in render(results | {part: None})


def test_an_empty_evaluation_promises_nothing():
    page = render({})
    assert "NOT PRIVATE" in page and "Withheld" in page
    assert "Trust mode" not in page and "Release gate met" not in page


def test_a_failed_gate_says_why_its_value_alone_does_not(results):
    results["gate"]["checks"] = [{"name": "tvd2", "threshold": 0.4, "value": 0.3, "passed": False}]
    assert "0.300, at most 0.400 asked (not reliable)" in render(results)
    results["figures"]["tvd2"] |= {"reliable": True, "resolution": 0.45}
    assert "noise hides values below 0.450" in render(results)


def test_without_noise_no_trust_mode_is_claimed(results):
    results["privacy"]["private"] = False
    page = render(results)
    assert "adds the full noise itself" not in page and "No noise was added" in page

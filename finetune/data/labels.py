"""Raw labels of a table (1, 0, -1 uncertain, blank) and the policies that turn them into targets, per finding.

Every table of labels is read by `read_raw_labels`.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune.data.findings import same_finding
from finetune.errors import FinetuneError, one_of

Policies = str | dict[str, Any]
"""A policy for all findings, or finding -> policy, with `default` for those not named."""

UNCERTAIN = -1.0
"""The raw label of a finding that the reader or the report left open; a blank is NaN."""

BLANK = ("", "nan", "na", "n/a", "<na>", "null")
WORDS = {"true": 1.0, "t": 1.0, "yes": 1.0, "y": 1.0, "false": 0.0, "f": 0.0, "no": 0.0, "n": 0.0}
NAMES = ("ignore", "zero", "one")
CHOICES = (*NAMES, "{soft: [a, b]}")


@dataclass(frozen=True)
class Policy:
    """A target drawn between `low` and `high`; both NaN means unknown.

    Soft targets for uncertain labels, e.g. [0.55, 0.85], are from Pham et al. (2019, arXiv 1911.06475).
    """

    low: float
    high: float

    def value(self, path: str, finding: str) -> float:
        """The target of one image: pseudo-random from a hash of path and finding, the same on every machine."""
        if not self.low < self.high:
            return self.low
        digest = hashlib.sha256(f"{path}\x1f{finding}".encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        return round(self.low + share * (self.high - self.low), 6)


def policies(setting: str, setting_value: Policies, findings: Sequence[str] | None) -> list[Policy]:
    """The policy of each finding; with `findings=None` (not known yet) only the values are checked.

    Raises:
        FinetuneError: a policy or a finding that does not exist.
    """
    if not isinstance(setting_value, dict):
        return [_policy(setting, setting_value)] * len(findings or ())
    if "soft" in setting_value:
        raise FinetuneError(
            f"{setting}.soft={setting_value['soft']}: soft is a policy, not a finding. For all findings type "
            f"{setting}.default={{soft: {setting_value['soft']}}}."
        )
    parsed = {name: _policy(f"{setting}.{name}", value) for name, value in setting_value.items()}
    default = parsed.pop("default", _policy(setting, "ignore"))
    if findings is None:
        return []
    policy_of: dict[str, Policy] = {}
    for name, policy in parsed.items():
        finding = next((f for f in findings if f == name), None) or next(
            (f for f in findings if same_finding(f, name)), None
        )
        if finding is None:
            near = difflib.get_close_matches(name, findings, n=1)
            hint = f" Did you mean {setting}.{near[0]}?" if near else ""
            raise FinetuneError(
                f"{setting}.{name}: the data set has no such finding.{hint} Choose from default, {', '.join(findings)}."
            )
        policy_of[finding] = policy
    return [policy_of.get(finding, default) for finding in findings]


def apply_policies(
    raw_labels: np.ndarray,
    paths: Sequence[str],
    findings: Sequence[str],
    uncertain: Policies,
    missing: Policies,
    *,
    known: Sequence[str] | None = None,
) -> np.ndarray:  # (N, K) -> (N, K)
    """Targets for raw labels: -1 by the `uncertain` policy of its finding, NaN by the `missing` one.

    `known`: the findings that a policy may name, if these are more than the learned ones.
    """
    known = list(known or findings)
    targets = np.array(raw_labels, dtype=np.float64)
    for setting, setting_value, where in (
        ("data.uncertain", uncertain, raw_labels == UNCERTAIN),
        ("data.missing", missing, np.isnan(raw_labels)),
    ):
        policy_of = dict(zip(known, policies(setting, setting_value, known), strict=True))
        for k, finding in enumerate(findings):
            rows, policy = np.flatnonzero(where[:, k]).tolist(), policy_of[finding]
            if policy.low < policy.high:
                targets[rows, k] = [policy.value(paths[row], finding) for row in rows]
            else:
                targets[rows, k] = policy.low
    return targets


def read_raw_labels(column: pd.Series, file: Path | str, hint: str = "", *, soft: bool = True) -> np.ndarray:  # -> (N,)
    """A column of text, numbers or booleans as raw labels: 1 (also true, yes), 0 (false, no), -1, NaN for blanks
    and, where `soft`, values between 0 and 1. Row i of a file is its line i + 2.

    Raises:
        FinetuneError: any other content, with its line, what to write instead, and the `hint`.
    """
    cells = column.astype(object).where(column.notna(), "").astype(str)
    codes, texts = pd.factorize(cells.str.strip().str.lower())
    values = np.array([_raw_label(text, soft) for text in texts], dtype=np.float64)[codes]
    if len(wrong := np.flatnonzero(np.isinf(values))):
        line, cell = column.index[wrong[0]] + 2, cells.iloc[wrong[0]]
        accepted = "1 (true, yes), 0 (false, no), blank (unknown)"
        accepted += ", -1 (uncertain) or between 0 and 1" if soft else " or -1 (uncertain)"
        hints = " ".join(part for part in (number_hint(cell), hint) if part)
        raise FinetuneError(
            f"{file}, line {line}: column {column.name} holds {cell!r} ({len(wrong):,} such row(s)); use {accepted}."
            f"{hints and ' '}{hints}"
        )
    return values


def number_hint(cell: str) -> str:
    """What to write for a number with a decimal comma or a percent sign; blank for any other cell."""
    match = re.fullmatch(r"([+-]?\d*)([.,]?)(\d*)\s*(%?)", cell.strip())
    if match is None or not (match[1].strip("+-") or match[3]):
        return ""
    number = f"{match[1]}.{match[3]}" if match[3] else match[1]
    if match[4]:
        return f"For {cell.strip()} write {round(float(number) / 100, 12):g}: divide percentages by 100."
    return f"For {cell.strip()} write {number}, with a decimal point." if match[2] == "," else ""


def _raw_label(text: str, soft: bool) -> float:
    if text in BLANK:
        return np.nan
    try:
        value = WORDS[text] if text in WORDS else float(text)
    except ValueError:
        return np.inf
    allowed = 0 <= value <= 1 if soft else value in (0, 1)
    return value if allowed or value == UNCERTAIN else np.inf


def _policy(setting: str, value: Any) -> Policy:
    if value == "ignore":
        return Policy(np.nan, np.nan)
    if value in ("zero", "one"):
        return Policy(*((0.0, 0.0) if value == "zero" else (1.0, 1.0)))
    if isinstance(value, dict) and list(value) == ["soft"]:
        pair = value["soft"]
        numbers = isinstance(pair, list | tuple) and all(type(x) in (int, float) for x in pair)
        if not numbers or len(pair) != 2 or not 0 <= pair[0] <= pair[1] <= 1:
            raise FinetuneError(f"{setting}.soft={pair} must be two numbers [a, b] with 0 <= a <= b <= 1.")
        return Policy(float(pair[0]), float(pair[1]))
    raise one_of(setting, value, CHOICES)

"""tuning.html: every trial with its state, the choice with its seeds, figures, and nothing from elsewhere."""

import math

from finetune.pages import search


def summary(n: int = 30, seeds: int = 3) -> dict:
    """A made-up search: the lower the distance of the rate to 1e-3, the better."""
    trials = []
    for number in range(n):
        lr, loss = 10 ** (-5 + 4 * ((number * 7) % n) / n), ("bce", "focal")[number % 2]
        state = "failed" if number == 3 else "pruned" if number % 7 == 5 else "complete"
        score = 0.9 - 0.05 * (math.log10(lr) + 3) ** 2 if state == "complete" else None
        trials.append(
            {
                "number": number, "state": state, "score": score, "epoch": 2 if score else None, "epochs": 4,
                "seconds": 12.3, "values": {"optimizer.lr": lr, "loss": loss},
                "parameters": {"optimizer.lr": lr, "loss": loss},
                "reason": "<b>out of memory</b> in /home/someone/data" if state == "failed" else None, "folder": "x",
            }
        )  # fmt: skip
    best = sorted((t for t in trials if t["score"]), key=lambda t: -t["score"])[:2]
    top = [
        {
            "number": t["number"], "values": t["values"], "score": t["score"], "folder": "x",
            "seeds": [{"seed": s, "score": t["score"] - 0.01 * s, "folder": "x"} for s in range(1, seeds + 1)],
            "mean": t["score"] - 0.02 if seeds else None,
            "interval": {"value": t["score"] - 0.02, "low": 0.7, "high": 0.95},
        }
        for t in best
    ]  # fmt: skip
    return {
        "study": "night", "command": "python -m finetune job=tune data.root=/home/someone/photos",
        "monitor": "val/auroc",
        "higher_is_better": True, "space": {"optimizer.lr": "1e-05 to 0.1, log-uniform", "loss": "bce, focal"},
        "logarithmic": ["optimizer.lr"], "choices": {"loss": ["bce", "focal"]}, "pruner": "median", "trials": trials,
        "start": 0, "importance": {"optimizer.lr": 0.83, "loss": 0.17} if n > 20 else {}, "top": top,
        "interval_of": "macro AUROC", "noise": {"sd": 0.01, "df": 4, "single": 0.039} if seeds else None,
        "verdicts": ["trial 1 is above trial 2"], "best": top[-1]["number"], "synthetic": False,
        "use": "python -m finetune --config-dir out/conf experiment=best",
    }  # fmt: skip


def test_the_page_shows_all_and_loads_nothing(tmp_path):
    made = summary()
    page = search.write(tmp_path / "tuning.html", made).read_text()
    assert page.count("<svg") == 3
    assert all(f'<th scope="row">{trial["number"]}' in page for trial in made["trials"])
    assert f"{made['best']} (chosen)" in page
    assert "0 (as typed)" in page
    assert "&lt;b&gt;out of memory&lt;/b&gt; in …/data" in page
    assert "someone" not in page
    assert "https://" not in page
    assert "src=" not in page
    assert "PED-ANOVA" in page
    assert "Noise floor: standard deviation over seeds 0.0100 (4 degrees of freedom)." in page
    assert "differ by less than 0.039 may differ by their seeds alone" in page
    assert "The best score of a search is optimistic" in page


def test_few_trials_without_repeats(tmp_path):
    made = summary(5, 0)
    page = search.write(tmp_path / "tuning.html", made).read_text()
    assert "from 20 completed trials on" in page
    lines = search.sentences(made)
    assert lines[0] == "5 trials: 4 complete, 1 failed."
    assert lines[1].endswith(", one seed.")
    assert not any("Noise floor" in line for line in lines)
    assert "mean" not in search.table(made)[1]

"use strict";
(() => {
  // A link into a folded section opens it, and printing shows everything. Browsers that do so themselves are unaffected.
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folds = [];
    for (let e = target; e; e = e.parentElement) if (e.tagName === "DETAILS" && !e.open) folds.push(e);
    folds.forEach((fold) => { fold.open = true; });
    if (folds.length) target.scrollIntoView();
  };
  let opened = [];
  addEventListener("hashchange", reveal);
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open], .zoom)")];
    opened.forEach((fold) => { fold.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((fold) => { fold.open = false; }));
  reveal();

  const classes = JSON.parse(document.getElementById("explorer-data").textContent);
  const at = (id) => document.getElementById("explorer-" + id);
  const whole = (count) => count.toLocaleString("en");
  const share = (value) => (Number.isNaN(value) ? "undefined" : value.toFixed(3));
  const limits = (pair) => (pair[0] === null ? "" : ` (${pair[0].toFixed(3)}–${pair[1].toFixed(3)})`);
  const STEPS = 1000;
  let current = classes[0], i = 0; // i: which of the class's thresholds, from the highest down

  function show() {
    const tp = current.true[i], fp = current.false[i], fn = current.positives - tp, tn = current.negatives - fp;
    const counts = { tp, fp, fn, tn };
    const total = (keys) => keys.split(" ").reduce((sum, key) => sum + counts[key], 0);
    for (const cell of document.querySelectorAll("#explorer output[data-whole]")) {
      const metric = cell.id.replace("explorer-", "");
      cell.textContent = share(total(cell.dataset.right) / total(cell.dataset.whole)) + limits(current.limits[metric][i]);
    }
    for (const [cell, count] of Object.entries(counts)) at(cell).textContent = whole(count);
    const threshold = Math.min(current.thresholds[i], 1).toPrecision(3);
    at("value").textContent = threshold;
    at("threshold").setAttribute("aria-valuetext", "positive from a probability of " + threshold);
    const part = Number(at("prevalence").value) / 100;
    const hit = (1000 * part * tp) / (tp + fn), alarm = (1000 * (1 - part) * fp) / (fp + tn);
    at("thousand").textContent = part > 0 && part < 1
      ? `Of 1,000 images of which ${(1000 * part).toFixed(0)} are positive: ${hit.toFixed(0)} found (TP), ` +
        `${(1000 * part - hit).toFixed(0)} missed (FN), ${alarm.toFixed(0)} false alarms (FP). ` +
        (hit + alarm > 0 ? `PPV there: ${share(hit / (hit + alarm))}.` : "No image is called positive, so there is no PPV.")
      : "The prevalence must lie between 0 and 100 %.";
  }

  function goTo(number) { // move to one of the thresholds
    i = Math.max(0, Math.min(current.thresholds.length - 1, number));
    at("threshold").value = Math.round(STEPS * Math.min(current.thresholds[i] / current.end, 1));
    show();
  }

  function nearest(threshold) { // the lowest threshold shown that is not below the requested one: the same images, or nearly
    let number = 0;
    while (number + 1 < current.thresholds.length && current.thresholds[number + 1] >= threshold) number++;
    return number;
  }

  function slide() {
    i = nearest((current.end * Number(at("threshold").value)) / STEPS);
    if (Number(at("threshold").value) === 0) i = current.thresholds.length - 1;
    show();
  }

  function selectClass() {
    current = classes[Number(at("class").value)];
    at("scale").replaceChildren(...[0, 0.25, 0.5, 0.75, 1].map((part) => {
      const tick = document.createElement("span");
      tick.textContent = String(Number((part * current.end).toPrecision(3)));
      return tick;
    }));
    at("prevalence").value = ((100 * current.positives) / (current.positives + current.negatives)).toPrecision(3);
    const points = Object.entries(current.points);
    at("points").replaceChildren(...(points.length ? ["Chosen on val: "] : []), ...points.map(([name, threshold]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => goTo(nearest(threshold)));
      return button;
    }));
    // without an operating point: as many images called positive as there are positives
    const balanced = current.true.findIndex((count, number) => count + current.false[number] >= current.positives);
    goTo(points.length ? nearest(points[0][1]) : balanced);
  }

  classes.forEach((entry, number) => at("class").add(new Option(entry.name, number)));
  at("class").addEventListener("change", selectClass);
  at("threshold").addEventListener("input", slide);
  at("threshold").addEventListener("keydown", (event) => { // arrows go to the next threshold that changes something
    const step = { ArrowLeft: 1, ArrowDown: 1, ArrowRight: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    goTo(i + step);
  });
  at("prevalence").addEventListener("input", show);
  selectClass();
  document.getElementById("explorer").hidden = false;
})();

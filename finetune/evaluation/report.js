"use strict";
(() => {
  const classes = JSON.parse(document.getElementById("explorer-data").textContent);
  const at = (id) => document.getElementById("explorer-" + id);
  const whole = (count) => count.toLocaleString("en");
  const percent = (share) => (Number.isNaN(share) ? "undefined" : (100 * share).toFixed(1) + " %");
  const limits = (pair) => (pair[0] === null ? "" : ` (${(100 * pair[0]).toFixed(1)}–${(100 * pair[1]).toFixed(1)})`);
  let one = classes[0];

  function show() {
    const i = Number(at("threshold").value);
    const tp = one.true[i], fp = one.false[i], fn = one.positives - tp, tn = one.negatives - fp;
    const shares = { sensitivity: tp / (tp + fn), specificity: tn / (tn + fp), ppv: tp / (tp + fp), npv: tn / (tn + fn) };
    for (const [metric, share] of Object.entries(shares)) {
      at(metric).textContent = percent(share) + limits(one.limits[metric][i]);
    }
    for (const [cell, count] of Object.entries({ tp, fp, fn, tn })) at(cell).textContent = whole(count);
    at("value").textContent = one.thresholds[i].toPrecision(3);
    at("threshold").setAttribute("aria-valuetext", "yes from a probability of " + one.thresholds[i].toPrecision(3));
    const part = Number(at("prevalence").value) / 100;
    const hit = 1000 * part * shares.sensitivity, alarm = 1000 * (1 - part) * (1 - shares.specificity);
    at("thousand").textContent = part > 0 && part < 1
      ? `Of 1,000 images of which ${(1000 * part).toFixed(0)} have it: ${hit.toFixed(0)} found, ` +
        `${(1000 * part - hit).toFixed(0)} missed, ${alarm.toFixed(0)} false alarms; ` +
        (hit + alarm > 0 ? `a yes is right in ${percent(hit / (hit + alarm))}.` : "no image gets a yes at this threshold.")
      : "The share must lie between 0 and 100 %.";
  }

  function move(threshold) {
    let i = 0; // the lowest threshold shown that is not below the one asked for says yes to the same images, or nearly
    while (i + 1 < one.thresholds.length && one.thresholds[i + 1] >= threshold) i++;
    at("threshold").value = i;
    show();
  }

  function choose() {
    one = classes[Number(at("class").value)];
    at("threshold").max = one.thresholds.length - 1;
    at("prevalence").value = ((100 * one.positives) / (one.positives + one.negatives)).toPrecision(3);
    const points = Object.entries(one.points);
    at("points").replaceChildren(...points.map(([name, threshold]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.addEventListener("click", () => move(threshold));
      return button;
    }));
    move(points.length ? points[0][1] : 0.5);
  }

  classes.forEach((each, i) => at("class").add(new Option(each.name, i)));
  at("class").addEventListener("change", choose);
  at("threshold").addEventListener("input", show);
  at("prevalence").addEventListener("input", show);
  choose();
  document.getElementById("explorer").hidden = false;
})();

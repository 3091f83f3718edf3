"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const percent = (value) => `${(100 * value).toFixed(value > 0 && value < 0.01 ? 2 : 1)} %`;
  const count = (value) => value.toLocaleString("en");
  let token = "", file = null, answer = null, heated = {}, turn = 0;

  function make(tag, text = "", className = "") { // text is never markup: names of classes come from users' tables
    const element = document.createElement(tag);
    element.textContent = text;
    if (className) element.className = className;
    return element;
  }
  const fill = (parent, ...children) => parent.replaceChildren(...children);
  const facts = (list, rows) => fill(list, ...rows.filter((row) => row[1]).flatMap(([name, text]) => [make("dt", name), make("dd", text)]));
  const interval = (s) => s.value === null ? "undefined"
    : s.value.toFixed(3) + (s.low === null ? "" : ` (${s.low.toFixed(3)}–${s.high.toFixed(3)})`);

  async function ask(url, body) {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch(url, { method: body ? "POST" : "GET", headers, body });
    const content = await response.json().catch(() => ({ error: `The server answered with status ${response.status}.` }));
    if (response.ok) return content;
    if (response.status === 401) { at("access").hidden = false; at("token").focus(); }
    throw new Error(content.error);
  }

  const say = (text, className = "soft") => fill(at("status"), ...(text ? [make("p", text, className)] : []));
  const complain = (error) => say(error instanceof TypeError ? "The server cannot be reached." : error.message, "banner alarm");

  async function loadCard() {
    const card = await ask("/model");
    at("title").textContent = card.trained_on ? `${card.trained_on}, ${card.backbone}` : card.backbone;
    at("about").textContent = `${card.description}. A research tool, not a medical device.`;
    at("card-lead").textContent = card.synthetic
      ? "SYNTHETIC IMAGES: the model was trained on images made by a program; it says nothing about patients." : "";
    const people = (n, images) => (n && n !== images ? ` of ${count(n)} patients` : "");
    facts(at("card"), [
      ["Trained on", [card.trained_on, card.splits.map((s) => `${s.split} ${count(s.images)} images${people(s.patients, s.images)}`).join(", ")].filter(Boolean).join(": ")],
      ["Classes", card.classes.join(", ") + (card.kind === "multilabel" ? " (any of them may hold)" : " (one of them)")],
      ["Measured on", card.scored_split && `${card.scored_split}, ${count(card.scored_images)} images${people(card.scored_patients, card.scored_images)}`],
      ...card.scores.map((s) => [s.title, `${interval(s)}${s.low === null ? "" : ", 95 % interval"}`]),
      ["Calibration", card.calibration || "none: probabilities are as the network gives them"],
      ["Conformal sets", card.conformal_coverage && `made to hold the truth in ${percent(card.conformal_coverage)} of images like those of val`],
      ["Unlike the training images", card.novelty],
      ["Weights", card.weights_hash],
      ["Version", `finetune ${card.finetune_version}`],
    ]);
    at("class-scores").hidden = !card.class_scores.length;
    fill(at("class-rows"), ...card.class_scores.map((c) => {
      const row = make("tr"), head = make("th", c.name);
      head.scope = "row";
      row.append(head, make("td", c.positives === null ? "–" : count(c.positives)), make("td", c.auroc ? interval(c.auroc) : "–"));
      return row;
    }));
    at("harms-title").hidden = !card.harms.length;
    fill(at("harms"), ...card.harms.map((text) => make("li", text)));
    at("notice").textContent = card.notice;
    fill(at("heat-class"), ...card.classes.map((name) => new Option(name, name)));
  }

  function bar(of) {
    const value = of.calibrated ?? of.probability;
    const threshold = of.calibrated === null ? of.threshold : of.threshold_calibrated;
    const item = make("div", "", of.positive ? "positive" : ""), head = make("div", "", "bar-head"), track = make("div", "", "track");
    item.setAttribute("role", "listitem");
    head.append(make("span", of.name), make("b", percent(value)));
    const level = document.createElement("i");
    level.style.width = `${100 * value}%`;
    track.append(level);
    track.setAttribute("aria-hidden", "true");
    item.append(head, track);
    if (threshold !== null) {
      const tick = document.createElement("u");
      tick.style.left = `${100 * threshold}%`;
      track.append(tick);
    }
    const notes = [];
    if (of.threshold !== null) {
      const where = of.operating_point ? `operating point ${of.operating_point}` : "not chosen on val";
      notes.push(`${of.probability >= of.threshold ? "at or above" : "below"} the threshold ${percent(threshold ?? of.threshold)} (${where}${threshold === null ? ", of the uncalibrated probability" : ""})`);
    }
    if (of.conformal) notes.push(`conformal set: ${of.conformal.join(" or ") || "neither yes nor no"}`);
    if (notes.length) item.append(make("div", notes.join("; "), "bar-note"));
    return item;
  }

  function show(given) {
    answer = given;
    heated = {};
    const many = given.classes.length > 6 ? [...given.classes].sort((a, b) => b.positive - a.positive || (b.calibrated ?? b.probability) - (a.calibrated ?? a.probability)) : given.classes;
    const calibrated = given.classes.some((c) => c.calibrated !== null), ticks = given.classes.some((c) => c.threshold !== null);
    const multilabel = given.model.kind === "multilabel";
    at("decision").textContent = `Decision: ${given.decision.classes.join(", ") || "none of the classes"}`;
    at("rule").textContent = `Rule: ${given.decision.rule}.`;
    fill(at("bars"), ...many.map(bar));
    at("scale").textContent = (calibrated ? "Calibrated probabilities" : "Probabilities, not calibrated") + (ticks ? "; the tick is the threshold of the operating point" : "")
      + (ticks && !multilabel ? ", which this decision does not use." : ".");
    const conformal = given.conformal && (given.conformal.classes === null ? "beside each class"
      : given.conformal.classes.length ? given.conformal.classes.join(", ") : "empty");
    facts(at("facts"), [
      ["Conformal set", conformal && `${conformal} (${percent(given.conformal.coverage)} coverage)`],
      ["Unlike the training images", given.novelty && `more than ${given.novelty.percent.toFixed(0)} % of the validation images`],
      ["In the model's fit", given.split_of_fit && `yes, in its split ${given.split_of_fit}`],
      ["Operating points", given.operating_points.map((p) => p.criterion ? `${p.name} (${p.criterion})` : p.name).join(", ")],
      ["Request", given.request_id],
    ]);
    fill(at("cautions"), ...given.warnings.map((w) => {
      const banner = make("p", w.text, `banner ${["unusual", "trained on", "conformal empty"].includes(w.kind) ? "alarm" : "warn"}`);
      banner.setAttribute("role", "note");
      return banner;
    }));
    if (!multilabel || given.decision.classes.length) at("heat-class").value = given.decision.classes[0] ?? given.classes[0].name;
    at("result").hidden = at("heat").hidden = at("shown").hidden = false;
    showImage();
  }

  function showImage(heat = null) {
    at("image").src = heat ? heat.image : answer.preview;
    at("image").alt = heat ? `Heat map of the evidence for ${heat.name}` : "The image as the server decoded it";
    at("caption").textContent = heat ? `Evidence for ${heat.name}, as the network sees the image` : `${answer.width} × ${answer.height} pixels, as the server decoded it`;
    at("heat-button").setAttribute("aria-pressed", String(Boolean(heat)));
    at("heat-button").textContent = heat ? "Hide heat map" : "Show heat map";
    at("heat-note").hidden = !heat;
  }

  async function send(parameters) { // the answer, or undefined where another image came meanwhile
    const mine = ++turn, form = new FormData();
    form.append("image", file, "image"); // the name of the file stays here
    document.querySelector(".answer").classList.add("working");
    try {
      const given = await ask(`/predict?${new URLSearchParams(parameters)}`, form);
      return mine === turn ? given : undefined;
    } catch (error) {
      if (mine === turn) throw error;
    } finally {
      if (mine === turn) document.querySelector(".answer").classList.remove("working");
    }
  }

  async function predict(chosen) {
    if (!chosen) return;
    file = chosen;
    at("drop").classList.add("small");
    say("The image is being answered …");
    try {
      const given = await send({ preview: "true" });
      if (given) { say(""); show(given); at("status").textContent = ""; }
    } catch (error) {
      at("result").hidden = at("heat").hidden = at("shown").hidden = true;
      fill(at("cautions"));
      complain(error);
    }
  }

  async function toggleHeat(on) {
    const name = at("heat-class").value;
    if (!on) return showImage();
    try {
      if (!heated[name]) {
        const given = await send({ heatmap: name });
        if (!given) return;
        heated[name] = given.heat_map;
      }
      showImage(heated[name]);
    } catch (error) { complain(error); }
  }

  at("file").addEventListener("change", (event) => { predict(event.target.files[0]); event.target.value = ""; });
  at("heat-button").addEventListener("click", () => toggleHeat(at("heat-button").getAttribute("aria-pressed") !== "true"));
  at("heat-class").addEventListener("change", () => at("heat-button").getAttribute("aria-pressed") === "true" && toggleHeat(true));
  at("access").addEventListener("submit", (event) => {
    event.preventDefault();
    token = at("token").value.trim();
    loadCard().then(() => { at("access").hidden = true; say("No image yet."); }, complain);
  });
  let inside = 0;
  addEventListener("dragenter", (event) => { event.preventDefault(); inside++; at("drop").classList.add("over"); });
  addEventListener("dragleave", () => { if (--inside <= 0) at("drop").classList.remove("over"); });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    inside = 0;
    at("drop").classList.remove("over");
    predict(event.dataTransfer.files[0]);
  });
  if (at("access").hidden) loadCard().catch(complain);
})();

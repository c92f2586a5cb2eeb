// The page at "/". Names of classes, files and networks come from strangers: they are only ever set
// as text, never as HTML.
"use strict";

const SIDE = 1024; // longest side in pixels of what is drawn
const $ = (id) => document.getElementById(id);
let service = null; // the answer of GET /models
let last = null; // the file that was sent last
let request = null; // that is running

function element(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = kind;
  return made;
}

function network() {
  return service.models.find((each) => each.name === $("model").value) ?? service.models[0];
}

function isVolume(model) {
  return model.size.length === 3;
}

// Models ------------------------------------------------------------------------------------------

async function start() {
  try {
    service = await (await fetch("models")).json();
  } catch {
    return refuse("The service does not answer. Is it still running?");
  }
  for (const each of service.models) $("model").append(new Option(each.name, each.name));
  $("model-choice").hidden = service.models.length < 2;
  $("accepted").textContent += ", at most " + megabytes(service.max_bytes) + " and "
    + service.max_pixels / 1e6 + " megapixels";
  describe();
}

function describe() {
  const model = network();
  $("explain-choice").hidden = !model.explains;
  $("card-part").hidden = !model.card;
  // Markdown as text: without its header, and without the backslashes before signs.
  const card = model.card.replace(/^---\n[^]*?\n---\n/, "");
  $("card").textContent = card.replace(/\\([!-/:-@[-`{-~])/g, "$1").trim();
}

// Asking ------------------------------------------------------------------------------------------

function megabytes(bytes) {
  return +(bytes / 2 ** 20).toPrecision(3) + " MB";
}

function refuse(reason) {
  $("status").textContent = "";
  $("result").hidden = true;
  $("error").textContent = reason;
  $("error").hidden = false;
}

const REASONS = {
  413: "The image is too large",
  415: "This is not an image that can be read",
  422: "The image can't be used",
  429: "The service is busy",
};

async function ask(file) {
  if (!file || !service) return;
  last = file;
  request?.abort();
  const current = (request = new AbortController());
  $("error").hidden = true;
  if (file.size > service.max_bytes) {
    const size = megabytes(file.size);
    return refuse(`${REASONS[413]}: expected at most ${megabytes(service.max_bytes)}, given ${size}`);
  }
  $("result").setAttribute("aria-busy", "true");
  $("status").textContent = "Analysing " + file.name + " …";
  const model = network();
  const options = new URLSearchParams({
    model: model.name,
    image: true,
    side: isVolume(model) ? SIDE / 2 : SIDE,
    explain: model.explains && $("explain").checked,
  });
  const body = new FormData();
  body.append("file", file, "image"); // what the file is called, which may be a patient, stays here
  try {
    const response = await fetch("predict?" + options, { method: "POST", body, signal: current.signal });
    const answer = await response.json();
    if (response.ok) showFrames(answer.frames ?? [answer], model, file.name);
    else refuse(`${REASONS[response.status] ?? "The request failed"}: ${answer.detail}`);
  } catch (error) {
    if (error.name !== "AbortError") refuse("The service does not answer. Is it still running?");
  } finally {
    if (request === current) $("result").removeAttribute("aria-busy");
  }
}

// Showing -----------------------------------------------------------------------------------------

const png = (base64) => "data:image/png;base64," + base64;

function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return share < 1 && share > 0.999 ? "> 99.9 %" : (100 * share).toFixed(1) + " %";
}

function showFrames(answers, model, file) {
  const slider = $("frame");
  $("frame-choice").hidden = answers.length < 2;
  $("frame-name").textContent = isVolume(model) ? "Slice" : "Frame";
  slider.max = answers.length;
  slider.value = Math.ceil(answers.length / 2);
  slider.oninput = () => {
    $("frame-number").textContent = `${slider.value} of ${answers.length}`;
    show(answers[slider.value - 1], model, file);
  };
  slider.oninput();
}

function show(answer, model, file) {
  const scale = Math.min(1, SIDE / Math.max(answer.height, answer.width));
  $("stack").style.aspectRatio = answer.width + " / " + answer.height;
  // A tall image fits on the screen with its sliders.
  $("stack").style.maxWidth = `calc(70vh * ${answer.width / answer.height})`;
  $("image").src = png(answer.image);
  $("image").alt = "The image " + file;
  for (const [layer, content] of [["mask", answer.mask?.png], ["heat", answer.heat]]) {
    if (content) $(layer).src = png(content);
    else $(layer).removeAttribute("src");
    document.querySelector(`[name=layer][value=${layer}]`).parentElement.hidden = !content;
  }
  $("mask").classList.toggle("small", answer.width * scale < 400);
  $("layers").hidden = !answer.mask && !answer.heat;
  const chosen = document.querySelector("[name=layer]:checked")?.value;
  const possible = { mask: answer.mask, heat: answer.heat, none: chosen === "none" };
  const first = possible[chosen] ? chosen : answer.mask ? "mask" : answer.heat ? "heat" : "none";
  document.querySelector(`[name=layer][value=${first}]`).checked = true;
  $("heat-note").hidden = !answer.heat;

  const label = answer.label === null ? "Mask" : answer.label || "None of the classes";
  $("label").textContent = label;
  const names = Object.entries(answer.probabilities);
  if (!answer.multi_label) names.sort((one, other) => other[1] - one[1]);
  $("bars").replaceChildren(...names.map(([name, share]) => bar(name, share, answer)));
  $("ood").hidden = !answer.is_ood;
  $("ood").textContent =
    `Out of distribution (p = ${answer.ood_p?.toFixed(2)}): do not rely on this prediction.`;
  $("abstained").hidden = !answer.abstained;
  $("set").hidden = !answer.prediction_set;
  $("set").textContent = answer.prediction_set ? setText(answer) : "";
  $("areas-part").hidden = !answer.mask;
  $("areas").replaceChildren(...(answer.mask?.classes ?? []).map((each) => area(each, answer, model)));
  $("facts").textContent = `${answer.width} x ${answer.height} pixels, by ${answer.model}`;
  $("status").textContent = answer.label ? `${file}: ${label}` : `${file}: done`;
  $("result").hidden = false;
  layer();
}

function setText(answer) {
  const share = `${Math.round(100 * answer.coverage)} %`;
  if (answer.prediction_set.length)
    return `${share} set: ${answer.prediction_set.join(answer.multi_label ? ", " : " or ")}`;
  return `${share} set: none of the classes`;
}

function bar(name, share, answer) {
  const item = element("li");
  const line = element("div", "", "name");
  line.append(element("span", name), element("span", percent(share)));
  const track = element("div", "", "track");
  const fill = element("div", "", "fill");
  fill.style.width = 100 * share + "%";
  track.append(fill);
  item.append(line, track);
  item.classList.toggle("predicted", answer.multi_label ? share > 0.5 : name === answer.label);
  return item;
}

function area(each, answer, model) {
  const item = element("li");
  const colour = element("span", "", "colour");
  colour.style.backgroundColor = model.masks[each.index].colour;
  const share = each.pixels / (answer.width * answer.height);
  const volume = each.ml === null ? "" : `${each.ml} ml; `;
  const whole = isVolume(model) ? "slice" : "image";
  item.append(colour, element("span", `${each.name}: ${volume}${percent(share)} of the ${whole}`));
  return item;
}

function layer() {
  const chosen = document.querySelector("[name=layer]:checked")?.value;
  for (const each of ["mask", "heat"]) {
    $(each).hidden = chosen !== each;
    $(each).style.opacity = $("opacity").value / 100;
  }
  $("opacity").disabled = chosen === "none";
  $("percent").textContent = $("opacity").value + " %";
}

// Events ----------------------------------------------------------------------------------

$("form").addEventListener("submit", (event) => event.preventDefault());
$("file").addEventListener("change", () => {
  ask($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});
$("model").addEventListener("change", () => { describe(); ask(last); });
$("explain").addEventListener("change", () => ask(last));
$("opacity").addEventListener("input", layer);
$("layers").addEventListener("change", layer);
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") ask(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => ask(event.clipboardData.files[0]));
start();

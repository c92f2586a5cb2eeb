// The page at "/". Names of classes, files and networks come from strangers: they are only ever set
// as text, never as HTML.
"use strict";

const SIDE = 1024; // longest side in pixels of what is drawn
const $ = (id) => document.getElementById(id);
let about = null; // what GET /models said
let last = null; // the file that was asked about last
let asked = null; // the request that is under way

function element(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = kind;
  return made;
}

function network() {
  return about.models.find((each) => each.name === $("model").value) ?? about.models[0];
}

// Models ------------------------------------------------------------------------------------------

async function start() {
  try {
    about = await (await fetch("models")).json();
  } catch {
    return refuse("The service does not answer. Is it still running?");
  }
  for (const each of about.models) $("model").append(new Option(each.name, each.name));
  $("model-choice").hidden = about.models.length < 2;
  $("accepted").textContent += ", at most " + megabytes(about.max_bytes) + " and "
    + about.max_pixels / 1e6 + " megapixels";
  describe();
}

function describe() {
  const own = network();
  $("explain-choice").hidden = !own.explains;
  $("card-part").hidden = !own.card;
  $("card").replaceChildren(...markdown(own.card));
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
  if (!file || !about) return;
  last = file;
  asked?.abort();
  const own = (asked = new AbortController());
  $("error").hidden = true;
  if (file.size > about.max_bytes) {
    const given = megabytes(file.size);
    return refuse(`${REASONS[413]}: expected at most ${megabytes(about.max_bytes)}, given ${given}`);
  }
  $("result").setAttribute("aria-busy", "true");
  $("status").textContent = "Looking at " + file.name + " …";
  const model = network();
  const options = new URLSearchParams({
    model: model.name, image: true, side: SIDE, explain: model.explains && $("explain").checked,
  });
  const body = new FormData();
  body.append("file", file, "image"); // what the file is called, which may be a patient, stays here
  try {
    const response = await fetch("predict?" + options, { method: "POST", body, signal: own.signal });
    const said = await response.json();
    if (response.ok) show(said, model, file.name);
    else refuse(`${REASONS[response.status] ?? "There is no answer"}: ${said.detail}`);
  } catch (error) {
    if (error.name !== "AbortError") refuse("The service does not answer. Is it still running?");
  } finally {
    if (asked === own) $("result").removeAttribute("aria-busy");
  }
}

// Showing -----------------------------------------------------------------------------------------

const png = (base64) => "data:image/png;base64," + base64;

function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return share < 1 && share > 0.999 ? "> 99.9 %" : (100 * share).toFixed(1) + " %";
}

function show(said, model, file) {
  const scale = Math.min(1, SIDE / Math.max(said.height, said.width));
  $("stack").style.aspectRatio = said.width + " / " + said.height;
  // A tall image fits on the screen with its sliders.
  $("stack").style.maxWidth = `calc(70vh * ${said.width / said.height})`;
  $("image").src = png(said.image);
  $("image").alt = "The image " + file;
  for (const [layer, found] of [["mask", said.mask?.png], ["heat", said.heat]]) {
    if (found) $(layer).src = png(found);
    else $(layer).removeAttribute("src");
    document.querySelector(`[name=layer][value=${layer}]`).parentElement.hidden = !found;
  }
  $("mask").classList.toggle("small", said.width * scale < 400);
  $("layers").hidden = !said.mask && !said.heat;
  const chosen = document.querySelector("[name=layer]:checked")?.value;
  const possible = { mask: said.mask, heat: said.heat, none: chosen === "none" };
  const first = possible[chosen] ? chosen : said.mask ? "mask" : said.heat ? "heat" : "none";
  document.querySelector(`[name=layer][value=${first}]`).checked = true;
  $("heat-says").hidden = !said.heat;

  const label = said.label === null ? "Mask" : said.label || "None of the classes";
  $("label").textContent = label;
  const names = Object.entries(said.probabilities);
  if (!said.multi_label) names.sort((one, other) => other[1] - one[1]);
  $("bars").replaceChildren(...names.map(([name, share]) => bar(name, share, said)));
  $("unfamiliar").hidden = !said.is_unfamiliar;
  $("abstained").hidden = !said.abstained;
  $("set").hidden = !said.prediction_set;
  $("set").textContent = said.prediction_set ? inWords(said) : "";
  $("areas-part").hidden = !said.mask;
  $("areas").replaceChildren(...(said.mask?.classes ?? []).map((each) => area(each, said, model)));
  $("facts").textContent = `${said.width} x ${said.height} pixels, by ${said.model}`;
  $("status").textContent = said.label ? `${file}: ${label}` : `${file} was looked at`;
  $("result").hidden = false;
  layer();
}

function inWords(said) {
  const share = `${Math.round(100 * said.coverage)} %`;
  if (said.prediction_set.length)
    return `${share} set: ${said.prediction_set.join(said.multi_label ? ", " : " or ")}`;
  return `${share} set: none of the classes`;
}

function bar(name, share, said) {
  const item = element("li");
  const line = element("div", "", "name");
  line.append(element("span", name), element("span", percent(share)));
  const track = element("div", "", "track");
  const fill = element("div", "", "fill");
  fill.style.width = 100 * share + "%";
  track.append(fill);
  item.append(line, track);
  item.classList.toggle("said", said.multi_label ? share > 0.5 : name === said.label);
  return item;
}

function area(each, said, model) {
  const item = element("li");
  const colour = element("span", "", "colour");
  colour.style.backgroundColor = model.masks[each.index].colour;
  const share = each.pixels / (said.width * said.height);
  item.append(colour, element("span", `${each.name}: ${percent(share)} of the image`));
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

// The model card: as much Markdown as cards use ---------------------------------------------------

function markdown(text) {
  const lines = text.replace(/^---\n[^]*?\n---\n/, "").split("\n");
  const made = [];
  const taken = (belongs) => {
    const found = [];
    while (lines.length && belongs(lines[0])) found.push(lines.shift());
    return found;
  };
  while (lines.length) {
    const line = lines[0];
    if (line.startsWith("```")) {
      lines.shift();
      const pre = element("pre");
      pre.append(element("code", taken((each) => !each.startsWith("```")).join("\n")));
      lines.shift();
      made.push(pre);
    } else if (line.startsWith("|")) {
      made.push(table(taken((each) => each.startsWith("|"))));
    } else if (/^#+ /.test(line)) {
      lines.shift();
      const heading = element(line.startsWith("# ") ? "h2" : "h3");
      heading.append(...inline(line.replace(/^#+ /, "")));
      made.push(heading);
    } else if (line.trim()) {
      const block = (each) => each.trim() && !/^(```|\||#+ )/.test(each);
      const paragraph = element("p");
      paragraph.append(...inline(taken(block).join(" ")));
      made.push(paragraph);
    } else {
      lines.shift();
    }
  }
  return made;
}

// Text, code between backticks, and bold words; a backslash takes its meaning from a sign.
function inline(text) {
  const made = [];
  let end = 0;
  for (const found of text.matchAll(/\\([!-/:-@[-`{-~])|`([^`]*)`|\*\*((?:[^*\\]|\\.)+)\*\*/g)) {
    const [whole, sign, code, bold] = found;
    made.push(text.slice(end, found.index));
    end = found.index + whole.length;
    if (sign !== undefined) made.push(sign);
    else if (code !== undefined) made.push(element("code", code));
    else {
      made.push(element("strong"));
      made.at(-1).append(...inline(bold));
    }
  }
  return [...made, text.slice(end)];
}

function table(lines) {
  const cells = (line) => line.split(/(?<!\\)\|/).slice(1, -1).map((cell) => cell.trim());
  const made = element("table");
  lines.filter((line) => !/^[|\s:-]+$/.test(line)).forEach((line, place) => {
    const row = element("tr");
    for (const cell of cells(line)) {
      row.append(element(place ? "td" : "th"));
      row.lastChild.append(...inline(cell));
    }
    made.append(row);
  });
  const scroll = element("div", "", "scroll");
  scroll.append(made);
  return scroll;
}

// What people do ----------------------------------------------------------------------------------

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

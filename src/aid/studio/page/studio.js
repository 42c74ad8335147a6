"use strict";
const at = (id) => document.getElementById(id);
const USUAL = ["steps", "cfg_scale", "width", "height"];
const NUMBERS = [...USUAL, "seed", "batch_size"];
const chosen = new Set();
let usualNegative = "";

async function ask(path, body) {
  const answer = await fetch(path, body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.detail || answer.statusText);
  return told;
}

function tell(error) {
  at("told").textContent = error.message;
}

function fill(select, names, value) {
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === value)));
}

function styleButton(name) {
  const button = document.createElement("button");
  const view = document.createElement("span");
  const picture = new Image();
  button.type = "button";
  button.dataset.name = name;
  button.setAttribute("aria-pressed", String(chosen.has(name)));
  view.className = "view";
  picture.loading = "lazy";
  picture.alt = "";
  picture.src = `/studio/styles/${encodeURIComponent(name)}.png`;
  view.append(picture);
  button.append(view, name);
  button.addEventListener("click", () => {
    if (!chosen.delete(name)) chosen.add(name);
    button.setAttribute("aria-pressed", String(chosen.has(name)));
  });
  return button;
}

async function show() {
  const studio = await ask("/studio");
  fill(at("model"), studio.models, studio.model);
  fill(at("sampler_name"), studio.samplers, studio.usual.sampler);
  for (const name of USUAL) at(name).value = studio.usual[name] ?? at(name).defaultValue;
  const written = at("negative_prompt").value; // by the person, unless it is what the last model's card says
  at("negative_prompt").value = written === usualNegative ? studio.usual.negative_prompt : written;
  usualNegative = studio.usual.negative_prompt;
  for (const name of chosen) if (!studio.styles.includes(name)) chosen.delete(name);
  at("styles").replaceChildren(...studio.styles.map(styleButton));
}

function request() {
  const told = { styles: [...chosen], sampler_name: at("sampler_name").value };
  for (const name of ["prompt", "negative_prompt"]) told[name] = at(name).value;
  for (const name of NUMBERS) if (at(name).value !== "") told[name] = Number(at(name).value);
  return told;
}

function figure(image, text) {
  const made = document.createElement("figure");
  const picture = new Image();
  const caption = document.createElement("figcaption");
  picture.src = `data:image/png;base64,${image}`;
  picture.alt = text.split("\n")[0];
  caption.textContent = text;
  made.append(picture, caption);
  return made;
}

async function watch(over) {
  while (!over.done) {
    await new Promise((resume) => setTimeout(resume, 400));
    if (!over.done) at("progress").value = (await ask("/sdapi/v1/progress")).progress;
  }
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const over = { done: false };
  at("draw").disabled = true;
  at("stop").disabled = false;
  at("told").textContent = "";
  watch(over).catch(() => {});
  try {
    const answer = await ask("/sdapi/v1/txt2img", request());
    const texts = JSON.parse(answer.info).infotexts;
    at("pictures").prepend(...answer.images.map((image, index) => figure(image, texts[index])));
  } catch (error) {
    tell(error);
  }
  over.done = true;
  at("progress").value = 0;
  at("draw").disabled = false;
  at("stop").disabled = true;
});
at("stop").addEventListener("click", () => ask("/sdapi/v1/interrupt", {}).catch(tell));
at("model").addEventListener("change", () => {
  ask("/sdapi/v1/options", { sd_model_checkpoint: at("model").value }).catch(tell).then(show).catch(tell);
});
at("find").addEventListener("input", () => {
  const wanted = at("find").value.trim().toLowerCase();
  for (const button of at("styles").children) {
    button.hidden = !button.dataset.name.toLowerCase().includes(wanted);
  }
});
at("form").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  if (event.target === at("find")) event.preventDefault();
  if ((event.ctrlKey || event.metaKey) && !at("draw").disabled) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
show().catch(tell);

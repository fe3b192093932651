
// What this worker may have or not: LoRAs, ControlNets, IP-Adapter.

/** The rows of the chosen LoRAs. */
let loraRows = [];
/** The places for pictures that guide. */
let guides = [];

function offerLoras(entries) {
  $("loras").hidden = entries.length === 0;
  const options = entries.map((entry) => {
    const option = new Option(entry.error ? `${entry.name} (${entry.error})` : entry.name, entry.name);
    option.disabled = Boolean(entry.error);
    option.dataset.words = (entry.trigger_words ?? []).slice(0, 5).join(", ");
    return option;
  });
  $("lora").replaceChildren(...options);
}

function addLora(name, scale = "") {
  if (!name || loraRows.some((row) => row.name === name)) return;
  const { input, element } = numberInput(`Scale of ${name}`, { min: -20, max: 20, step: 0.1, placeholder: "1", value: scale });
  const remove = make("button", { type: "button", className: "quiet", "aria-label": `Remove ${name}` }, "Remove");
  const words = [...$("lora").options].find((option) => option.value === name)?.dataset.words;
  const row = make("li", {}, element, remove);
  if (words) row.append(make("span", { className: "hint" }, `Words: ${words}`));
  const entry = { name, input, row };
  remove.addEventListener("click", () => {
    row.remove();
    loraRows = loraRows.filter((other) => other !== entry);
    $("lora-add").focus();
  });
  loraRows.push(entry);
  $("lora-list").append(row);
}
$("lora-add").addEventListener("click", () => addLora($("lora").value));

/** Sets which LoRAs are chosen. */
function setLoras(loras = []) {
  loraRows = [];
  $("lora-list").replaceChildren();
  for (const { name, scale } of loras) addLora(name, scale ?? "");
}

/** A place for each network, and one for IP-Adapter. */
function offerGuides({ controls, preprocess, references }) {
  guides = controls.map((control) => guide("control", control.name, preprocess, control.types ?? []));
  if (references) guides.push(guide("reference", "Picture to look at", [], []));
  $("guides").hidden = guides.length === 0;
  $("guide-list").replaceChildren(...guides.map((guide) => guide.element));
}

function guide(field, name, preprocess, types) {
  const picture = pictureInput({ label: `Picture for ${name}`, param: field });
  const scale = numberInput("Scale", { min: 0, max: 10, step: 0.1, placeholder: "1" });
  const parts = [scale.element];
  const choices = {};
  for (const [key, label, names] of [["preprocess", "Preprocess", preprocess], ["type", "Type", types]]) {
    if (names.length === 0) continue;
    const { select, element } = choice(label, key === "type" ? ["", ...names] : names);
    choices[key] = select;
    parts.push(element);
  }
  const element = make("fieldset", {}, make("legend", {}, name), picture.element, make("div", { className: "grid" }, ...parts));
  return { field, name, picture, scale: scale.input, choices, element };
}

/** What the request says of the guides: entries of `control` and `reference`. */
function readGuides(field) {
  return guides.filter((guide) => guide.field === field && guide.picture.get()).map((guide) => {
    const entry = { image: guide.picture.get() };
    if (field === "control") entry.name = guide.name;
    const scale = numberOf(guide.scale, field);
    if (scale !== undefined) entry.scale = scale;
    for (const [key, select] of Object.entries(guide.choices)) if (select.value && select.value !== "none") entry[key] = select.value;
    return entry;
  });
}

/** Sets all guides to what a request said. */
async function setGuides({ control = [], reference = [] }) {
  for (const guide of guides) {
    const entries = guide.field === "control" ? control.filter((entry) => entry.name === guide.name) : reference;
    const entry = entries[0];
    await guide.picture.set(entry?.image ?? null);
    guide.scale.value = entry?.scale ?? "";
    for (const [key, select] of Object.entries(guide.choices)) select.value = entry?.[key] ?? select.options[0].value;
  }
  if (control.length || reference.length) $("guides").open = true;
}


// The form as a request, and a request as the form. A request here is what the API takes, with files where the API takes base64.

/** What counts where a field is empty. */
const NO_DEFAULTS = { size: "x" };
let defaults = NO_DEFAULTS;
let schedulesOf = {};

const NUMBERS = ["num_inference_steps", "guidance_scale", "n", "strength"];
const TEXTS = ["prompt", "negative_prompt"];

/** The number in an input, or nothing where it is empty. */
function numberOf(input, param) {
  if (input.validity.badInput) throw new Problem(`${input.labels[0]?.textContent ?? input.ariaLabel} must be a number`, { param });
  return input.value === "" ? undefined : Number(input.value);
}

/** A seed that people can read out to each other. */
const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** The request that the form asks for. Only what JavaScript cannot say is checked here: the worker knows better what is allowed. */
async function readSettings() {
  const settings = { prompt: $("prompt").value };
  if ($("negative_prompt").value.trim()) settings.negative_prompt = $("negative_prompt").value;
  const [width, height] = ["width", "height"].map((id) => numberOf($(id), "size"));
  if (width !== undefined && height !== undefined) settings.size = `${width}x${height}`;
  else Object.assign(settings, { width, height });
  const image = beginPicture.get();
  for (const id of NUMBERS) if (id !== "strength" || image) settings[id] = numberOf($(id), id);
  for (const id of ["sampler", "schedule"]) settings[id] = $(id).value || undefined;
  if ($("upscaler").value) settings.upscale = { name: $("upscaler").value, scale: numberOf($("times"), "upscale") };
  settings.seed = numberOf($("seed"), "seed") ?? newSeed();
  if (!Number.isSafeInteger(settings.seed)) throw new Problem("the seed must be a whole number up to 9007199254740991 here", { param: "seed" });
  const loras = loraRows.map(({ name, input }) => ({ name, scale: numberOf(input, "loras") }));
  const lists = { loras, control: readGuides("control"), reference: readGuides("reference") };
  for (const [name, list] of Object.entries(lists)) if (list.length) settings[name] = list;
  if (image) Object.assign(settings, { image, mask: (await painter.file()) ?? undefined });
  return settings;
}

/** Fills the form in with a request. */
async function fill(settings) {
  for (const id of [...TEXTS, ...NUMBERS, "seed"]) $(id).value = settings[id] ?? "";
  const [width, height] = settings.size?.split("x") ?? [settings.width, settings.height];
  $("width").value = width ?? "";
  $("height").value = height ?? "";
  $("sampler").value = settings.sampler ?? "";
  offerSchedules();
  $("schedule").value = settings.schedule ?? "";
  $("upscaler").value = settings.upscale?.name ?? "";
  $("times").value = settings.upscale?.scale ?? "";
  showTimes();
  setLoras(settings.loras);
  if (settings.loras) $("loras").open = true;
  await setGuides(settings);
  await beginWith(settings.image ?? null, settings.mask);
  showSeedMode();
}

/** Files as `data:` URLs, everywhere in a request. */
async function withFiles(value) {
  if (value instanceof Blob) return dataUrl(value);
  if (Array.isArray(value)) return Promise.all(value.map(withFiles));
  if (value === null || typeof value !== "object") return value;
  const entries = Object.entries(value).map(async ([name, part]) => [name, await withFiles(part)]);
  return Object.fromEntries(await Promise.all(entries));
}

const dataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    // As when the file was deleted after it was chosen.
    reader.onerror = () => reject(new Problem("The picture can no longer be read. Choose it again.", { param: "image" }));
    reader.readAsDataURL(blob);
  });

/** Offers what the model has, and shows its own settings where fields are empty. */
function offerSettings(model, { samplers, upscalers, limits }) {
  defaults = model.defaults ?? NO_DEFAULTS;
  schedulesOf = Object.fromEntries(samplers.map(({ name, schedules }) => [name, schedules]));
  const names = samplers.map(({ name }) => new Option(name, name));
  $("sampler").replaceChildren(new Option(auto(defaults.sampler), ""), ...names);
  offerSchedules();
  for (const id of ["width", "height"]) Object.assign($(id), { min: limits.min_side, max: limits.max_side, step: limits.size_multiple });
  const [width, height] = defaults.size.split("x").map(Number);
  showDefaultSize(Boolean(beginPicture.get()));
  for (const id of ["num_inference_steps", "guidance_scale"]) $(id).placeholder = defaults[id] ?? "";
  if (defaults.negative_prompt) $("negative_prompt").placeholder = defaults.negative_prompt;
  $("num_inference_steps").max = limits.max_steps;
  $("n").max = limits.max_n;
  offerUpscalers(upscalers);
  if (width && height) offerShapes(width * height, limits);
}

const auto = (name) => (name ? `auto: ${name}` : "auto");

/** A picture to begin with has a size of its own. */
function showDefaultSize(hasPicture) {
  const [width, height] = hasPicture ? ["auto", "auto"] : defaults.size.split("x");
  $("width").placeholder = width;
  $("height").placeholder = height;
}

/** Offers the schedules that go with the chosen sampler. */
function offerSchedules() {
  const kept = $("schedule").value;
  const names = schedulesOf[$("sampler").value || defaults.sampler] ?? [];
  const own = auto($("sampler").value ? "" : defaults.schedule);
  $("schedule").replaceChildren(new Option(own, ""), ...names.map((name) => new Option(name, name)));
  if (names.includes(kept)) $("schedule").value = kept;
}
$("sampler").addEventListener("change", offerSchedules);

/** Offers what enlarges finished pictures. A network has a scale of its own. */
function offerUpscalers(upscalers) {
  const options = upscalers.map(({ name, scale = 2 }) => {
    const option = new Option(name, name);
    option.dataset.scale = scale;
    return option;
  });
  $("upscaler").replaceChildren(new Option("no", ""), ...options);
  showTimes();
}
function showTimes() {
  $("times").disabled = !$("upscaler").value;
  $("times").placeholder = $("upscaler").selectedOptions[0]?.dataset.scale ?? "";
}
$("upscaler").addEventListener("change", showTimes);

/** Offers sizes of several shapes, with about as many pixels as the model's own. */
function offerShapes(pixels, { size_multiple: multiple, min_side: least }) {
  const shapes = [[1, 1], [4, 3], [3, 4], [16, 9], [9, 16]].map(([across, down]) => {
    const side = (share) => Math.max(least, Math.round(Math.sqrt(pixels * share) / multiple) * multiple);
    const [width, height] = [side(across / down), side(down / across)];
    const chip = make("button", { type: "button", title: `${width} × ${height}` }, `${across}:${down}`);
    chip.addEventListener("click", () => {
      $("width").value = width;
      $("height").value = height;
    });
    return chip;
  });
  $("shapes").replaceChildren(...shapes);
}
$("swap").addEventListener("click", () => {
  const [width, height] = [$("width").value, $("height").value];
  $("width").value = height;
  $("height").value = width;
});

function showSeedMode() {
  $("random").setAttribute("aria-pressed", $("seed").value === "");
}
$("seed").addEventListener("input", showSeedMode);
for (const [id, seed] of [["dice", newSeed], ["random", () => ""]]) {
  $(id).addEventListener("click", () => {
    $("seed").value = seed();
    showSeedMode();
  });
}

// An arrow key in an empty field begins at what the field shows, and not at the least that it allows.
document.addEventListener("keydown", ({ target, key }) => {
  const begins = target.type === "number" && target.value === "" && !target.validity.badInput && target.placeholder !== "";
  if (begins && ["ArrowUp", "ArrowDown"].includes(key) && !Number.isNaN(Number(target.placeholder))) target.value = target.placeholder;
});


// What the worker can do is asked once, when the page opens.

async function load() {
  for (;;) {
    try {
      const paths = ["v1/models", "v1/capabilities", "v1/loras"];
      const [models, capabilities, loras] = await Promise.all(paths.map(async (path) => (await ask(path)).json()));
      const model = models.data[0];
      // The model was ready a moment later than the list of models.
      if (!model) continue;
      readableTypes = capabilities.input_formats.map((name) => `image/${name}`);
      offerSettings(model, capabilities);
      offerLoras(loras.data);
      offerGuides(capabilities);
      $("model").textContent = [...new Set([model.id, model.device, model.dtype, model.compute])].filter(Boolean).join(" · ");
      return;
    } catch (problem) {
      $("model").textContent = sentence(problem.message);
      // While the model loads, or the worker restarts.
      if (!problem.isPassing) return;
      await new Promise((resolve) => setTimeout(resolve, 1000 * (problem.retryAfter || 3)));
    }
  }
}

$("key-open").addEventListener("click", async () => {
  try {
    await askForKey("");
  } catch {
    return;
  }
  load();
});

// On a phone, the picture is nearer when the settings are closed.
$("settings").open = !matchMedia("(max-width: 759px)").matches;
load();

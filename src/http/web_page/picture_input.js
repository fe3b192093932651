
// A place for one picture: chosen, dropped or pasted.

/** What the worker can read. The rest is converted, if this browser can. */
let readableTypes = ["image/png", "image/jpeg", "image/webp"];

/** The file as the worker can read it. */
async function readable(file, param) {
  if (readableTypes.includes(file.type)) return file;
  try {
    const picture = await createImageBitmap(file);
    const canvas = make("canvas", { width: picture.width, height: picture.height });
    canvas.getContext("2d").drawImage(picture, 0, 0);
    return await canvasBlob(canvas);
  } catch {
    throw new Problem(`“${file.name ?? "the file"}” is no picture that this browser can read`, { param });
  }
}

/** The first picture among what was dropped or pasted. */
function pictureIn(transfer) {
  const files = [...(transfer?.files ?? [])];
  return files.find((file) => file.type.startsWith("image/")) ?? files[0];
}

/** A place for a picture. `changed` is told the new one, or null. */
function pictureInput({ label, param, showsPicture = true, changed = () => {} }) {
  let blob = null;
  const input = make("input", { type: "file", id: newId(), accept: "image/*", className: "file" });
  const thumbnail = make("img", { alt: "", hidden: true });
  const text = make("label", { htmlFor: input.id }, label);
  const remove = make("button", { type: "button", className: "quiet", hidden: true, "aria-label": `Remove: ${label}` }, "Remove");
  const element = make("div", { className: "drop" }, thumbnail, input, text, remove);

  function set(next) {
    blob = next;
    URL.revokeObjectURL(thumbnail.src);
    thumbnail.hidden = !next || !showsPicture;
    remove.hidden = !next;
    thumbnail.src = next && showsPicture ? URL.createObjectURL(next) : "";
    text.textContent = next ? "Another picture" : label;
    input.value = "";
    return changed(next);
  }
  async function take(file) {
    if (!file) return;
    clearProblems();
    try {
      await set(await readable(file, param));
    } catch (error) {
      showProblem(error);
    }
  }
  input.addEventListener("change", () => take(input.files[0]));
  remove.addEventListener("click", () => {
    set(null);
    input.focus();
  });
  element.addEventListener("dragover", () => element.classList.add("over"));
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  for (const kind of ["drop", "paste"]) {
    element.addEventListener(kind, (event) => {
      element.classList.remove("over");
      const file = pictureIn(event.dataTransfer ?? event.clipboardData);
      if (!file) return;
      event.preventDefault();
      event.stopPropagation();
      take(file);
    });
  }
  return { element, take, set, get: () => blob };
}

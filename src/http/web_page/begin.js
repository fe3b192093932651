
// The picture to begin with, and the mask over it.

const painter = maskPainter($("mask"), $("brush-mark"));

const beginPicture = pictureInput({
  label: "Choose, drop or paste a picture",
  param: "image",
  showsPicture: false,
  async changed(blob) {
    URL.revokeObjectURL($("paint-picture").src);
    $("painting").hidden = !blob;
    showDefaultSize(Boolean(blob));
    if (!blob) return;
    $("begin").open = true;
    $("paint-picture").src = URL.createObjectURL(blob);
    try {
      await $("paint-picture").decode();
    } catch {
      await beginPicture.set(null);
      throw new Problem("this file is no picture that this browser can read", { param: "image" });
    }
    painter.fit($("paint-picture"));
  },
});
$("begin-picture").append(beginPicture.element);

/** Begins with a picture, perhaps with a mask over it. */
async function beginWith(picture, mask = null) {
  await beginPicture.set(picture);
  if (picture) await painter.restore(mask);
}

// A picture that is dropped or pasted anywhere else is one to begin with. A browser would open it in place of the page.
for (const kind of ["dragover", "drop", "paste"]) {
  document.addEventListener(kind, (event) => {
    const transfer = event.dataTransfer ?? event.clipboardData;
    // Office programs copy a picture of their text along with it.
    const isText = kind === "paste" && event.target.matches("input, textarea") && transfer.types.includes("text/plain");
    if (isText || !transfer.types.includes("Files")) return;
    event.preventDefault();
    if (kind !== "dragover") beginPicture.take(pictureIn(transfer));
  });
}


// A mask is painted over a picture. What is painted is drawn anew.

/** The longest side of a mask. The worker scales it to the picture. */
const MASK_SIDE = 1024;

function maskPainter(canvas, mark) {
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  let at = { x: 0, y: 0 };
  let erases = false;
  let isDown = false;

  /** In the mask's pixels. The brush is a share of the picture, so that it looks the same on every screen. */
  const width = () => (Number($("brush").value) / 100) * Math.max(canvas.width, canvas.height);
  /** The mask's pixels for one of the screen's. */
  const scale = () => canvas.width / (canvas.clientWidth || canvas.width);

  function clear() {
    pen.clearRect(0, 0, canvas.width, canvas.height);
  }
  function fit(picture) {
    const shrink = Math.min(1, MASK_SIDE / Math.max(picture.naturalWidth, picture.naturalHeight));
    // A new size clears a canvas.
    canvas.width = Math.max(1, Math.round(picture.naturalWidth * shrink));
    canvas.height = Math.max(1, Math.round(picture.naturalHeight * shrink));
    at = { x: canvas.width / 2, y: canvas.height / 2 };
  }
  function stroke(to) {
    pen.globalCompositeOperation = erases ? "destination-out" : "source-over";
    pen.strokeStyle = pen.fillStyle = "#e8447a";
    pen.lineWidth = width();
    pen.beginPath();
    pen.moveTo(at.x, at.y);
    pen.lineTo(to.x, to.y);
    pen.stroke();
    // A line has flat ends, and none where it has no length.
    for (const end of [at, to]) {
      pen.beginPath();
      pen.arc(end.x, end.y, width() / 2, 0, 2 * Math.PI);
      pen.fill();
    }
    at = to;
  }
  function showMark() {
    mark.hidden = false;
    const side = width() / scale();
    Object.assign(mark.style, { width: `${side}px`, height: `${side}px`, left: `${at.x / scale()}px`, top: `${at.y / scale()}px` });
  }
  const point = (event) => ({ x: event.offsetX * scale(), y: event.offsetY * scale() });

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    isDown = true;
    at = point(event);
    stroke(at);
    showMark();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (isDown) stroke(point(event));
    else at = point(event);
    showMark();
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => (isDown = false));
  for (const kind of ["pointerleave", "blur"]) canvas.addEventListener(kind, () => (mark.hidden = true));
  canvas.addEventListener("focus", () => {
    if (canvas.matches(":focus-visible")) showMark();
  });
  canvas.addEventListener("keydown", (event) => {
    const by = width() / 4;
    const moves = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by], " ": [0, 0] };
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const within = (value, most) => Math.min(most, Math.max(0, value));
    at = { x: within(at.x + move[0], canvas.width), y: within(at.y + move[1], canvas.height) };
    if (event.key === " ") stroke(at);
    showMark();
  });
  $("brush").addEventListener("input", () => !mark.hidden && showMark());
  $("erase").addEventListener("click", () => {
    erases = !erases;
    $("erase").setAttribute("aria-pressed", erases);
  });
  $("clear").addEventListener("click", clear);

  /** Whether the worker would see anything white: less than half of it is black. */
  function isPainted() {
    const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 3; i < data.length; i += 4) if (data[i] > 127) return true;
    return false;
  }
  /** White on black as a file, or null where nothing is painted. */
  async function file() {
    if (!isPainted()) return null;
    const sheet = make("canvas", { width: canvas.width, height: canvas.height });
    const ink = sheet.getContext("2d");
    const fill = (mode, color) => {
      ink.globalCompositeOperation = mode;
      ink.fillStyle = color;
      ink.fillRect(0, 0, sheet.width, sheet.height);
    };
    ink.drawImage(canvas, 0, 0);
    fill("source-in", "white");
    fill("destination-over", "black");
    return canvasBlob(sheet);
  }
  /** Paints what such a file says. */
  async function restore(blob) {
    clear();
    if (!blob) return;
    pen.globalCompositeOperation = "source-over";
    pen.drawImage(await decoded(blob), 0, 0, canvas.width, canvas.height);
    const pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set([0xe8, 0x44, 0x7a, pixels.data[i]], i);
    pen.putImageData(pixels, 0, 0);
  }
  return { fit, file, restore };
}

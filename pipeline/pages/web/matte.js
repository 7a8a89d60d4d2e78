// The matte of one sample on canvases: painting it, and the foreground and background that it gives.

// Whether any of the (2 n + 1)^2 pixels around each is set: what a dilation by n pixels gives.
export function dilated(mask, width, height, n) {
  const rows = new Uint8Array(mask.length);
  for (let y = 0; y < height; y++) {
    let last = -Infinity; // the last set pixel at or before x + n
    for (let x = -n; x < width; x++) {
      if (x + n < width && mask[y * width + x + n]) last = x + n;
      if (x >= 0 && last >= x - n) rows[y * width + x] = 1;
    }
  }
  const grown = new Uint8Array(mask.length);
  for (let x = 0; x < width; x++) {
    let last = -Infinity;
    for (let y = -n; y < height; y++) {
      if (y + n < height && rows[(y + n) * width + x]) last = y + n;
      if (y >= 0 && last >= y - n) grown[y * width + x] = 1;
    }
  }
  return grown;
}

async function pixels(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

export class Matte {
  // The three canvases show the target with the matte, the foreground, and the background.
  constructor(target, foreground, background) {
    Object.assign(this, { target, foreground, background, picture: null, alpha: null, strokes: [] });
  }

  async load(targetUrl, alphaUrl, threshold, dilate) {
    this.strokes = [];
    Object.assign(this, { threshold, dilate, alpha: null });
    this.picture = targetUrl && await pixels(targetUrl);
    if (!this.picture) return;
    const { width, height } = this.picture;
    if (alphaUrl) {
      const grey = (await pixels(alphaUrl)).data;
      this.alpha = new Uint8ClampedArray(width * height);
      for (let k = 0; k < this.alpha.length; k++) this.alpha[k] = grey[4 * k];
    }
    for (const canvas of [this.target, this.foreground, this.background]) Object.assign(canvas, { width, height });
    this.draw(false);
  }

  // Sets alpha in a disc around the line from one point to another, both in pixels of the picture.
  paint(from, to, radius, value) {
    const { width, height } = this.picture;
    const [dx, dy] = [to.x - from.x, to.y - from.y];
    const length = dx * dx + dy * dy;
    const [x0, x1] = [Math.min(from.x, to.x) - radius, Math.max(from.x, to.x) + radius];
    const [y0, y1] = [Math.min(from.y, to.y) - radius, Math.max(from.y, to.y) + radius];
    for (let y = Math.max(0, Math.floor(y0)); y <= Math.min(height - 1, Math.ceil(y1)); y++) {
      for (let x = Math.max(0, Math.floor(x0)); x <= Math.min(width - 1, Math.ceil(x1)); x++) {
        const along = length ? Math.max(0, Math.min(1, ((x - from.x) * dx + (y - from.y) * dy) / length)) : 0;
        const [ex, ey] = [x - from.x - along * dx, y - from.y - along * dy];
        if (ex * ex + ey * ey <= radius * radius) this.alpha[y * width + x] = value;
      }
    }
    this.draw(true);
  }

  begin() { this.strokes.push(this.alpha.slice()); }

  strokeBack() {
    if (this.strokes.length) this.alpha = this.strokes.pop();
    this.draw(this.strokes.length > 0);
  }

  // Draws all three; with ``shown`` the target is dimmed where the matte leaves it out.
  draw(shown) {
    const { width, height, data } = this.picture;
    const [target, foreground, background] = [0, 0, 0].map(() => new ImageData(new Uint8ClampedArray(data), width, height));
    if (this.alpha) {
      const solid = this.alpha.map((value) => (value / 255 > this.threshold ? 1 : 0));
      const hole = dilated(solid, width, height, this.dilate);
      for (let k = 0; k < solid.length; k++) {
        foreground.data[4 * k + 3] = solid[k] ? this.alpha[k] : 0;
        if (hole[k]) background.data.fill(0, 4 * k, 4 * k + 3);
        if (shown && !solid[k]) for (let c = 0; c < 3; c++) target.data[4 * k + c] = data[4 * k + c] * 0.3 + (c === 2 ? 90 : 40);
      }
    }
    for (const [canvas, image] of [[this.target, target], [this.foreground, foreground], [this.background, background]])
      canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // The matte as a grey PNG in a data URI.
  png() {
    const { width, height } = this.picture;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const image = new ImageData(width, height);
    for (let k = 0; k < this.alpha.length; k++) image.data.set([this.alpha[k], this.alpha[k], this.alpha[k], 255], 4 * k);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas.toDataURL("image/png");
  }
}

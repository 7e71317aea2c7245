// Maps of labels: numbers per pixel, UNPAINTED where there is none, and the images that show them.

export const UNPAINTED = -1;

export const rgb = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));

/**
 * Labels with UNPAINTED pixels -> the label of the nearest painted pixel everywhere, null if nothing is painted.
 * By jump flooding, as `with_nearest_labels` of the server computes it.
 */
export function withNearestLabels(labels, width, height) {
  const far = 1e6,
    count = width * height;
  let rows = new Int32Array(count),
    columns = new Int32Array(count),
    painted = false;
  for (let at = 0; at < count; at++) {
    const known = labels[at] !== UNPAINTED;
    painted ||= known;
    rows[at] = known ? Math.floor(at / width) : far;
    columns[at] = known ? at % width : far;
  }
  if (!painted) return null;
  let step = 1;
  while (step * 2 < Math.max(width, height)) step *= 2;
  for (; step >= 1; step >>= 1) {
    for (const [down, right] of [
      [-1, -1],
      [-1, 0],
      [-1, 1],
      [0, -1],
      [0, 1],
      [1, -1],
      [1, 0],
      [1, 1],
    ]) {
      const newRows = rows.slice(),
        newColumns = columns.slice();
      for (let y = Math.max(0, -down * step); y < Math.min(height, height - down * step); y++) {
        for (let x = Math.max(0, -right * step); x < Math.min(width, width - right * step); x++) {
          const at = y * width + x,
            other = at + step * (down * width + right);
          const here = (rows[at] - y) ** 2 + (columns[at] - x) ** 2;
          if ((rows[other] - y) ** 2 + (columns[other] - x) ** 2 < here) {
            newRows[at] = rows[other];
            newColumns[at] = columns[other];
          }
        }
      }
      [rows, columns] = [newRows, newColumns];
    }
  }
  return labels.map((_, at) => labels[rows[at] * width + columns[at]]);
}

/** Labels -> a PNG file in the labels' colors, transparent where unpainted. */
export function mapBlob(labels, width, height, colors) {
  const canvas = new OffscreenCanvas(width, height),
    image = new ImageData(width, height);
  labels.forEach((label, at) => {
    if (label !== UNPAINTED) image.data.set([...colors[label], 255], at * 4);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

/** A PNG file as `mapBlob` makes it -> {labels, width, height}. */
export async function mapLabels(blob, colors) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap,
    canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height),
    labels = new Int16Array(width * height);
  for (let at = 0; at < labels.length; at++) {
    labels[at] = UNPAINTED;
    if (data[at * 4 + 3] < 128) continue;
    let best = Infinity;
    colors.forEach(([red, green, blue], label) => {
      const far = Math.abs(red - data[at * 4]) + Math.abs(green - data[at * 4 + 1]) + Math.abs(blue - data[at * 4 + 2]);
      if (far < best) [best, labels[at]] = [far, label];
    });
  }
  return { labels, width, height };
}

/** A mask: 0 where marked -> a PNG file, white where marked and black elsewhere. */
export function maskBlob(labels, width, height) {
  const canvas = new OffscreenCanvas(width, height),
    image = new ImageData(width, height);
  labels.forEach((label, at) => image.data.set([...(label === 0 ? [255, 255, 255] : [0, 0, 0]), 255], at * 4));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

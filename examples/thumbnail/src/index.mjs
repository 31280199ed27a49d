// Makes a PNG smaller: POST the image, get it back so that it fits a square of
// ?size= pixels (8 to 512, 64 if not given). The image is somebody else's, so
// its size is read and judged before it is unpacked.
import { PNG } from "pngjs";

const MAX_PIXELS = 16e6;

export async function handler(event) {
  const input = Buffer.from(event.body ?? "", event.isBase64Encoded ? "base64" : "utf8");
  const size = Number(event.queryStringParameters?.size ?? 64);
  if (!Number.isInteger(size) || size < 8 || size > 512) return refuse(400, "size must be 8 to 512");
  if (input.length < 33 || input.toString("latin1", 1, 4) !== "PNG") return refuse(415, "the body is no PNG");
  const pixels = input.readUInt32BE(16) * input.readUInt32BE(20);
  if (pixels === 0 || pixels > MAX_PIXELS) return refuse(422, `an image of ${pixels} pixels is over the limit`);
  let image;
  try {
    image = PNG.sync.read(input);
  } catch {
    return refuse(422, "the PNG is damaged");
  }
  const small = shrink(image, size);
  return {
    statusCode: 200,
    headers: {
      "content-type": "image/png",
      "x-image-size": `${image.width}x${image.height} to ${small.width}x${small.height}`,
    },
    body: PNG.sync.write(small).toString("base64"),
    isBase64Encoded: true,
  };
}

// shrink averages the pixels that fall into each new one, colours weighted by
// their opacity.
export function shrink(image, size) {
  const scale = Math.min(1, size / Math.max(image.width, image.height));
  const width = Math.max(1, Math.round(image.width * scale));
  const height = Math.max(1, Math.round(image.height * scale));
  const small = new PNG({ width, height });
  for (let y = 0; y < height; y++) {
    const top = Math.floor((y * image.height) / height);
    const bottom = Math.max(top + 1, Math.floor(((y + 1) * image.height) / height));
    for (let x = 0; x < width; x++) {
      const left = Math.floor((x * image.width) / width);
      const right = Math.max(left + 1, Math.floor(((x + 1) * image.width) / width));
      let r = 0, g = 0, b = 0, a = 0;
      for (let v = top; v < bottom; v++) {
        for (let u = left; u < right; u++) {
          const i = (v * image.width + u) * 4;
          const alpha = image.data[i + 3];
          r += image.data[i] * alpha;
          g += image.data[i + 1] * alpha;
          b += image.data[i + 2] * alpha;
          a += alpha;
        }
      }
      const o = (y * width + x) * 4;
      if (a > 0) {
        small.data[o] = Math.round(r / a);
        small.data[o + 1] = Math.round(g / a);
        small.data[o + 2] = Math.round(b / a);
      }
      small.data[o + 3] = Math.round(a / ((bottom - top) * (right - left)));
    }
  }
  return small;
}

const refuse = (statusCode, error) => ({
  statusCode,
  headers: { "content-type": "application/json" },
  body: JSON.stringify({ error }),
});

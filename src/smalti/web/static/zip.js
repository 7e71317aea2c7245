// A ZIP file of files that are stored without compression (PNG files are compressed already). PKWARE APPNOTE 4.3.

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function record(fields) {
  // [[bytes, number], ...], least significant byte first
  const bytes = new Uint8Array(fields.reduce((sum, [size]) => sum + size, 0));
  let at = 0;
  for (const [size, number] of fields) {
    for (let place = 0; place < size; place++) bytes[at++] = (number >>> (8 * place)) & 255;
  }
  return bytes;
}

/** [{name, blob}] -> a ZIP file. Equal names get a number. */
export async function zip(files) {
  const parts = [],
    directory = [],
    names = new Set();
  let offset = 0;
  for (const { name, blob } of files) {
    let unique = name;
    for (let count = 2; names.has(unique); count++) unique = name.replace(/(\.\w+)?$/, `-${count}$1`);
    names.add(unique);
    const bytes = new Uint8Array(await blob.arrayBuffer()),
      path = new TextEncoder().encode(unique);
    const common = [
      [2, 20],
      [2, 0x0800],
      [2, 0],
      [2, 0],
      [2, 0x5a21],
      [4, crc32(bytes)],
      [4, bytes.length],
      [4, bytes.length],
      [2, path.length],
      [2, 0],
    ];
    const head = record([[4, 0x04034b50], ...common]);
    directory.push(record([[4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), path);
    parts.push(head, path, bytes);
    offset += head.length + path.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0),
    count = files.length;
  const end = record([
    [4, 0x06054b50],
    [2, 0],
    [2, 0],
    [2, count],
    [2, count],
    [4, size],
    [4, offset],
    [2, 0],
  ]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

// GGUF files made from another: split into several, or with the tensors far behind the keys. The format: ggml's docs/gguf.md.

const ALIGNMENT = 32;
const WIDTHS = [1, 1, 2, 2, 4, 4, 4, 1, undefined, undefined, 8, 8, 8];
const [U16, I32, STRING, ARRAY] = [2, 5, 8, 9];

const aligned = (n) => Math.ceil(n / ALIGNMENT) * ALIGNMENT;

/** The records of the keys, the descriptions of the tensors without their places, and the bytes of each tensor. */
function parse(file) {
  let at = 8;
  const number = () => {
    const value = Number(file.readBigUInt64LE(at));
    at += 8;
    return value;
  };
  const skipText = () => {
    const length = number();
    at += length;
  };
  const skipValue = (kind) => {
    if (kind === STRING) skipText();
    else if (kind === ARRAY) {
      const inner = file.readUInt32LE(at);
      at += 4;
      const count = number();
      if (WIDTHS[inner] !== undefined) at += count * WIDTHS[inner];
      else for (let i = 0; i < count; i++) skipValue(inner);
    } else at += WIDTHS[kind];
  };
  const [tensorCount, keyCount] = [number(), number()];
  const keys = Array.from({ length: keyCount }, () => {
    const start = at;
    skipText();
    at += 4;
    skipValue(file.readUInt32LE(at - 4));
    return file.subarray(start, at);
  });
  const tensors = Array.from({ length: tensorCount }, () => {
    const start = at;
    skipText();
    at += 4 + 8 * file.readUInt32LE(at) + 4;
    const description = file.subarray(start, at);
    return { description, offset: number() };
  });
  const data = aligned(at);
  const ends = [...tensors.slice(1).map(({ offset }) => offset), file.length - data];
  return { keys, tensors: tensors.map(({ description, offset }, i) => ({ description, bytes: file.subarray(data + offset, data + ends[i]) })) };
}

/** A file with these keys and tensors; the first tensor begins `gap` bytes after its usual place. */
function write(keys, tensors, gap = 0) {
  const words = (...values) => Buffer.from(BigUint64Array.from(values.map(BigInt)).buffer);
  let offset = gap;
  const descriptions = tensors.map(({ description, bytes }) => {
    const place = words(offset);
    offset = aligned(offset + bytes.length);
    return Buffer.concat([description, place]);
  });
  const head = Buffer.concat([Buffer.from("GGUF"), Buffer.from([3, 0, 0, 0]), words(tensors.length, keys.length), ...keys, ...descriptions]);
  const filled = (bytes, length) => Buffer.concat([bytes, Buffer.alloc(length - bytes.length)]);
  return Buffer.concat([filled(head, aligned(head.length)), Buffer.alloc(gap), ...tensors.map(({ bytes }) => filled(bytes, aligned(bytes.length)))]);
}

function key(name, kind, value) {
  const bytes = Buffer.alloc(kind === U16 ? 2 : 4);
  if (kind === U16) bytes.writeUInt16LE(value);
  else bytes.writeInt32LE(value);
  const [length, type] = [Buffer.alloc(8), Buffer.from([kind, 0, 0, 0])];
  length.writeBigUInt64LE(BigInt(name.length));
  return Buffer.concat([length, Buffer.from(name), type, bytes]);
}

/** The files of a model in `count` parts, as llama.cpp's gguf-split makes them. */
export function split(file, count) {
  const { keys, tensors } = parse(file);
  const most = Math.ceil(tensors.length / count);
  return Array.from({ length: count }, (_, at) => {
    const own = [key("split.no", U16, at), key("split.count", U16, count), key("split.tensors.count", I32, tensors.length)];
    return write(at === 0 ? [...keys, ...own] : own, tensors.slice(at * most, (at + 1) * most));
  });
}

/** The same model in a file that is larger by `gap` bytes, a multiple of 32. */
export function spread(file, gap) {
  const { keys, tensors } = parse(file);
  return write(keys, tensors, gap);
}

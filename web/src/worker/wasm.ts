/** The engine's module in this worker, and files given to it. */

import init, * as loraine from "../../pkg/loraine.js";
import wasmUrl from "../../pkg/loraine_bg.wasm?url";

export { loraine };

/** The module, loaded once. */
let loading: Promise<unknown> | undefined;

export function ready(): Promise<unknown> {
  loading ??= init({ module_or_path: wasmUrl });
  return loading;
}

/** Gives the engine a file that it reads range by range; `onRead` hears how far each range reaches. */
export function mountFile(path: string, file: Blob, onRead: (end: number) => void = () => {}): void {
  const reader = new FileReaderSync();
  const read = (offset: number, length: number): Uint8Array => {
    onRead(offset + length);
    return new Uint8Array(reader.readAsArrayBuffer(file.slice(offset, offset + length)));
  };
  loraine.mountReader(path, file.size, read);
}

/** Gives the engine a file that stays in the page's memory, which shrinks again; the engine's own never does. */
export function mountHeld(path: string, bytes: Uint8Array<ArrayBuffer>): void {
  loraine.mountReader(path, bytes.byteLength, (offset, length) => bytes.subarray(offset, offset + length));
}

/** Unmounts what may be there. */
export function unmount(path: string): void {
  loraine.unmount(path);
}

/** SHA-256 of bytes that come in pieces, which the browser's own digest does not take. The algorithm: FIPS 180-4, section 6.2. */

const BLOCK = 64;

/** The first 32 bits of the fractional part of a root of a prime, by Newton's iteration on whole numbers. */
function fraction(prime: bigint, root: 2n | 3n): number {
  const scaled = prime << (32n * root);
  let guess = prime << 32n;
  for (;;) {
    const next = ((root - 1n) * guess + scaled / guess ** (root - 1n)) / root;
    if (next >= guess) return Number(BigInt.asIntN(32, guess));
    guess = next;
  }
}

function primes(count: number): bigint[] {
  const found: bigint[] = [];
  for (let candidate = 2n; found.length < count; candidate++) {
    if (found.every((prime) => candidate % prime !== 0n)) found.push(candidate);
  }
  return found;
}

const START = Int32Array.from(primes(8), (prime) => fraction(prime, 2n));
const ROUNDS = Int32Array.from(primes(64), (prime) => fraction(prime, 3n));

export class Sha256 {
  private readonly state = START.slice();
  private readonly words = new Int32Array(64);
  private readonly rest = new Uint8Array(BLOCK);
  private held = 0;
  private bytes = 0;

  update(bytes: Uint8Array): void {
    this.bytes += bytes.length;
    let at = 0;
    if (this.held > 0) {
      at = Math.min(BLOCK - this.held, bytes.length);
      this.rest.set(bytes.subarray(0, at), this.held);
      this.held += at;
      if (this.held < BLOCK) return;
      this.blocks(this.rest, 0);
    }
    at = this.blocks(bytes, at);
    this.rest.set(bytes.subarray(at));
    this.held = bytes.length - at;
  }

  /** The digest; nothing can be added after it. */
  hex(): string {
    const end = new Uint8Array(this.held < BLOCK - 8 ? BLOCK : 2 * BLOCK);
    end.set(this.rest.subarray(0, this.held));
    end[this.held] = 0x80;
    new DataView(end.buffer).setBigUint64(end.length - 8, 8n * BigInt(this.bytes));
    this.blocks(end, 0);
    return [...this.state].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  }

  /** Takes the whole blocks from `at` on, and answers with where they end. */
  private blocks(bytes: Uint8Array, at: number): number {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    let start = at;
    for (; start + BLOCK <= bytes.length; start += BLOCK) this.block(view, start);
    return start;
  }

  // Sums are cut to 32 bits as they are made, and nothing is allocated: a model has millions of blocks.
  private block(view: DataView, start: number): void {
    const { words: w, state } = this;
    for (let i = 0; i < 16; i++) w[i] = view.getInt32(start + 4 * i);
    for (let i = 16; i < 64; i++) {
      const x = w[i - 15] as number;
      const y = w[i - 2] as number;
      const low = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const high = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[i] = ((((w[i - 16] as number) + low) | 0) + (((w[i - 7] as number) + high) | 0)) | 0;
    }
    let a = state[0] as number;
    let b = state[1] as number;
    let c = state[2] as number;
    let d = state[3] as number;
    let e = state[4] as number;
    let f = state[5] as number;
    let g = state[6] as number;
    let h = state[7] as number;
    for (let i = 0; i < 64; i++) {
      const high = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const choice = ((e & f) ^ (~e & g)) | 0;
      const first = (((((h + high) | 0) + choice) | 0) + (((ROUNDS[i] as number) + (w[i] as number)) | 0)) | 0;
      const low = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const second = (low + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + first) | 0;
      d = c;
      c = b;
      b = a;
      a = (first + second) | 0;
    }
    state[0] = (state[0] as number) + a;
    state[1] = (state[1] as number) + b;
    state[2] = (state[2] as number) + c;
    state[3] = (state[3] as number) + d;
    state[4] = (state[4] as number) + e;
    state[5] = (state[5] as number) + f;
    state[6] = (state[6] as number) + g;
    state[7] = (state[7] as number) + h;
  }
}

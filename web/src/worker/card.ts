/** The part of a model card that says how the adapter was trained. */

interface Line {
  step?: number;
  loss?: number;
  eval_loss?: number;
}

/** Settings that a reader asks for first, by their keys in run.toml. */
const SHOWN = ["objective", "method", "quant", "rank", "alpha", "lr", "batch-size", "grad-accum", "max-seq-len", "seed"];

/** From the lines of `metrics.jsonl` and the text of `run.toml`. */
export function trainingPart(metrics: string, settings: string): string {
  const rows: [string, string][] = [];
  for (const key of SHOWN) {
    const value = new RegExp(`^${key} = (.+)$`, "m").exec(settings)?.[1];
    if (value !== undefined) rows.push([key, value.replace(/^"(.*)"$/, "$1")]);
  }
  const lines = metrics
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Line);
  const losses = lines.filter(({ loss }) => loss !== undefined);
  const evaluations = lines.filter(({ eval_loss }) => eval_loss !== undefined);
  const last = losses.at(-1);
  if (last !== undefined) rows.push(["steps", String(last.step)], ["loss of the last step", (last.loss as number).toFixed(4)]);
  const measured = evaluations.at(-1);
  if (measured !== undefined) rows.push(["validation loss", (measured.eval_loss as number).toFixed(4)]);
  if (rows.length === 0) return "\n";
  const table = rows.map(([name, value]) => `| ${name} | ${value} |`).join("\n");
  return `\n\n## Training\n\nIn a browser tab, with the page of loraine.\n\n| | |\n|---|---|\n${table}\n`;
}

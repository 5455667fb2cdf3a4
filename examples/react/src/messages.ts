/** What the page asks of its worker. */
export type Question = { type: "train" } | { type: "ask"; prompt: string };

/** What the worker tells. */
export type News =
  | { type: "loss"; step: number; steps: number; loss: number }
  | { type: "trained" }
  | { type: "answer"; base: string; adapted: string }
  | { type: "error"; message: string };

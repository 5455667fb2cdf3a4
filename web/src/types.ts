/** Shapes of what the engine takes and gives, from the package's own types. */

import type * as loraine from "../pkg/loraine";

export type {
  AdapterSummary,
  Answer,
  DataReport,
  Inspection,
  ModelSummary,
  ModuleUpdate,
  ShownExample,
  ShownToken,
  WeightBlock,
} from "../pkg/loraine";
export type RunEvent = loraine.RunEvent | PhaseEvent | { type: "warning"; message: string };
export type Outcome = loraine.RunOutcome & { warnings?: { message: string }[] };
export type Estimate = loraine.PlanReport;
export type Method = Exclude<loraine.Method, "full">;

type Filled<T, Keys extends keyof T> = T & { [Key in Keys]-?: NonNullable<T[Key]> };

/** How data become examples, with what `defaultSettings` fills in. */
export type DataFormat = Filled<loraine.DataSettings, "on-long" | "on-bad" | "packing">;

/** The settings of a run, with what `defaultSettings` fills in; keys that the page does not touch pass through. */
export type RunSettings = Filled<
  Omit<loraine.RunSettings, "data-format" | "method">,
  | "model"
  | "data"
  | "out"
  | "objective"
  | "quant"
  | "double-quant"
  | "rank"
  | "alpha"
  | "dropout"
  | "target-modules"
  | "batch-size"
  | "grad-accum"
  | "lr"
  | "schedule"
  | "optim"
  | "warmup-steps"
  | "weight-decay"
  | "seed"
> & { "data-format": DataFormat; method: Method };

type EventOf<Type> = Extract<loraine.RunEvent, { type: Type }>;
export type StepEvent = EventOf<"step">;
export type EvaluatedEvent = EventOf<"evaluated">;
export type PhaseEvent = { type: "phase"; phase: string; step?: number | undefined; done?: number | undefined; total?: number | undefined };

export type AnswerSettings = Required<Pick<loraine.AnswerSettings, "max_tokens" | "temperature" | "seed" | "raw">>;

/** Everything that can go wrong, as a sentence for the person at the page. */
export interface Failure {
  kind: loraine.LoraineError["kind"] | "storage" | "canceled" | "crash";
  message: string;
  path?: string;
  field?: string;
}

/** Preferences between answers, as the records that TRL trains on. */

export interface PreferredAnswer {
  prompt: string;
  /** The prompt is a text to go on with, not a turn of a conversation. */
  raw: boolean;
  chosen: string;
  rejected: string;
}

/** One JSON object to a line: `prompt`, `chosen` and `rejected` as lists of messages, or as strings where the prompt is raw text. */
export function toJsonl(preferences: PreferredAnswer[]): string {
  const turn = (role: string, content: string) => [{ role, content }];
  const record = ({ prompt, raw, chosen, rejected }: PreferredAnswer) =>
    raw
      ? { prompt, chosen, rejected }
      : {
          prompt: turn("user", prompt),
          chosen: turn("assistant", chosen.trim()),
          rejected: turn("assistant", rejected.trim()),
        };
  return preferences.map((preference) => `${JSON.stringify(record(preference))}\n`).join("");
}

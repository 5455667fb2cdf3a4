import { StrictMode, useEffect, useRef, useState } from "react";
import { createRoot } from "react-dom/client";
import type { News, Question } from "./messages";

type State = "idle" | "training" | "trained";

function App() {
  const worker = useRef<Worker | undefined>(undefined);
  const [state, setState] = useState<State>("idle");
  const [losses, setLosses] = useState<number[]>([]);
  const [prompt, setPrompt] = useState("What does a dog say?");
  const [answer, setAnswer] = useState<{ base: string; adapted: string }>();
  const [problem, setProblem] = useState("");

  useEffect(() => {
    const engine = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
    engine.onmessage = ({ data }: MessageEvent<News>) => {
      if (data.type === "loss") setLosses((before) => [...before, data.loss]);
      else if (data.type === "trained") setState("trained");
      else if (data.type === "answer") setAnswer(data);
      else setProblem(data.message);
    };
    worker.current = engine;
    return () => engine.terminate();
  }, []);

  const say = (question: Question) => worker.current?.postMessage(question);
  const train = () => {
    setState("training");
    setLosses([]);
    say({ type: "train" });
  };
  return (
    <main>
      <h1>Training with the loraine package in React</h1>
      <button type="button" disabled={state !== "idle"} onClick={train}>
        Train
      </button>
      <ol id="losses">
        {losses.map((loss, step) => (
          <li key={step}>{loss.toFixed(4)}</li>
        ))}
      </ol>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          say({ type: "ask", prompt });
        }}
      >
        <input aria-label="Prompt" value={prompt} onChange={(event) => setPrompt(event.target.value)} />
        <button type="submit" disabled={state !== "trained"}>
          Ask
        </button>
      </form>
      {answer !== undefined && (
        <dl>
          <dt>Base</dt>
          <dd>{answer.base}</dd>
          <dt>With the adapter</dt>
          <dd id="adapted">{answer.adapted}</dd>
        </dl>
      )}
      {problem !== "" && <p role="alert">{problem}</p>}
    </main>
  );
}

createRoot(document.getElementById("root") as HTMLElement).render(
  <StrictMode>
    <App />
  </StrictMode>,
);

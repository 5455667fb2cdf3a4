//! Distillation: losses and gradients against PyTorch's (`fixtures/distillation.py`), a teacher's file from end to end, runs that repeat
//! and resume, answers of a server, and what is refused.

use loraine::data::Example;
use loraine::data::batches::MicroBatch;
use loraine::model::config::ModelConfig;
use loraine::ops::distillation::Distillation;
use loraine::train::objective::Objective;
use serde_json::{Value, json};

use crate::common::cli::{Shell, copy_files};
use crate::common::*;

/// The sequences of the reference with the teacher's probabilities at a temperature.
fn student_batch(reference: &Reference, name: &str, temperature: f64) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for i in 0..2 {
        batch.add(&example(reference.ids(&format!("{name}.input_ids.{i}"))), false, [0.0; 2]);
        let (ids, logprobs) = (format!("{name}.token_ids.{i}"), format!("{name}.logprobs.{i}"));
        let top_k = reference.shape(&ids)[1];
        for (ids, logprobs) in reference.ids(&ids).chunks(top_k).zip(reference.get(&logprobs).chunks(top_k)) {
            let weights: Vec<f64> = logprobs.iter().map(|log| (f64::from(*log) / temperature).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut row: Vec<(u32, f64)> = ids.iter().copied().zip(weights).collect();
            row.sort_by_key(|(id, _)| *id);
            batch.teacher.ids.extend(row.iter().map(|(id, _)| *id));
            batch.teacher.probabilities.extend(row.iter().map(|(_, weight)| (weight / sum) as f32));
        }
    }
    batch
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let reference = Reference::read(&fixture("distillation.safetensors"));
    let settings = reference.get("cases");
    for name in ["llama_untied", "gemma2"] {
        let dir = fixture(name);
        let config = ModelConfig::from_dir(&dir).unwrap();
        let (modules, tensors) = adapter(&dir.join("adapter"), &config);
        for (case, of) in ["plain", "warm", "mixed"].into_iter().zip(settings.chunks(2)) {
            let (temperature, hard_label_share) = (of[0], of[1]);
            let distillation = Distillation { top_k: 5, temperature, hard_label_share };
            let mut engine = open_student(&dir, &modules, &tensors, 64, Some(distillation));
            engine.objective = Objective::Distill { hard_label_share: f64::from(hard_label_share) };
            let batch = student_batch(&reference, name, f64::from(temperature));
            pollster::block_on(engine.accumulate(std::slice::from_ref(&batch), 0)).unwrap();
            let gradients = pollster::block_on(engine.read_gradients()).unwrap();
            let prefix = format!("{name}.{case}.grad.");
            assert_factors(&format!("{name} {case}"), &gradients, &modules, &reference, &prefix, ".weight", 2e-4);
            let [loss, by_labels] = pollster::block_on(engine.both_losses(&batch)).unwrap();
            let expected = f64::from(reference.get(&format!("{name}.{case}.loss"))[0]);
            let found = loss / batch.labels.len() as f64;
            assert!((found / expected - 1.0).abs() < 1e-5, "{name} {case}: loss {found} instead of {expected}");
            // The other loss is that of plain fine-tuning.
            let mut plain = open_student(&dir, &modules, &tensors, 64, None);
            let (sum, _) = pollster::block_on(plain.evaluate([&batch])).unwrap();
            assert!((by_labels / sum - 1.0).abs() < 1e-5, "{name} {case}: {by_labels} instead of {sum}");
        }
    }
}

#[test]
fn a_teacher_that_is_certain_of_the_labels_teaches_them() {
    let dir = fixture("gemma2");
    let config = ModelConfig::from_dir(&dir).unwrap();
    let (modules, tensors) = adapter(&dir.join("adapter"), &config);
    let reference = Reference::read(&fixture("distillation.safetensors"));
    let sequences: Vec<Example> = (0..2).map(|i| example(reference.ids(&format!("gemma2.input_ids.{i}")))).collect();
    let mut batch = MicroBatch::from_examples(&sequences);
    let gradients = |distillation: Option<Distillation>, batch: &MicroBatch| {
        let mut engine = open_student(&dir, &modules, &tensors, 64, distillation);
        pollster::block_on(engine.accumulate(std::slice::from_ref(batch), 0)).unwrap();
        let gradients = pollster::block_on(engine.read_gradients()).unwrap();
        (gradients.values().flatten().copied().collect::<Vec<f32>>(), engine)
    };
    let (plain, mut engine) = gradients(None, &batch);
    let (loss, _) = pollster::block_on(engine.evaluate([&batch])).unwrap();
    batch.teacher.ids = batch.labels.clone();
    batch.teacher.probabilities = vec![1.0; batch.labels.len()];
    let certain = Distillation { top_k: 1, temperature: 1.0, hard_label_share: 0.0 };
    let (soft, mut engine) = gradients(Some(certain), &batch);
    assert_close("gradients", &soft, &plain, 1e-5);
    engine.objective = Objective::Distill { hard_label_share: 0.0 };
    let both = pollster::block_on(engine.both_losses(&batch)).unwrap();
    assert!(both.iter().all(|found| (found / loss - 1.0).abs() < 1e-6), "{both:?} instead of {loss}");
    // A micro-batch without its rows of the teacher is refused, not trained on zeros.
    batch.teacher.ids.pop();
    let problem = pollster::block_on(engine.accumulate(std::slice::from_ref(&batch), 0)).unwrap_err().to_string();
    assert!(problem.contains("tokens of the teacher"), "{problem}");
}

/// The demo's model, and the first conversations of its data.
fn demo(shell: &Shell, conversations: usize) {
    loraine::demo::write(&shell.path("demo")).unwrap();
    let text = String::from_utf8(shell.read("demo/data/train.jsonl")).unwrap();
    let lines = |skipped: usize, taken: usize| -> String {
        text.lines().skip(skipped).take(taken).map(|line| format!("{line}\n")).collect()
    };
    shell.write("train.jsonl", lines(0, conversations));
    shell.write("other.jsonl", lines(conversations, 4));
}

fn last_json(shown: &str) -> Value {
    serde_json::from_str(shown.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {shown}"))
}

#[test]
fn a_student_that_is_its_teacher_has_nothing_to_learn() {
    let shell = Shell::new();
    demo(&shell, 12);
    // The whole vocabulary, so that nothing is left out.
    let written = shell.succeed(
        "distill --model demo/model --data train.jsonl --out teacher.safetensors --top-k 1024 --batch-size 5 --json",
    );
    let written = last_json(&written);
    assert_eq!(written["examples"], 12, "{written}");
    let eval = |options: &str| {
        last_json(&shell.succeed(&format!("eval --model demo/model --data train.jsonl --json {options}")))
    };
    let number = |value: &Value, name: &str| value[name].as_f64().unwrap_or_else(|| panic!("no {name} in {value}"));
    let plain = eval("");
    for options in ["", "--temperature 2", "--hard-label-share 0.5"] {
        let found = eval(&format!("--objective distill --teacher teacher.safetensors {options}"));
        assert_eq!(found["tokens"], written["tokens"]);
        assert!((number(&found, "nll_loss") - number(&plain, "loss")).abs() < 1e-5, "{found} {plain}");
        assert!((number(&found, "perplexity") / number(&plain, "perplexity") - 1.0).abs() < 1e-5, "{found} {plain}");
        // The rest is that 16 bits round the log-probabilities.
        assert!(number(&found, "kd_loss").abs() < 1e-4, "{found}");
    }
}

#[test]
fn runs_repeat_and_resume_to_the_bit() {
    let shell = Shell::new();
    demo(&shell, 24);
    shell.succeed("distill --model demo/model --data train.jsonl --out teacher.safetensors --top-k 8 --quant nf4");
    let teach = "--objective distill --teacher teacher.safetensors";
    for (name, options) in [
        ("packed", "--packing --dropout 0.1 --recompute all --temperature 2 --hard-label-share 0.25"),
        ("plain", "--method lora --grad-accum 2 --batch-size 2"),
    ] {
        let command = format!(
            "train --model demo/model --data train.jsonl {teach} {options} --steps 4 --lr 0.001 --rank 4 --save-every 2 --keep 9 \
             --eval-every 2"
        );
        for out in ["whole", "again"] {
            shell.succeed(&format!("{command} --out {name}-{out}"));
        }
        let [whole, again, cut] = ["whole", "again", "cut"].map(|out| format!("{name}-{out}"));
        shell.assert_same_adapter(name, [&whole, &again]);
        copy_files(&shell.path(&whole), &shell.path(&cut));
        copy_files(
            &shell.path(&format!("{whole}/checkpoints/step-2")),
            &shell.path(&format!("{cut}/checkpoints/step-2")),
        );
        shell.succeed(&format!("{command} --out {cut} --resume"));
        shell.assert_same_adapter(name, [&whole, &cut]);
        assert_eq!(shell.timeless_metrics(&whole), shell.timeless_metrics(&cut), "{name}");
        let evaluations = shell.metrics(&whole).into_iter().filter(|line| line.get("eval_kd_loss").is_some());
        assert!(evaluations.count() >= 2);
        let colder = format!("{} --temperature 3", command.replace(" --temperature 2", ""));
        shell.fail(&format!("{colder} --out {cut} --resume"), &["temperature"]);
        // Other log-probabilities under the same name.
        shell.succeed("distill --model demo/model --data train.jsonl --out other.safetensors --top-k 4 --overwrite");
        shell.fail(
            &format!("{} --out {cut} --resume", command.replace("teacher.safetensors", "other.safetensors")),
            &["other log-probabilities", "other.safetensors"],
        );
    }
}

#[test]
fn what_cannot_teach_is_refused_by_name() {
    let shell = Shell::new();
    demo(&shell, 8);
    shell.succeed("distill --model demo/model --data train.jsonl --out teacher.safetensors --top-k 4");
    shell.fail(
        "distill --model demo/model --data train.jsonl --out teacher.safetensors",
        &["is there already", "--overwrite"],
    );
    shell
        .fail("distill --model demo/model --data train.jsonl --out x.safetensors --top-k 0", &["--top-k", "1 to 1024"]);
    shell.fail(
        "distill --model demo/model --data train.jsonl --out nowhere/x.safetensors",
        &["nowhere", "no directory"],
    );
    let train = "train --model demo/model --steps 1 --out run";
    for (options, says) in [
        ("--data train.jsonl --objective distill", &["--objective distill needs --teacher"][..]),
        ("--data train.jsonl --teacher teacher.safetensors", &["--teacher has no use", "--objective distill"]),
        ("--data train.jsonl --temperature 2", &["--temperature has no use"]),
        (
            "--data train.jsonl --objective distill --teacher teacher.safetensors --hard-label-share 1",
            &["hard-label-share"],
        ),
        (
            "--data other.jsonl --objective distill --teacher teacher.safetensors",
            &["teacher.safetensors", "example 1 of other.jsonl", "other data (train.jsonl)"],
        ),
        (
            "--data train.jsonl --objective distill --teacher teacher.safetensors --chat-template chatml",
            &["example 1 of train.jsonl", "another chat template", "--chat-template"],
        ),
        ("--data train.jsonl --objective distill --teacher train.jsonl", &["train.jsonl"]),
        ("--data train.jsonl --objective distill --teacher demo/model/model.safetensors", &["no file of a teacher"]),
    ] {
        shell.fail(&format!("{train} {options}"), says);
        assert!(shell.names("run").is_empty(), "{options}");
    }
    // A teacher with another vocabulary.
    let mut bytes = shell.read("teacher.safetensors");
    let mark = b"\"vocabulary\":\"";
    let at = bytes.windows(mark.len()).position(|part| part == mark).unwrap() + mark.len();
    bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    shell.write("foreign.safetensors", bytes);
    shell.fail(
        &format!("{train} --data train.jsonl --objective distill --teacher foreign.safetensors"),
        &["foreign.safetensors", "another vocabulary"],
    );
}

#[test]
fn several_gpus_share_a_student_and_long_examples_are_cut() {
    let shell = Shell::new();
    demo(&shell, 16);
    shell.succeed("distill --model demo/model --data train.jsonl --out teacher.safetensors --top-k 8");
    let train = |out: &str, options: &str| {
        shell.succeed(&format!(
            "train --model demo/model --data train.jsonl --objective distill --teacher teacher.safetensors --eval-fraction 0.25 \
             --eval-every 2 --batch-size 2 --lr 0.001 --steps 4 --out {out} {options}"
        ))
    };
    train("one", "--grad-accum 2");
    let gpus = crate::group::gpus(&shell, 2);
    train("two", &format!("--grad-accum 1 {gpus}"));
    crate::group::assert_same_numbers(&shell, ["one", "two"], 1e-5);
    // The rows of a cut example are those of the whole one.
    train("cut", "--max-seq-len 40 --on-long truncate");
}

/// Turns the log-probabilities of a teacher's file into answers as a server gives them.
#[test]
fn answers_of_a_server_give_the_same_tensors() {
    let shell = Shell::new();
    demo(&shell, 6);
    shell.succeed("distill --model demo/model --data train.jsonl --out teacher.safetensors --top-k 3");
    let file = Reference::read(&shell.path("teacher.safetensors"));
    let tokenizer = loraine::data::tokenizer::Tokenizer::from_tokenizer_dir(&shell.path("demo/model")).unwrap();
    let bytes = shell.read("teacher.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let offsets = |name: &str| -> Vec<usize> {
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as usize).collect()
    };
    let logprobs: Vec<f32> = tensors
        .tensor("logprobs")
        .unwrap()
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|b| half::f16::from_le_bytes(*b).to_f32())
        .collect();
    let (records, rows) = (offsets("record_offsets"), offsets("row_offsets"));
    let (ids, positions, tokens) = (file.ids("input_ids"), file.ids("positions"), file.ids("token_ids"));
    let spelled = |id: u32| tokenizer.token_bytes(id).unwrap();
    // As OpenAI with bytes, as llama.cpp with ids, and as vLLM with ids for tokens.
    let entry = |id: u32, logprob: f32, kind: usize| match kind {
        0 => json!({ "token": String::from_utf8_lossy(&spelled(id)), "bytes": spelled(id), "logprob": logprob }),
        1 => json!({ "id": id, "token": "?", "bytes": [63], "logprob": logprob }),
        _ => json!({ "token": format!("token_id:{id}"), "logprob": logprob }),
    };
    let text = String::from_utf8(shell.read("train.jsonl")).unwrap();
    let answers: Vec<Value> = text
        .lines()
        .enumerate()
        .map(|(record, line)| {
            let mut answer: Value = serde_json::from_str(line).unwrap();
            let of_row = |row: usize| {
                let own = ids[records[record] + positions[row] as usize];
                let at = 3 * row..3 * row + 3;
                let top: Vec<Value> = at.clone().map(|at| entry(tokens[at], logprobs[at], record % 3)).collect();
                let known = at.into_iter().find(|at| tokens[*at] == own).map_or(-9.0, |at| logprobs[at]);
                let mut whole = entry(own, known, record % 3);
                whole["top_logprobs"] = top.into();
                whole
            };
            // The token that ends the turn has none, as in OpenAI's answers.
            let count = rows[record + 1] - 1;
            answer["logprobs"] = json!({ "content": (rows[record]..count).map(of_row).collect::<Vec<_>>() });
            answer
        })
        .collect();
    let write =
        |name: &str, answers: &[Value]| shell.write(name, answers.iter().map(|a| format!("{a}\n")).collect::<String>());
    write("answers.jsonl", &answers);
    let distill = |data: &str| {
        format!("distill --from-logprobs --model demo/model --data {data} --out answers.safetensors --overwrite")
    };
    shell.succeed(&distill("answers.jsonl"));
    let own = Reference::read(&shell.path("answers.safetensors"));
    for name in ["input_ids", "positions"] {
        assert_eq!(own.ids(name), file.ids(name), "{name}");
    }
    let width = own.shape("token_ids")[1];
    let found = own.get("token_ids");
    for record in 0..6 {
        for row in rows[record]..rows[record + 1] - 1 {
            let same = (0..3).filter(|at| found[width * row + at] as u32 == tokens[3 * row + at]).count();
            assert!(
                same == 3 || found[width * row..width * row + width].contains(&(tokens[3 * row] as f32)),
                "row {row}"
            );
        }
        let last = rows[record + 1] - 1;
        let end = ids[records[record] + positions[last] as usize];
        assert_eq!(
            (found[width * last] as u32, found[width * last + 1]),
            (end, -1.0),
            "the end of the turn is certain"
        );
    }
    shell.succeed(
        "train --model demo/model --data answers.jsonl --objective distill --teacher answers.safetensors --steps 1 --out run",
    );
    let mut spoiled = answers.clone();
    let other = json!({ "token": "zzz", "bytes": null, "logprob": -0.5, "top_logprobs": [{ "token": "zzz", "logprob": -0.5 }] });
    spoiled[3]["logprobs"]["content"][2] = other;
    write("spoiled.jsonl", &spoiled);
    shell.fail(&distill("spoiled.jsonl"), &["spoiled.jsonl, line 4", "token 3", "zzz", "tokenized in another way"]);
    let mut short = answers.clone();
    short[1]["logprobs"]["content"].as_array_mut().unwrap().truncate(2);
    write("short.jsonl", &short);
    shell.fail(&distill("short.jsonl"), &["short.jsonl, line 2", "ends after 2 tokens"]);
    let mut bare = answers.clone();
    bare[0]["logprobs"] = Value::Null;
    write("bare.jsonl", &bare);
    shell.fail(&distill("bare.jsonl"), &["bare.jsonl, line 1", "has no `logprobs`"]);
    let mut alone = answers;
    alone[5]["logprobs"]["content"][0].as_object_mut().unwrap().remove("top_logprobs");
    write("alone.jsonl", &alone);
    shell.fail(&distill("alone.jsonl"), &["alone.jsonl, line 6", "token 1", "has no `top_logprobs`"]);
}

#[test]
fn a_student_learns_more_from_a_teacher_than_from_the_same_labels() {
    let shell = Shell::new();
    demo(&shell, 32);
    let train = "train --model demo/model --eval-data demo/data/valid.jsonl --batch-size 8 --lr 0.003 --rank 8";
    // The teacher has seen all conversations, its students 32 of them.
    shell.succeed(&format!("{train} --data demo/data/train.jsonl --steps 60 --out teacher"));
    shell.succeed(
        "distill --model demo/model --adapter teacher --quant nf4 --data train.jsonl --data demo/data/valid.jsonl --batch-size 8 --out \
         teacher.safetensors",
    );
    let student = format!("{train} --data train.jsonl --steps 40");
    shell.succeed(&format!("{student} --out labels"));
    shell.succeed(&format!(
        "{student} --out distilled --objective distill --teacher teacher.safetensors --temperature 2 --hard-label-share 0.25"
    ));
    let last = |run: &str, name: &str| {
        let mut evaluations = shell.metrics(run).into_iter().filter_map(|line| line.get(name).and_then(Value::as_f64));
        evaluations.next_back().unwrap_or_else(|| panic!("no {name} in {run}"))
    };
    let [teacher, labels] = ["teacher", "labels"].map(|run| last(run, "eval_loss"));
    let distilled = last("distilled", "eval_nll_loss");
    eprintln!("held-out loss: teacher {teacher:.4}, labels {labels:.4}, distilled {distilled:.4}");
    assert!(teacher < distilled && distilled < labels, "{teacher} {distilled} {labels}");
}

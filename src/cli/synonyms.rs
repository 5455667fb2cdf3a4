//! Names of settings in other programs (TRL, PEFT, MLX-LM, LLaMA-Factory, axolotl): as flags and as keys of a settings file. Those
//! that mean a setting of loraine are taken as it, and the others are answered with what there is instead.

use std::ffi::OsString;

use anyhow::{Result, bail, ensure};
use clap::{Arg, ArgAction, Command};
use loraine::data::settings::DataSettings;
use loraine::train::settings::SETTINGS;
use toml::{Table, Value};

use super::show::parse_bytes;

/// A foreign name and ours, in kebab-case. A command takes the first of ours that it has.
const SAME: &[(&str, &[&str])] = &[
    ("adapter-name-or-path", &["adapter", "init-adapter"]),
    ("adapter-path", &["adapter", "out"]),
    ("adam-epsilon", &["adam-eps"]),
    ("base-model", &["model"]),
    ("base-model-name-or-path", &["model"]),
    ("block-size", &["max-seq-len"]),
    ("cutoff-len", &["max-seq-len"]),
    ("dataset", &["data"]),
    ("dataset-path", &["data"]),
    ("dataset-text-field", &["text-field"]),
    ("early-stopping", &["early-stopping-patience"]),
    ("early-stopping-rounds", &["early-stopping-patience"]),
    ("eval-dataset", &["eval-data"]),
    ("eval-steps", &["eval-every"]),
    ("gradient-accumulation", &["grad-accum"]),
    ("gradient-accumulation-steps", &["grad-accum"]),
    ("grad-accumulation-steps", &["grad-accum"]),
    ("format", &["shape"]),
    ("grad-clip", &["max-grad-norm"]),
    ("ignore-chat-template", &["raw"]),
    ("iters", &["steps"]),
    ("iterations", &["steps"]),
    ("init-lora", &["init-lora-weights"]),
    ("keep-best", &["load-best-model-at-end"]),
    ("kto-chosen-weight", &["desirable-weight"]),
    ("kto-desirable-weight", &["desirable-weight"]),
    ("kto-rejected-weight", &["undesirable-weight"]),
    ("kto-undesirable-weight", &["undesirable-weight"]),
    ("learning-rate", &["lr"]),
    ("logging-steps", &["log-every"]),
    ("lora-alpha", &["alpha"]),
    ("lora-dropout", &["dropout"]),
    ("lora-r", &["rank"]),
    ("lora-rank", &["rank"]),
    ("lora-target", &["target-modules"]),
    ("lora-target-modules", &["target-modules"]),
    ("lr-scheduler", &["schedule"]),
    ("lr-scheduler-type", &["schedule"]),
    ("lr-schedule", &["schedule"]),
    ("max-length", &["max-seq-len", "max-context"]),
    ("max-new-tokens", &["max-tokens"]),
    ("max-seq-length", &["max-seq-len"]),
    ("max-sequence-length", &["max-seq-len"]),
    ("max-steps", &["steps"]),
    ("max-train-steps", &["steps"]),
    ("micro-batch-size", &["batch-size"]),
    ("model-id", &["model"]),
    ("model-name", &["model"]),
    ("model-name-or-path", &["model"]),
    ("model-path", &["model"]),
    ("num-epochs", &["epochs"]),
    ("num-iters", &["steps"]),
    ("num-train-epochs", &["epochs"]),
    ("optimizer", &["optim"]),
    ("output", &["out"]),
    ("output-dir", &["out"]),
    ("per-device-batch-size", &["batch-size"]),
    ("per-device-eval-batch-size", &["batch-size"]),
    ("per-device-train-batch-size", &["batch-size"]),
    ("pref-beta", &["beta"]),
    ("r", &["rank"]),
    ("resume-from-checkpoint", &["resume"]),
    ("rl", &["objective"]),
    ("rl-beta", &["beta"]),
    ("sample-packing", &["packing"]),
    ("save-path", &["out"]),
    ("save-steps", &["save-every"]),
    ("save-total-limit", &["keep"]),
    ("sequence-len", &["max-seq-len"]),
    ("sequence-length", &["max-seq-len"]),
    ("stage", &["objective"]),
    ("steps-per-eval", &["eval-every"]),
    ("steps-per-report", &["log-every"]),
    ("stop-sequence", &["stop"]),
    ("stop-sequences", &["stop"]),
    ("system-prompt", &["system"]),
    ("temp", &["temperature"]),
    ("template", &["chat-template"]),
    ("train-data", &["data"]),
    ("train-file", &["data"]),
    ("train-mode", &["objective"]),
    ("dora", &["use-dora"]),
    ("use-rslora", &["rslora"]),
    ("val-data", &["eval-data"]),
    ("val-set-size", &["eval-fraction"]),
    ("val-size", &["eval-fraction"]),
    ("validation-file", &["eval-data"]),
    ("warmup", &["warmup-steps"]),
];

/// A foreign name without a setting that means it, and what there is instead.
const OTHERS: &[(&str, &str)] = &[
    ("bf16", "loraine computes in f32; --activations bf16 keeps activations in 16 bits"),
    ("bnb-4bit-compute-dtype", "loraine computes in f32"),
    ("bnb-4bit-quant-type", "--quant names the 4-bit code, nf4 or fp4"),
    ("bnb-4bit-use-double-quant", "double quantization is on; --no-double-quant turns it off"),
    (
        "completion-only-loss",
        "--train-on completion trains on completions only, which is the default for prompts with completions",
    ),
    (
        "assistant-only-loss",
        "--train-on assistant trains on assistant turns only, which is the default for conversations",
    ),
    ("ddp", "loraine trains on one GPU"),
    ("deepspeed", "loraine trains on one GPU"),
    ("do-train", "`loraine train` trains without it"),
    ("do-eval", "--eval-data or --eval-fraction gives validation data"),
    ("fine-tune-type", "--method is qlora, lora or full"),
    ("finetuning-type", "--method is qlora, lora or full"),
    ("flash-attn", "attention needs no flag: no matrix of scores is ever stored"),
    ("fp16", "loraine computes in f32; --activations bf16 keeps activations in 16 bits"),
    ("fsdp", "loraine trains on one GPU"),
    (
        "grad-checkpoint",
        "--recompute all recomputes activations in the backward pass; auto does it where memory needs it",
    ),
    (
        "gradient-checkpointing",
        "--recompute all recomputes activations in the backward pass; auto does it where memory needs it",
    ),
    ("load-in-4bit", "--method qlora, the default, holds the base in 4 bits while training, and --quant nf4 elsewhere"),
    ("loss-type", "--objective names the loss: dpo, which is TRL's sigmoid, rpo, ipo, orpo, simpo or kto"),
    ("pref-loss", "--objective names the loss: dpo, which is the sigmoid, rpo, ipo, orpo, simpo or kto"),
    ("load-in-8bit", "there is no 8-bit base; --method qlora takes 4 bits and --method lora 16"),
    ("lora-layers", "--layers-to-transform names the layers that get an adapter, such as 8-15; the default is all"),
    ("lora-target-linear", "--target-modules all-linear is the default"),
    ("mask-prompt", "prompts are masked by default; --train-on chooses the trained tokens"),
    ("metric-for-best-model", "--load-best-model-at-end goes by the evaluation loss"),
    (
        "min-lr",
        "--min-lr-ratio is the share of --lr at the end of --schedule cosine, warmup-stable-decay and polynomial",
    ),
    ("num-layers", "--layers-to-transform names the layers that get an adapter, such as 8-15; the default is all"),
    ("push-to-hub", "there is no upload; `hf upload` takes the adapter's directory"),
    ("quantization-bit", "--method qlora, the default, holds the base in 4 bits"),
    ("report-to", "--tensorboard writes TensorBoard files, and metrics.jsonl is always written"),
    ("resume-adapter-file", "--init-adapter starts from an adapter's directory"),
    ("save-strategy", "--save-every saves after a number of steps"),
    ("eval-strategy", "--eval-every evaluates after a number of steps"),
    ("evaluation-strategy", "--eval-every evaluates after a number of steps"),
    ("tokenizer", "the tokenizer is that of the model"),
    ("torch-dtype", "weights are read in the type of their files; --quant nf4 holds them in 4 bits"),
    ("train", "`loraine train` trains without it"),
    ("trust-remote-code", "loraine runs no code of a model"),
    (
        "wandb-project",
        "there is no Weights & Biases; --tensorboard writes TensorBoard files, and metrics.jsonl is always written",
    ),
];

/// Ours for a foreign name, among the names that `has` knows.
fn ours(name: &str, has: impl Fn(&str) -> bool) -> Option<&'static str> {
    let (_, candidates) = SAME.iter().find(|(foreign, _)| *foreign == name)?;
    candidates.iter().copied().find(|candidate| has(candidate))
}

/// What there is instead of a foreign name.
fn instead(name: &str) -> Option<&'static str> {
    OTHERS.iter().find(|(foreign, _)| *foreign == name).map(|(_, sentence)| *sentence)
}

/// Replaces foreign flags in a command line, and underscores in the names of flags. `command` is the whole program.
///
/// # Errors
/// A flag of another program that has no counterpart; the error says what there is instead.
pub fn flags(args: impl IntoIterator<Item = OsString>, command: &Command) -> Result<Vec<OsString>> {
    let mut args = args.into_iter().peekable();
    let mut translated: Vec<OsString> = args.by_ref().take(2).collect();
    let name = translated.get(1).and_then(|name| name.to_str()).unwrap_or_default();
    let Some(command) = command.find_subcommand(name) else {
        translated.extend(args);
        return Ok(translated);
    };
    let is_named = |arg: &&Arg, name: &str| {
        arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
    };
    let find = |name: &str| command.get_arguments().find(|arg| is_named(arg, name));
    let has = |name: &str| find(name).is_some() || matches!(name, "help" | "version");
    while let Some(arg) = args.next() {
        let flag = arg.to_str().and_then(|text| text.strip_prefix("--")).filter(|text| !text.is_empty());
        let Some(flag) = flag else {
            translated.push(arg);
            continue;
        };
        let (given, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
        let plain = given.replace('_', "-");
        let name = if has(&plain) { plain.as_str() } else { ours(&plain, has).unwrap_or(plain.as_str()) };
        if !has(name) {
            if let Some(sentence) = instead(&plain) {
                bail!("--{given} is not a flag of `loraine {}`: {sentence}", command.get_name());
            }
            translated.push(arg);
            continue;
        }
        let switch = find(name).is_some_and(|arg| matches!(arg.get_action(), ArgAction::SetTrue));
        if switch {
            let truth = |text: &str| text.to_lowercase().parse::<bool>().ok();
            let next = || args.peek().and_then(|next| truth(next.to_str()?));
            let said = value.as_deref().map_or_else(next, truth);
            if value.is_none() && said.is_some() {
                args.next();
            }
            if said != Some(false) {
                translated.push(format!("--{name}").into());
            }
            continue;
        }
        let value = match name {
            "target-modules" | "exclude-modules" => Some(modules(value, &mut args)),
            _ => value,
        };
        translated.push(value.map_or_else(|| format!("--{name}"), |value| format!("--{name}={value}")).into());
    }
    Ok(translated)
}

/// Joins the names after a flag that other programs take as a list.
fn modules(first: Option<String>, args: &mut std::iter::Peekable<impl Iterator<Item = OsString>>) -> String {
    let mut names: Vec<String> = first.into_iter().collect();
    while let Some(name) = args.next_if(|arg| arg.to_str().is_some_and(|text| !text.starts_with('-'))) {
        names.extend(name.into_string());
    }
    let joined = names.join(",");
    if joined == "all" { "all-linear".to_owned() } else { joined }
}

/// Replaces foreign keys in the table of a settings file, and underscores in keys.
///
/// # Errors
/// A setting that is given twice, or one of another program that has no counterpart.
pub fn keys(table: Table) -> Result<Table> {
    let of_data = serde_json::to_value(data_keys()).unwrap_or_default();
    let is_run = |key: &str| SETTINGS.iter().any(|setting| setting.key.0 == key);
    let is_data = |key: &str| of_data.get(key).is_some();
    let (mut run, mut data) = (Table::new(), Table::new());
    for (given, value) in table {
        let plain = given.replace('_', "-");
        let has = |key: &str| is_run(key) || is_data(key);
        let key = if has(&plain) { plain.as_str() } else { ours(&plain, has).unwrap_or(plain.as_str()) };
        if !has(key)
            && let Some(sentence) = instead(&plain)
        {
            bail!("`{given}` is not a setting of loraine: {sentence}");
        }
        let value = in_our_form(key, value)?;
        let to = if is_data(key) && !is_run(key) { &mut data } else { &mut run };
        ensure!(to.insert(key.to_owned(), value).is_none(), "`{key}` is given twice, once as `{given}`");
    }
    if !data.is_empty() {
        let nested = run.entry("data-format").or_insert_with(|| Value::Table(Table::new()));
        for (key, value) in data {
            let twice = nested.as_table_mut().and_then(|nested| nested.insert(key.clone(), value)).is_some();
            ensure!(!twice, "`{key}` is given twice, at the top and in `data-format`");
        }
    }
    Ok(run)
}

/// Settings of the data with a value in each field, so that every key shows.
fn data_keys() -> DataSettings {
    let text = Some(String::new());
    DataSettings {
        text_field: text.clone(),
        prompt_field: text.clone(),
        completion_field: text.clone(),
        messages_field: text.clone(),
        chat_template: text,
        ..DataSettings::default()
    }
}

/// Sizes may have units, as on the command line, and lists of modules may be lists.
fn in_our_form(key: &str, value: Value) -> Result<Value> {
    match (key, value) {
        ("gpu-memory", Value::String(size)) => bytes(&size),
        ("gpu-memory", Value::Integer(size)) => bytes(&size.to_string()),
        ("gpu-memory", Value::Float(size)) => bytes(&size.to_string()),
        ("target-modules", Value::Array(names)) => {
            let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
            let names = names.ok_or_else(|| anyhow::anyhow!("`{key}`: a list of names is wanted"))?;
            Ok(Value::String(names.join(",")))
        }
        ("target-modules", Value::String(all)) if all == "all" => Ok(Value::String("all-linear".to_owned())),
        (_, value) => Ok(value),
    }
}

fn bytes(size: &str) -> Result<Value> {
    let bytes = parse_bytes(size).map_err(|problem| anyhow::anyhow!("`gpu-memory` is {size}: {problem}"))?;
    Ok(Value::Integer(i64::try_from(bytes).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn translated(line: &str) -> Result<String> {
        let words = line.split(' ').map(OsString::from);
        let words = flags(words, &Cli::command())?;
        Ok(words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn flags_of_other_programs_become_ours() {
        for (given, ours) in [
            ("loraine train --learning_rate 1e-4 --lora-r=8", "loraine train --lr 1e-4 --rank=8"),
            (
                "loraine train --per-device-train-batch-size 2 --max_length 64",
                "loraine train --batch-size 2 --max-seq-len 64",
            ),
            ("loraine train --adapter-path run --iters 3", "loraine train --out run --steps 3"),
            ("loraine generate --adapter-path run --max-new-tokens 3", "loraine generate --adapter run --max-tokens 3"),
            ("loraine train --packing True --rslora false --batch_size 1", "loraine train --packing --batch-size 1"),
            (
                "loraine train --target-modules q_proj v_proj --rank 2",
                "loraine train --target-modules=q_proj,v_proj --rank 2",
            ),
            ("loraine train --lora_target all", "loraine train --target-modules=all-linear"),
            (
                "loraine train --early_stopping_patience 3 --load_best_model_at_end true",
                "loraine train --early-stopping-patience 3 --load-best-model-at-end",
            ),
            ("loraine train --stage dpo --pref_beta 0.2", "loraine train --objective dpo --beta 0.2"),
            ("loraine train --rl kto --kto_desirable_weight 2", "loraine train --objective kto --desirable-weight 2"),
            ("loraine train --early-stopping 3", "loraine train --early-stopping-patience 3"),
            ("loraine train --data a_b --no-shuffle", "loraine train --data a_b --no-shuffle"),
            ("loraine generate --prompt a --rank 2", "loraine generate --prompt a --rank 2"),
            ("loraine", "loraine"),
        ] {
            assert_eq!(translated(given).unwrap(), ours);
        }
    }

    #[test]
    fn a_flag_without_a_counterpart_is_answered() {
        for (flag, says) in [
            ("report-to wandb", "--tensorboard"),
            ("loss_type sigmoid", "--objective"),
            ("lora_layers 8", "--layers-to-transform"),
            ("push_to_hub", "no upload"),
            ("load-in-4bit", "--method qlora"),
            ("gradient_checkpointing", "--recompute all"),
        ] {
            let problem = translated(&format!("loraine train --{flag}")).unwrap_err().to_string();
            assert!(problem.contains(says) && problem.contains("loraine train"), "{problem}");
        }
    }

    #[test]
    fn every_counterpart_is_a_flag() {
        let program = Cli::command();
        let flags: Vec<&str> =
            program.get_subcommands().flat_map(|sub| sub.get_arguments().filter_map(|arg| arg.get_long())).collect();
        for (foreign, ours) in SAME {
            assert!(ours.iter().all(|flag| flags.contains(flag)), "{foreign}: {ours:?}");
        }
        for (_, sentence) in OTHERS {
            for flag in sentence.split("--").skip(1) {
                let flag = flag.split([' ', ',', ';', '.']).next().unwrap();
                assert!(flags.contains(&flag), "--{flag}");
            }
        }
    }

    #[test]
    fn keys_of_other_programs_become_ours() {
        let table = |text: &str| toml::from_str::<Table>(text).unwrap();
        let given = table(
            "learning_rate = 1e-4\nnum_train_epochs = 2\nlora_target_modules = ['q_proj', 'v_proj']\ngpu_memory = '12GB'\n\
             chat_template = 'chatml'\npacking = true",
        );
        let ours = table(
            "lr = 1e-4\nepochs = 2\ntarget-modules = 'q_proj,v_proj'\ngpu-memory = 12000000000\n\
             data-format = { chat-template = 'chatml', packing = true }",
        );
        assert_eq!(keys(given).unwrap(), ours);
        assert_eq!(keys(table("gpu-memory = 12")).unwrap(), table("gpu-memory = 12000000000"));
        assert_eq!(keys(table("rnak = 3")).unwrap(), table("rnak = 3"));
        for (text, says) in [
            ("lr = 1\nlearning_rate = 2", "`lr` is given twice"),
            ("load_in_4bit = true", "--method qlora"),
            ("packing = true\ndata-format = { packing = true }", "`packing` is given twice"),
        ] {
            let problem = keys(table(text)).unwrap_err().to_string();
            assert!(problem.contains(says), "{problem}");
        }
    }
}

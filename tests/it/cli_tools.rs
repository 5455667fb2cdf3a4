//! `info`, `cache`, `bench` and `doctor` as a user types them.

use std::process::Command;

fn loraine(args: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_loraine")).args(args).output().expect("the program runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn info_lists_adapters_and_describes_a_model() {
    let (fine, text, _) = loraine(&["info", "--json", "--model", &fixture("grouped8")]);
    assert!(fine);
    let info: serde_json::Value = serde_json::from_str(&text).expect("one JSON object");
    assert!(info["gpus"].as_array().is_some_and(|gpus| !gpus.is_empty()));
    assert_eq!(info["model"]["heads"], 16);
    assert_eq!(info["model"]["kv_heads"], 2);
    let (fine, text, _) = loraine(&["info"]);
    assert!(fine && text.contains("  (default)") && text.contains("limits"), "{text}");
    let (fine, _, error) = loraine(&["info", "--model", "/nowhere"]);
    assert!(!fine && error.contains("/nowhere: does not exist") && !error.contains("panicked"), "{error}");
}

#[test]
fn the_cache_is_shown_and_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("cache");
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loraine"));
        let output = command.args(args).env("LORAINE_CACHE", &place).output().expect("the program runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let shown = run(&["cache"]);
    assert!(shown.contains(&place.display().to_string()) && shown.contains("0 4-bit copies"), "{shown}");
    std::fs::create_dir(&place).unwrap();
    let identity = serde_json::json!({
        "files": [["/models/large/model.safetensors", 1, "1"]],
        "storage": "nf4",
        "tensors": ["model.embed_tokens.weight"],
    });
    let mut copy = format!("{identity}\n").into_bytes();
    copy.resize(2_000_000, 0xff);
    std::fs::write(place.join("0123456789abcdef.4bit"), copy).unwrap();
    std::fs::write(place.join("fedcba9876543210.4bit"), vec![b'['; 1_000_000]).unwrap();
    std::fs::write(place.join("kernels-01234567.json"), "{}").unwrap();
    std::fs::write(place.join("mine.txt"), "not the cache's").unwrap();
    let shown = run(&["cache"]);
    for part in [
        "2 4-bit copies (3.00 MB) and 1 file of tuning results",
        "2.00 MB  used just now       /models/large  --quant nf4 --no-double-quant --quantize-embedding",
        "of an unknown model",
    ] {
        assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
    let info: serde_json::Value = serde_json::from_str(&run(&["info", "--json"])).unwrap();
    assert_eq!((&info["cache"]["bytes"], &info["cache"]["copies"]), (&3_000_000.into(), &2.into()));
    assert!(run(&["info"]).contains("3.00 MB in 2 4-bit copies"));
    let report: serde_json::Value = serde_json::from_str(&run(&["cache", "--json"])).unwrap();
    assert_eq!(report["copies"].as_array().map(Vec::len), Some(2), "{report}");
    let shown = run(&["cache", "--clear"]);
    assert!(shown.contains("removed 2 4-bit copies (3.00 MB) and 1 file of tuning results"), "{shown}");
    let left: Vec<_> = std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["mine.txt"]);
    let (fine, _, error) = loraine(&["eval", "--cache-size", "many", "--model", "m", "--data", "d"]);
    assert!(!fine && error.contains("--cache-size") && error.contains("12GB"), "{error}");
}

#[test]
fn bench_measures_ceilings_operations_and_steps() {
    let (fine, text, error) = loraine(&["bench", "--quick", "--json"]);
    assert!(fine, "{error}");
    let report: serde_json::Value = serde_json::from_str(&text).expect("one JSON object");
    assert!(report["ceilings"]["fma_gflops"].as_f64().is_some_and(|gflops| gflops > 0.1));
    for part in ["operations", "steps"] {
        let entries = report[part].as_array().expect("a list");
        assert!(!entries.is_empty());
        assert!(entries.iter().all(|e| e["share_of_ceiling"].as_f64().is_some_and(|share| share > 0.0)), "{entries:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("no_result.json");
    std::fs::write(&file, "{}").unwrap();
    let (fine, _, error) = loraine(&["bench", "--compare", file.to_str().unwrap()]);
    assert!(!fine && error.contains("is no bench result"), "{error}");
    let (fine, _, error) = loraine(&["bench", "--shape", "gpt-9"]);
    assert!(!fine && error.contains("stories15m"), "{error}");
}

#[test]
fn an_estimate_is_what_a_run_takes() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("data.jsonl"), dir.path().join("run"));
    let ids: Vec<u32> = (1..=32).collect();
    std::fs::write(&data, format!("{{\"input_ids\": {ids:?}}}\n").repeat(4)).unwrap();
    let [data, out] = [&data, &out].map(|path| path.to_str().unwrap());
    let model = fixture("qwen3");
    for method in ["qlora", "lora", "full"] {
        let sizes = ["--model", &model, "--method", method];
        let estimate = [&["estimate", "--json", "--gpu", "0", "--max-seq-len", "32"], &sizes[..]].concat();
        let (fine, text, error) = loraine(&estimate);
        assert!(fine, "{error}");
        let estimate: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let train = [&["train", "--overwrite", "--gpu", "0", "--data", data, "--out", out], &sizes[..]].concat();
        let (fine, _, error) = loraine(&train);
        assert!(fine, "{error}");
        let metrics = std::fs::read_to_string(format!("{out}/metrics.jsonl")).unwrap();
        let metrics: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
        assert_eq!(estimate[0]["gpu_bytes"], metrics["gpu_bytes"], "{method}");
    }
    let (fine, text, _) = loraine(&["estimate", "--model", "llama-2-7b", "--batch-size", "1", "--gpu-memory", "12GB"]);
    assert!(fine && text.contains("fits into 12.0 GB") && text.contains("[WWW"), "{text}");
    let picture = dir.path().join("memory.svg");
    let drawn = ["estimate", "--model", "llama-3.2-1b", "--gpu-memory", "12GB", "--svg", picture.to_str().unwrap()];
    let (fine, text, error) = loraine(&drawn);
    assert!(fine && text.contains("full, f32") && text.contains("QLoRA"), "{text}{error}");
    assert!(std::fs::read_to_string(&picture).unwrap().contains("LoRA, 16-bit base: "));
    let total = |matrix_units: &str| {
        let command = ["estimate", "--model", "smollm2-135m", "--method", "qlora", "--json", "--matrix-units"];
        let (fine, text, error) = loraine(&[&command[..], &[matrix_units]].concat());
        assert!(fine, "{error}");
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")[0]["gpu_bytes"].as_u64().expect("bytes")
    };
    // Room for rows in f16, at least those of gate's and up's gradients together.
    assert!(total("on") >= total("off") + 2048 * 2 * (2 * 1536));
    let (fine, text, _) = loraine(&["estimate", "--gpu-memory", "12GB"]);
    assert!(fine && text.lines().count() == 2 + loraine::model::shapes::names().count(), "{text}");
    let (fine, _, error) = loraine(&["estimate", "--model", "gpt-9"]);
    assert!(!fine && error.contains("llama-2-7b") && !error.contains("panicked"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_an_error_and_a_closed_pipe_is_none() {
    use std::process::Stdio;
    let model = fixture("llama_tied");
    for args in [&["info", "--json"][..], &["info"], &["estimate", "--model", &model], &["completions", "bash"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_loraine"))
            .args(args)
            .stdout(full)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let problems = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {problems}");
        assert!(problems.contains("standard output cannot be written: No space left"), "{args:?}: {problems}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_loraine"));
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
    }
}

#[test]
fn texts_of_files_cannot_control_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(format!("{}/config.json", fixture("llama_tied"))).unwrap();
    let hostile = config.replace("\"llama\"", "\"\\u001b]0;owned\\u0007\"");
    assert_ne!(config, hostile);
    std::fs::write(dir.path().join("config.json"), hostile).unwrap();
    let (fine, text, error) = loraine(&["info", "--model", dir.path().to_str().unwrap()]);
    assert!(!fine && error.contains("\\u{1b}]0;owned\\u{7}"), "{text}{error}");
    assert!(!error.contains(['\u{1b}', '\u{7}']), "{error:?}");
}

#[test]
fn the_doctor_checks_every_kernel_and_writes_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.json");
    let model = fixture("grouped8");
    let (fine, text, error) = loraine(&["doctor", "--quick", "--model", &model, "--json", file.to_str().unwrap()]);
    assert!(fine && error.contains("checking attention backward"), "{error}");
    for part in ["ceilings", "attention backward", "right", "AdamW", "no fault"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).expect("one JSON object");
    assert!(report["adapter"]["driver"].is_string() && report["ceilings"]["copy_gb_per_s"].is_number(), "{report}");
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() > 30, "{report}");
    for check in checks {
        let (error, bound) = (check["error"].as_f64(), check["bound"].as_f64());
        assert!(check["outcome"] == "right" && error <= bound && check["ms"].as_f64() > Some(0.0), "{check}");
        assert!(check["kernels"][0].is_string() && check["share_of_ceiling"].is_number(), "{check}");
    }
    let (fine, _, error) = loraine(&["doctor", "--model", "gpt-9"]);
    assert!(!fine && error.contains("gpt-9"), "{error}");
}

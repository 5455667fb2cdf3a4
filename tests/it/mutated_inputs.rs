//! Random mutations of every kind of file that the program reads, each given to the program itself: it ends within bounds of time and
//! memory, without a panic or an abort, and what it refuses it refuses in one sentence. `LORAINE_SOAK` is the factor.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::common::cli::{Shell, copy_files};
use crate::common::{fixture, soak};
use crate::damaged_files::damaged;
use loraine::random::{Stream, bits};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Mutations of each file; `LORAINE_SOAK=65` gives 10,000 and more.
const MUTATIONS: u64 = 6;
const LONGEST: Duration = Duration::from_secs(20);
const MOST_BYTES: u64 = 1 << 30;

/// A file, and the command that reads it.
struct Input {
    file: String,
    command: String,
}

/// The end of a program: its status, its time, and the most memory that it had, in bytes.
struct End {
    status: ExitStatus,
    time: Duration,
    peak: u64,
}

/// Waits for a process, which is killed after [`LONGEST`].
fn end_of(child: &Child) -> End {
    let started = Instant::now();
    let process = child.id().cast_signed();
    loop {
        let mut status = 0;
        // SAFETY: both structures live as long as the call, and any bytes make the second one valid.
        #[expect(unsafe_code, reason = "the standard library does not tell a child's memory")]
        let (ended, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::wait4(process, &raw mut status, libc::WNOHANG, &raw mut usage), usage)
        };
        assert!(ended >= 0, "the program is no child of the test");
        if ended == process {
            let peak = u64::try_from(usage.ru_maxrss).unwrap_or(0) << 10;
            return End { status: ExitStatus::from_raw(status), time: started.elapsed(), peak };
        }
        if started.elapsed() > LONGEST {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Other bytes in place of `good`, `seed` saying which: up to three small damages, or one large one.
fn mutated(good: &[u8], seed: u64) -> Vec<u8> {
    let draw = |index| bits(seed, Stream::Sampling, 10, index);
    let at = draw(0) as usize % good.len();
    let length = 1 + draw(1) as usize % (good.len() - at).min(4096);
    let with = |middle: Vec<u8>| [&good[..at], &middle, &good[at..]].concat();
    match draw(2) % 12 {
        0 => [&good[..at], &vec![0; length], &good[at + length..]].concat(),
        1 => [&good[..at], &good[at + length..]].concat(),
        2 => with(good[at..at + length].repeat(1 + draw(3) as usize % 200)),
        3 => with([&b"["[..], b"{\"a\":", b"(", b"{{"][draw(3) as usize % 4].repeat(20_000)),
        4 => with((0..length as u64).map(|i| draw(8 + i) as u8).collect()),
        5 => {
            let to = draw(3) as usize % good.len();
            with(good[to..(to + length).min(good.len())].to_vec())
        }
        // A length or an offset of a binary file.
        6 => {
            let mut bytes = good.to_vec();
            let end = (at + 8).min(bytes.len());
            bytes[at..end].fill([0, 0xff, 0x7f, 0x80][draw(3) as usize % 4]);
            bytes
        }
        _ => (0..1 + draw(3) % 3).fold(good.to_vec(), |bytes, i| {
            // A file that was cut to nothing stays so.
            if bytes.is_empty() { bytes } else { damaged(&bytes, bytes.len(), draw(4 + i)) }
        }),
    }
}

/// A file of a SentencePiece model in BPE with a few pieces.
fn sentencepiece() -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8], bytes].concat();
    let pieces =
        [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("ab", 1), ("abc", 1), ("\u{2581}", 1), ("a", 1), ("b", 1), ("c", 1)];
    let mut model = Vec::new();
    for (rank, (text, kind)) in pieces.into_iter().enumerate() {
        let score = [&[2 << 3 | 5][..], &(-(rank as f32)).to_le_bytes()].concat();
        model.extend(field(1, &[field(1, text.as_bytes()), score, vec![3 << 3, kind]].concat()));
    }
    model.extend(field(2, &[3 << 3, 2]));
    model.extend(field(3, &[4 << 3, 0]));
    model
}

fn packed_with_gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn packed_with_zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn zip_of(dir: &Path) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        zip.start_file(format!("mine/{name}"), SimpleFileOptions::default()).unwrap();
        zip.write_all(&std::fs::read(dir.join(name)).unwrap()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Everything that the program reads, in a directory.
fn prepare(shell: &Shell) -> Vec<Input> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/model");
    copy_files(&demo, &shell.path("demo"));
    copy_files(&demo, &shell.path("pieces"));
    std::fs::remove_file(shell.path("pieces/tokenizer.json")).unwrap();
    shell.write("pieces/tokenizer.model", sentencepiece());
    shell.write("pieces/tokenizer_config.json", "{}");
    copy_files(&fixture("llama_tied"), &shell.path("tied"));
    copy_files(&fixture("llama_untied"), &shell.path("sharded"));
    copy_files(&fixture("llama_tied/adapter_rank_pattern"), &shell.path("adapter"));
    copy_files(&fixture("parquet"), &shell.path("parquet"));
    shell.write("adapter.zip", zip_of(&shell.path("adapter")));
    shell.write("template.jinja", include_str!("../../src/data/templates/chatml.jinja"));
    let chats = std::fs::read(fixture("conversations.jsonl")).unwrap();
    let records = "{\"text\": \"abc ab c\"}\n{\"prompt\": \"a b\", \"completion\": \"c\"}\n";
    shell.write("chats.jsonl", &chats);
    shell.write("records.jsonl", records);
    shell.write("records.json", r#"[{"text": "abc"}, {"text": "a"}]"#);
    shell.write("records.csv", "prompt,completion\n\"a, b\",c\nabc,\"d\"\n");
    shell.write("records.tsv", "prompt\tcompletion\na b\tc\n");
    shell.write("text.txt", "once upon a time\n".repeat(20));
    shell.write("chats.jsonl.gz", packed_with_gzip(&chats));
    shell.write("chats.jsonl.zst", packed_with_zstd(&chats));
    shell.write("run.toml", "model = \"demo\"\ndata = \"records.jsonl\"\nout = \"run\"\nrank = 4\nlr = 1e-3\n");
    shell.succeed("train --model demo --data records.jsonl --steps 1 --rank 2 --max-seq-len 32 --out once");
    shell.succeed("merge --gguf --model demo --adapter once --out demo.gguf");
    let inspect = |model: &str, data: &str| format!("inspect --model {model} --data {data}");
    let chat = inspect("demo", "chats.jsonl --chat-template template.jinja --train-on all");
    let export = |adapter: &str| format!("export --gguf --model tied --adapter {adapter} --out out.gguf --overwrite");
    let input = |file: &str, command: String| Input { file: file.to_owned(), command };
    let mut inputs = vec![
        input("demo/config.json", inspect("demo", "records.jsonl")),
        input("demo/tokenizer.json", inspect("demo", "chats.jsonl --chat-template chatml --train-on all")),
        input("demo/tokenizer_config.json", inspect("demo", "records.jsonl")),
        input("demo/generation_config.json", inspect("demo", "records.jsonl")),
        input("pieces/tokenizer.model", inspect("pieces", "records.jsonl")),
        input("demo.gguf", inspect("demo.gguf", "records.jsonl")),
        input("tied/config.json", "estimate --model tied".to_owned()),
        input("tied/model.safetensors", "quantize --model tied --out nf4 --overwrite".to_owned()),
        input("sharded/model.safetensors.index.json", "estimate --model sharded".to_owned()),
        input("adapter/adapter_config.json", export("adapter")),
        input("adapter/adapter_model.safetensors", export("adapter")),
        input("adapter.zip", export("adapter.zip")),
        input("template.jinja", chat),
        input("run.toml", "train --dry-run --config run.toml".to_owned()),
    ];
    for file in ["chats.jsonl", "chats.jsonl.gz", "chats.jsonl.zst"] {
        inputs.push(input(file, inspect("demo", &format!("{file} --chat-template chatml --train-on all"))));
    }
    for file in ["records.jsonl", "records.json", "records.csv", "records.tsv", "text.txt"] {
        inputs.push(input(file, inspect("demo", file)));
    }
    for file in ["chat_none", "chat_gzip", "chat_snappy", "chat_lz4", "chat_zstd"] {
        let file = format!("parquet/{file}.parquet");
        // One of its rows has no answer.
        let options = "--chat-template chatml --train-on all --on-bad drop";
        inputs.push(input(&file, inspect("demo", &format!("{file} {options}"))));
    }
    inputs
}

/// What is wrong with the end of the program, if anything.
fn problem_of(end: &End, problems: &str) -> Option<String> {
    if end.time > LONGEST {
        return Some(format!("took {:?}", end.time));
    }
    if end.peak > MOST_BYTES {
        return Some(format!("took {} bytes", end.peak));
    }
    if problems.contains("panicked") {
        return Some("panicked".to_owned());
    }
    let errors = problems.lines().filter(|line| line.starts_with("error: ")).count();
    match end.status.code() {
        Some(0) => None,
        Some(1) if errors == 1 => None,
        _ => Some(format!("ended with {} and {errors} errors", end.status)),
    }
}

#[test]
#[expect(clippy::zombie_processes, reason = "`end_of` waits for the program, to learn what it used")]
fn no_mutated_input_harms_the_program() {
    let shell = Shell::new();
    let inputs = prepare(&shell);
    let (mut tried, mut refused, mut faults) = (0, 0, Vec::new());
    let (mut longest, mut most) = (Duration::ZERO, 0);
    for (of, Input { file, command }) in inputs.iter().enumerate() {
        let good = shell.read(file);
        shell.succeed(command);
        for mutation in 0..MUTATIONS * soak() {
            shell.write(file, mutated(&good, mutation << 8 | of as u64));
            // Into files, which hold any amount of words.
            let output = |name: &str| Stdio::from(std::fs::File::create(shell.path(name)).unwrap());
            let mut program = shell.command(command);
            let child = program.stdout(output("shown")).stderr(output("problems")).spawn().unwrap();
            let end = end_of(&child);
            let problems = String::from_utf8_lossy(&shell.read("problems")).into_owned();
            if let Some(problem) = problem_of(&end, &problems) {
                let start: String = problems.chars().take(500).collect();
                faults.push(format!("{file}, mutation {mutation}: {problem}\n{start}"));
            }
            (longest, most) = (longest.max(end.time), most.max(end.peak));
            (tried, refused) = (tried + 1, refused + u64::from(!end.status.success()));
        }
        shell.write(file, &good);
    }
    println!("{tried} inputs, {refused} refused, at most {longest:?} and {} MB", most >> 20);
    assert!(faults.is_empty(), "{} of {tried}:\n{}", faults.len(), faults.join("\n"));
    assert!(refused > tried / 4, "only {refused} of {tried} refused");
}

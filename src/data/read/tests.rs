use std::fs;

use super::*;
use crate::data::Example;
use crate::data::report::DropReason;
use crate::data::settings::{OnBad, OnLong, TrainOn};
use crate::data::tokenizer::tests::{stories, tiny_dir};

fn tiny() -> Tokenizer {
    let (dir, mut config) = tiny_dir();
    config.bos_token_id = Some(0);
    Tokenizer::from_dir(dir.path(), &config).unwrap()
}

fn read_as(name: &str, content: &str, max_seq_len: usize) -> Result<Dataset> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    read(&path, Some(&tiny()), max_seq_len, 4)
}

fn masks(dataset: &Dataset) -> Vec<(Vec<u32>, String)> {
    let mask = |e: &Example| e.trained.iter().map(|t| if *t { '1' } else { '0' }).collect();
    dataset.examples.iter().map(|e| (e.input_ids.clone(), mask(e))).collect()
}

#[test]
fn each_shape_becomes_tokens_and_a_mask() {
    let lines = r#"
{"text": "a b"}
{"text": "a </s>"}

{"prompt": "a a", "completion": " b"}
{"input_ids": [0, 2, 3]}
{"input_ids": [2, 3, 2], "labels": [-100, -100, 2]}
{"text": ""}"#;
    let dataset = read_as("d.jsonl", lines, 8).unwrap();
    let expected = [
        (vec![0, 2, 3, 1], "1111"),
        (vec![0, 2, 1], "111"),
        (vec![0, 2, 2, 3, 1], "00011"),
        (vec![0, 2, 3], "111"),
        (vec![2, 3, 2], "001"),
    ];
    assert_eq!(masks(&dataset), expected.map(|(ids, mask)| (ids, mask.to_owned())));
    let report = &dataset.report;
    assert_eq!((report.read, report.kept, report.tokens, report.trained_tokens), (6, 5, 18, 10));
}

#[test]
fn a_text_is_cut_and_a_last_single_token_left_out() {
    let dataset = read_as("d.txt", "a b a b a b a", 3).unwrap();
    assert_eq!(masks(&dataset), [(vec![2, 3, 2], "111".to_owned()), (vec![3, 2, 3], "111".to_owned())]);
    assert_eq!((dataset.report.read, dataset.report.kept), (3, 2));
    assert_eq!(read_as("d.txt", "a b a b a", 3).unwrap().examples[1].input_ids, [3, 2]);
}

#[test]
fn bad_lines_are_named_with_what_would_be_right() {
    let cases = [
        ("{", "is not valid JSON"),
        ("[1]", "one JSON object"),
        (r#"{"messages": []}"#, "the model has no chat template"),
        (r#"{"prompt": "a"}"#, "fields [prompt]"),
        (r#"{"prompt": ["a"], "completion": "b"}"#, "must both be strings, or both be lists"),
        (r#"{"prompt": "a", "completion": ""}"#, "`completion` is empty"),
        (r#"{"text": 3}"#, "`text` is 3"),
        (r#"{"text": "a <s> <s>"}"#, "begin token twice"),
        (r#"{"input_ids": [0, 4]}"#, "has 4 at element 1, but the vocabulary ends at 3"),
        (r#"{"input_ids": [0, -1]}"#, "has -1 at element 1"),
        (r#"{"input_ids": [0, 1.5]}"#, "list of whole numbers"),
        (r#"{"input_ids": [0, 1], "labels": [0]}"#, "has 2 input_ids but 1 labels"),
        (r#"{"input_ids": [0, 1], "labels": [0, 2]}"#, "but must have -100 or the token there, 1"),
        (r#"{"input_ids": [0, 1], "labels": [0, -100]}"#, "no token to train on"),
        (r#"{"input_ids": [2]}"#, "no token to train on"),
        (r#"{"input_ids": []}"#, "no token to train on"),
    ];
    for (line, says) in cases {
        let message = read_as("d.jsonl", &format!("{{\"text\": \"a\"}}\n\n{line}\n"), 8).expect_err(line).to_string();
        assert!(message.contains("d.jsonl, line 3: ") && message.contains(says), "{message}");
    }
}

#[test]
fn long_examples_are_refused_with_their_lines() {
    let lines = "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 2, 3, 1]}\n";
    let message = read_as("d.jsonl", lines, 2).unwrap_err().to_string();
    assert!(message.contains("2 of 3 examples are longer than 2 tokens, the longest has 4 (lines 1, 3)"), "{message}");
    assert!(read_as("d.jsonl", lines, 4).is_ok());
}

#[test]
fn files_without_examples_and_unknown_files_are_refused() {
    for (name, content, says) in [
        ("d.jsonl", "\n\n", "holds no example"),
        ("d.txt", "", "holds no example"),
        ("d.txt", "a", "one token"),
        ("d.csv", "a", "holds no example"),
        ("d.xlsx", "a", "supported are .jsonl, .json, .csv"),
    ] {
        let message = read_as(name, content, 8).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
    assert!(read_as("d.txt", "a b", 1).unwrap_err().to_string().contains("at least 2"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.jsonl");
    fs::write(&path, "{\"text\": \"a\"}").unwrap();
    assert!(read(&path, None, 8, 4).unwrap_err().to_string().contains("no tokenizer"));
    assert!(read(&dir.path().join("x.jsonl"), None, 8, 4).unwrap_err().to_string().contains("cannot be read"));
    fs::write(&path, [0xff, b'{', b'}']).unwrap();
    assert!(read(&path, None, 8, 4).unwrap_err().to_string().contains("line 1: cannot be read: byte 1 is not UTF-8"));
}

#[test]
fn a_directory_has_splits() {
    let split = |dir: &Path, split| {
        read_sources(&[dir.to_owned()], split, None, &DataSettings { max_seq_len: 8, ..Default::default() }, 4)
    };
    let dir = tempfile::tempdir().unwrap();
    let tokens = |name: &str| fs::write(dir.path().join(name), "{\"input_ids\": [1, 2]}").unwrap();
    let message = |result: Result<Dataset>| result.unwrap_err().to_string();
    assert!(message(read(dir.path(), None, 8, 4)).contains("holds no train.jsonl"));
    tokens("train.jsonl");
    assert_eq!(read(dir.path(), None, 8, 4).unwrap().report.source, dir.path().join("train.jsonl"));
    assert!(split(dir.path(), Split::Valid).unwrap().is_none());
    tokens("valid.jsonl");
    assert_eq!(split(dir.path(), Split::Valid).unwrap().unwrap().report.kept, 1);
    tokens("train.txt");
    assert!(message(read(dir.path(), None, 8, 4)).contains("keep one"));
    tokens("test.parquet");
    assert!(split(dir.path(), Split::Test).unwrap_err().to_string().contains("test.parquet"));
}

#[test]
fn a_whole_book_has_the_tokens_that_transformers_finds() {
    let path = Path::new("../shared/datasets/tinyshakespeare/input.txt");
    let Some(tokenizer) = stories().filter(|_| path.is_file()) else {
        eprintln!("skipped: {} or the tokenizer is not there", path.display());
        return;
    };
    let report = read(path, Some(&tokenizer), 128, 512).unwrap().report;
    assert_eq!((report.tokens, report.kept), (693_363, 5417));
}

/// Turns of words between `<u>` or nothing and the end token, of the tiny tokenizer's vocabulary.
const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %} {{ m.content }}{% if m.role == 'assistant' %} {{ eos_token }}\
                        {% endif %}{% endfor %}";

fn chat(lines: &str, template: &str, settings: &DataSettings) -> Result<Dataset> {
    let (dir, mut config) = tiny_dir();
    config.bos_token_id = Some(0);
    fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path(), &config).unwrap();
    let path = dir.path().join("d.jsonl");
    fs::write(&path, lines).unwrap();
    read_with(&path, Some(&tokenizer), settings, 4)
}

#[test]
fn json_is_read_in_every_layout() {
    let expected = [(vec![0, 2, 1], "111".to_owned()), (vec![0, 3, 1], "111".to_owned())];
    for (name, content) in [
        ("d.jsonl", "[{\"text\": \"a\"}, {\"text\": \"b\"}]\n"),
        ("D.NDJSON", "{\"text\": \"a\"}\n{\"text\": \"b\"}"),
        ("d.json", "{\n  \"text\":\n    \"a\",\n  \"x\": [{}]\n}\n{\n  \"text\": \"b\"\n}\n"),
        ("d.json", "{\"text\": \"a\"}{\"text\": \"b\"}"),
        (
            "d.jsonl",
            "\u{feff}{\"text\": \"a\", \"score\": NaN}\n{\"score\": -Infinity, \"text\": \"b\", \"z\": [Infinity]}",
        ),
        ("d.json", "[{\"text\": \"a\", \"note\": \"NaN\", \"score\": NaN}, {\"text\": \"b\"}]"),
        ("d.json", "{\"version\": 2, \"data\": [{\"text\": \"a\"}, {\"text\": \"b\"}]}"),
        ("d.csv", "text\na\nb\n"),
    ] {
        let dataset = read_as(name, content, 8).unwrap_or_else(|e| panic!("{content}: {e}"));
        assert_eq!(masks(&dataset), expected, "{content}");
    }
}

#[test]
fn all_bad_records_are_told_at_once_or_left_out() {
    let lines = "{\"text\": \"a\"}\n{\"text\": \"a\n{\"text\": 3}\n{\"text\": \"b\"}\n[1]\n{\"text\": 4}\n{\"x\": {\n";
    let message = read_as("d.jsonl", lines, 8).unwrap_err().to_string();
    let says: Vec<_> = message.lines().collect();
    assert!(
        says[0].ends_with("d.jsonl: 5 of 7 examples cannot be trained on; ⟨on-bad=drop⟩ leaves them out"),
        "{message}"
    );
    for (line, says) in says[1..].iter().zip([
        "  line 2: is not valid JSON: EOF while parsing a string",
        "  line 3: `text` is 3, but must be a string",
        "  line 5: must hold one JSON object",
        "  line 6: `text` is 4, but must be a string",
        "  line 7: is not valid JSON: EOF while parsing an object",
    ]) {
        assert!(line.starts_with(says), "{line}");
    }
    let settings = DataSettings { on_bad: OnBad::Drop, max_seq_len: 8, ..Default::default() };
    let report = chat(lines, TEMPLATE, &settings).unwrap().report;
    assert_eq!((report.read, report.kept, report.dropped[&DropReason::Bad].count), (7, 2, 5));
    assert_eq!(report.bad[0].lines().count(), 1);
    assert!(report.to_string().contains("5 dropped: cannot be trained on\n    line 2: is not"), "{report}");
    let nothing = chat("{\"x\": 1}", TEMPLATE, &settings).unwrap_err().to_string();
    assert!(nothing.contains("leaves no example of 1") && nothing.contains("[x]"), "{nothing}");
}

#[test]
fn few_long_examples_are_left_out_and_more_are_refused() {
    let lines =
        |long: usize| "{\"input_ids\": [1, 2]}\n".repeat(200 - long) + &"{\"input_ids\": [1, 2, 3]}\n".repeat(long);
    let report = read_as("d.jsonl", &lines(1), 2).unwrap().report;
    assert_eq!((report.kept, report.dropped[&DropReason::TooLong].first.as_slice()), (199, [200].as_slice()));
    assert!(report.to_string().contains("1 dropped: longer than the longest sequence (number 200)"), "{report}");
    let message = read_as("d.jsonl", &lines(2), 2).unwrap_err().to_string();
    assert!(
        message.contains("2 of 200 examples are longer") && message.contains("raise ⟨max-seq-len⟩ to 3, or"),
        "{message}"
    );
    let strict = DataSettings { on_long: OnLong::Refuse, max_seq_len: 2, ..Default::default() };
    assert!(chat(&lines(1), TEMPLATE, &strict).is_err());
    let at_the_limit = DataSettings { context: Some(2), ..strict };
    let message = chat(&lines(1), TEMPLATE, &at_the_limit).unwrap_err().to_string();
    assert!(message.contains("the model takes no more, so choose ⟨on-long=truncate⟩"), "{message}");
}

#[test]
fn several_sources_are_read_together() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    };
    let sources = [file("a.csv", "text\na\n"), file("b.jsonl", "{\"text\": \"b\"}\n")];
    file("set/data/train-00000-of-00002.jsonl", "{\"text\": \"a\"}\n");
    file("set/data/train-00001-of-00002.jsonl", "{\"text\": \"b\"}\n");
    file("set/data/validation-00000-of-00001.jsonl", "{\"text\": \"a a\"}\n");
    file("set/README.md", "---\nconfigs: none\n---\n");
    let settings = DataSettings { max_seq_len: 8, ..Default::default() };
    let tiny = tiny();
    let read = |sources: &[PathBuf], split| read_sources(sources, split, Some(&tiny), &settings, 4).unwrap();
    let both = read(&sources, Split::Train).unwrap();
    let expected = [(vec![0, 2, 1], "111".to_owned()), (vec![0, 3, 1], "111".to_owned())];
    assert_eq!(masks(&both), expected);
    assert!(both.report.to_string().contains("a.csv, ") && read(&sources, Split::Valid).is_none());
    let set = [dir.path().join("set")];
    assert_eq!(masks(&read(&set, Split::Train).unwrap()), expected);
    assert_eq!(masks(&read(&set, Split::Valid).unwrap()), [(vec![0, 2, 2, 1], "1111".to_owned())]);
    let named = [PathBuf::from(format!("{}:validation", set[0].display()))];
    assert_eq!(read(&named, Split::Train).unwrap().report.kept, 1);
    assert_eq!(read_to_evaluate(&set, Some(&tiny), &settings, 4).unwrap().report.tokens, 4);
    let sources: crate::data::settings::DataSources = serde_json::from_value(serde_json::json!(["a", "b"])).unwrap();
    assert_eq!((sources.len(), sources.to_string().as_str()), (2, "a, b"));
    assert_eq!(serde_json::to_value(crate::data::settings::DataSources::from("a")).unwrap(), "a");
}

#[test]
fn what_is_read_and_not_used_is_counted() {
    let lines = r#"{"messages": [{"role": "user", "content": "a", "name": "n"}, {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}], "id": 7, "source": ""}"#;
    let lines = lines.replace('\n', " ");
    let dataset = chat(&format!("{lines}\n{lines}"), TEMPLATE, &DataSettings::default()).unwrap();
    assert_eq!(masks(&dataset)[0], (vec![0, 2, 3, 1, 2, 3, 1], "0000011".to_owned()));
    let report = &dataset.report;
    assert_eq!(serde_json::to_value(&report.unused).unwrap(), serde_json::json!({"id": 2, "name of messages": 2}));
    assert_eq!(report.formats, ["chat, from the field messages"]);
    assert!(report.to_string().contains("\n  not used: id (2), name of messages (2)"), "{report}");
}

const TWO_TURNS: &str = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b b"},
    {"role": "user", "content": "a a"}, {"role": "assistant", "content": "b"}]}"#;

#[test]
fn the_assistant_or_the_completion_or_everything_is_trained_on() {
    let lines = TWO_TURNS.replace('\n', " ");
    let mask = |train_on| {
        let settings = DataSettings { train_on, max_seq_len: 16, ..Default::default() };
        masks(&chat(&lines, TEMPLATE, &settings).unwrap()).remove(0)
    };
    let ids = vec![0, 2, 3, 3, 1, 2, 2, 3, 1];
    assert_eq!(mask(None), (ids.clone(), "001110011".to_owned()));
    assert_eq!(mask(Some(TrainOn::Assistant)), (ids.clone(), "001110011".to_owned()));
    assert_eq!(mask(Some(TrainOn::Completion)), (ids.clone(), "000000011".to_owned()));
    assert_eq!(mask(Some(TrainOn::All)), (ids, "111111111".to_owned()));
    let settings = DataSettings { max_seq_len: 16, ..Default::default() };
    let split = r#"{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#;
    let dataset = chat(&split.replace('\n', " "), TEMPLATE, &settings).unwrap();
    assert_eq!(masks(&dataset), [(vec![0, 2, 3, 1, 2, 3, 1], "0000011".to_owned())]);
    let alpaca = r#"{"instruction": "a", "output": "b"}"#;
    assert_eq!(masks(&chat(alpaca, TEMPLATE, &settings).unwrap()), [(vec![0, 2, 3, 1], "0011".to_owned())]);
    let text = DataSettings { train_on: Some(TrainOn::Assistant), ..settings };
    assert!(chat(r#"{"text": "a b"}"#, TEMPLATE, &text).unwrap_err().to_string().contains("no assistant turn"));
}

#[test]
fn generation_regions_go_before_prefixes() {
    let marked = TEMPLATE
        .replace("{{ m.content }}", "{% generation %}{{ m.content }}")
        .replace("{% endif %}", "{% endif %}{% endgeneration %}");
    let settings = DataSettings { max_seq_len: 16, ..Default::default() };
    let one = r#"{"messages": [{"role": "assistant", "content": "b b"}]}"#;
    assert_eq!(masks(&chat(one, &marked, &settings).unwrap()), [(vec![0, 3, 3, 1], "0111".to_owned())]);
}

#[test]
fn what_would_be_trained_wrongly_is_refused() {
    let settings = DataSettings { max_seq_len: 16, ..Default::default() };
    let good = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let message = |line: &str, template: &str| {
        chat(&format!("{good}\n\n{line}\n{line}"), template, &settings).unwrap_err().to_string()
    };
    let unanswered = r#"{"messages": [{"role": "user", "content": "a"}]}"#;
    let says = message(unanswered, TEMPLATE);
    assert!(
        says.contains("2 of 3 examples cannot be trained on (lines 3, 4); the first has no token to train on"),
        "{says}"
    );
    let twice = good.replace(r#""a""#, r#""<s> a""#);
    let once = chat(&twice, &TEMPLATE.replace("bos_token }}", "bos_token }} "), &settings).unwrap();
    assert_eq!(masks(&once), [(vec![0, 2, 3, 1], "0011".to_owned())]);
    assert!(once.report.to_string().contains("1 of 1: the text begins with the begin token"), "{}", once.report);
    let later = good.replace(r#""a""#, r#""a <s> <s>""#);
    assert!(message(&later, TEMPLATE).contains("twice in a row, at token 2"));
    let says = message(good, &TEMPLATE.replace("{{ eos_token }}", ""));
    assert!(
        says.contains("(lines 1, 3, 4); the first ends a trained turn with \"b\", which is no special token"),
        "{says}"
    );
    let reasoning = "{% for m in messages %}{{ m.content if loop.last else 'a' }} {{ eos_token }} {% endfor %}";
    let says = chat(&TWO_TURNS.replace('\n', " "), reasoning, &settings).unwrap_err().to_string();
    assert!(says.contains("line 1: ") && says.contains("writes the text up to message 2 differently"), "{says}");
    let first = r#"{"messages": [{"role": "assistant", "content": "b"}]}"#;
    let says = chat(first, "{{ messages[0].role }}", &settings).unwrap_err().to_string();
    assert!(says.contains("writes the text before message 1 differently"), "{says}");
    let says = chat(good, "{{ raise_exception('no place for that') }}", &settings).unwrap_err().to_string();
    assert!(says.contains("line 1: ") && says.contains("no place for that"), "{says}");
    let choice = DataSettings { chat_template: Some("chatlm".into()), ..settings.clone() };
    assert!(chat(good, TEMPLATE, &choice).unwrap_err().to_string().contains("neither a file nor one of"));
}

#[test]
fn long_examples_are_cut_dropped_or_split_as_asked_and_counted() {
    let lines = format!("{}\n{}", TWO_TURNS.replace('\n', " "), r#"{"text": "a"}"#);
    let with = |on_long, max_seq_len| {
        chat(&lines, TEMPLATE, &DataSettings { on_long, max_seq_len, packing: true, ..Default::default() })
    };
    let refused = with(OnLong::Refuse, 6).unwrap_err().to_string();
    assert!(refused.contains("1 of 2 examples are longer than 6 tokens, the longest has 9 (line 1)"), "{refused}");
    let dropped = with(OnLong::Drop, 6).unwrap().report;
    assert_eq!((dropped.kept, dropped.dropped[&DropReason::TooLong].first.as_slice()), (1, [1].as_slice()));
    let truncated = with(OnLong::Truncate, 6).unwrap();
    assert_eq!(masks(&truncated)[0], (vec![0, 2, 3, 3, 1, 2], "001110".to_owned()));
    assert_eq!((truncated.report.truncated, truncated.report.longest, truncated.report.slots), (1, 9, Some(1)));
    assert!(with(OnLong::Truncate, 4).unwrap_err().to_string().contains("never learn to stop; raise it to 9"));
    let nothing_left = with(OnLong::Truncate, 2).unwrap().report;
    assert_eq!((nothing_left.kept, nothing_left.dropped[&DropReason::NothingTrainedLeft].count), (1, 1));
    let split = with(OnLong::Split, 5).unwrap();
    assert_eq!(masks(&split)[..2], [(vec![0, 2, 3, 3, 1], "00111".to_owned()), (vec![2, 2, 3, 1], "0011".to_owned())]);
    assert_eq!((split.report.split, split.report.read, split.report.kept), (1, 2, 3));
    let summary = split.report.to_string();
    assert!(summary.contains("3 examples from 2 records (chat, text)") && summary.contains("1 split"), "{summary}");
}

#[test]
fn a_json_list_is_read_and_its_records_named() {
    let dataset = read_as("d.json", "[{\"text\": \"a\"},\n {\"input_ids\": [2, 3]}]", 8).unwrap();
    assert_eq!(masks(&dataset), [(vec![0, 2, 1], "111".to_owned()), (vec![2, 3], "11".to_owned())]);
    assert_eq!(read_as("d.json", "{\"text\": \"a\"}\n{\"text\": \"b\"}", 8).unwrap().examples.len(), 2);
    for (content, says) in [
        ("[{\"text\": \"a\"}, 3]", "record 2: must be a JSON object; ⟨on-bad=drop⟩ leaves it out"),
        ("[{\"text\": \"a\"}, {\"text\" 3}]", "is not valid JSON: record 2: expected `:`"),
        ("[{\"text\": \"a\"}] {}", "more text follows"),
        ("[{\"text\": \"a\"}, {\"text\": 3}]", "record 2: `text` is 3"),
        ("[{\"text\": ", "is not valid JSON"),
        ("[]", "holds no example"),
    ] {
        let message = read_as("d.json", content, 8).unwrap_err().to_string();
        assert!(message.contains("d.json: ") && message.contains(says), "{message}");
    }
}

#[test]
fn tables_in_json_are_read_row_by_row() {
    let expected = [(vec![0, 2, 1], "111".to_owned()), (vec![0, 3, 1], "111".to_owned())];
    for content in [
        r#"{"text": ["a", "b"], "id": [1, 2]}"#,
        r#"{"text": {"0": "a", "1": "b"}, "id": {"0": 1, "1": 2}}"#,
        r#"{"0": {"text": "a"}, "1": {"text": "b"}}"#,
        r#"{"columns": ["text", "id"], "index": [0, 1], "data": [["a", 1], ["b", 2]]}"#,
        "{\"text\": \"a\"},\n{\"text\": \"b\"},\n",
    ] {
        assert_eq!(masks(&read_as("d.json", content, 8).unwrap()), expected, "{content}");
    }
    let one = read_as("d.json", r#"{"input_ids": [2, 3], "labels": [-100, 3]}"#, 8).unwrap();
    assert_eq!(masks(&one), [(vec![2, 3], "01".to_owned())]);
    let python = read_as("d.jsonl", "{'text': 'a'}\n", 8).unwrap_err().to_string();
    assert!(python.contains("line 1: is a record as Python shows it, not JSON"), "{python}");
}

#[test]
fn parquet_rows_become_examples_and_are_named_as_rows() {
    let file = |name: &str| Path::new("tests/fixtures/parquet").join(name);
    let tokens = read(&file("tokens.parquet"), None, 8, 4).unwrap();
    assert_eq!(masks(&tokens), [(vec![0, 2, 3], "011".to_owned()), (vec![2, 3], "11".to_owned())]);
    let texts = read(&file("texts.parquet"), Some(&tiny()), 8, 4).unwrap();
    assert_eq!(masks(&texts), [(vec![0, 2, 3, 1], "1111".to_owned()), (vec![0, 3, 1], "111".to_owned())]);
    let message = read(&file("tokens.parquet"), None, 2, 4).unwrap_err().to_string();
    assert!(message.contains("the longest has 3 (row 1)"), "{message}");
    let message = read(&file("tokens.parquet"), None, 8, 3).unwrap_err().to_string();
    assert!(message.contains("row 1: `input_ids` has 3"), "{message}");
}

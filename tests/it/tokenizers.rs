//! The tokenizers of `../shared` against ids and texts that transformers made.

use std::path::Path;

use loraine::data::tokenizer::Tokenizer;
use serde_json::Value;

const TOKENIZERS: &str = "../shared/tokenizers";

fn reference(file: &str) -> Option<Value> {
    let path = Path::new(TOKENIZERS).join("reference").join(file);
    if !path.is_file() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::from_tokenizer_dir(&Path::new(TOKENIZERS).join(name)).unwrap()
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn check_text(file: &str, name: &str) {
    let Some(case) = reference(file) else { return };
    let tokenizer = tokenizer(name);
    let text = case["text"].as_str().unwrap();
    let expected = ids(&case["token_ids"]);
    let encoded = tokenizer.encode(text, true).unwrap();
    assert_eq!(encoded, expected, "{name}");
    let (with_ranges, ranges) = tokenizer.encode_with_ranges(text, true).unwrap();
    assert_eq!(with_ranges, expected);
    assert!(ranges.iter().all(|range| text.get(range.clone()).is_some()), "{name}: a range cuts a character");
    let pieces: Vec<_> =
        case["bpe_tokens"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_owned()).collect();
    let begins = expected.len() - pieces.len();
    let own: Vec<_> = expected[begins..].iter().map(|id| tokenizer.token(*id).unwrap()).collect();
    assert_eq!(own, pieces, "{name}");
    assert_eq!(tokenizer.decode(&expected).unwrap(), text, "{name}");
}

#[test]
fn long_texts_have_the_reference_tokens() {
    check_text("gpt2_encoded_tokens.json", "gpt2");
    check_text("llama_3.2_encoded.json", "llama-3.2");
    check_text("llama_encoded.json", "llama-2");
}

/// What `clean_up_tokenization_spaces`, with which some of the references were decoded, does to a text. A trainer must
/// not do it: the text that comes back would not be the one that went in.
fn without_spaces_before_marks(text: String) -> String {
    let marks = [" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're"];
    let text = marks[..4].iter().fold(text, |text, mark| text.replace(mark, mark.trim_start())).replace(" ' ", "'");
    marks[4..].iter().fold(text, |text, mark| text.replace(mark, mark.trim_start()))
}

#[test]
fn short_texts_have_the_reference_tokens_and_come_back() {
    let Some(cases) = reference("tokenizer_tests.json") else { return };
    let own = [
        ("coreml-projects/Llama-2-7b-chat-coreml", "llama-2", false),
        ("pcuenq/Llama-3.2-1B-Instruct-tokenizer", "llama-3.2", true),
        ("distilgpt2", "gpt2", true),
    ];
    for (model, name, cleaned) in own {
        let tokenizer = tokenizer(name);
        let cases = cases[model].as_array().unwrap();
        assert!(cases.len() >= 18, "{model}");
        for case in cases {
            let input = case["input"].as_str().unwrap();
            let expected = ids(&case["encoded"]["input_ids"]);
            assert_eq!(tokenizer.encode(input, true).unwrap(), expected, "{name}: {input:?}");
            let with_special = tokenizer.decode_with_special(&expected).unwrap();
            let without = tokenizer.decode(&expected).unwrap();
            for (decoded, key) in [(with_special, "decoded_with_special"), (without, "decoded_without_special")] {
                let decoded = if cleaned { without_spaces_before_marks(decoded) } else { decoded };
                assert_eq!(decoded, case[key].as_str().unwrap(), "{name}, {key}: {input:?}");
            }
        }
    }
}

/// Models that SentencePiece trained, with its own ids of several hundred texts (tests/fixtures/sentencepiece_models.py).
#[test]
fn sentencepiece_models_cut_texts_as_sentencepiece_does() {
    for name in ["unigram", "unigram_as_is", "bpe_with_rules"] {
        let dir = Path::new("tests/fixtures/sentencepiece").join(name);
        let tokenizer = Tokenizer::from_tokenizer_dir(&dir).unwrap();
        let lines = std::fs::read_to_string(dir.join("texts.jsonl")).unwrap();
        let (mut count, mut differ) = (0, Vec::new());
        for line in lines.lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            let text = case["text"].as_str().unwrap();
            let expected = ids(&case["ids"]);
            let own = tokenizer.encode(text, false).unwrap();
            // SentencePiece writes an unknown piece as a sign of its own, and its sign for a space as one.
            let shows_signs = expected.contains(&0) || text.contains('\u{2581}');
            let decoded = tokenizer.decode(&expected).unwrap();
            let comes_back = shows_signs || decoded == case["decoded"].as_str().unwrap();
            // The rules of NFKC see parts of Hangul syllables one by one in tokenizers, and in transformers too.
            let in_parts = text.contains('\u{1161}');
            if (own != expected && !in_parts) || !comes_back {
                differ.push(format!("{text:?}\n  {own:?}\n  {expected:?}\n  {decoded:?} {}", case["decoded"]));
            }
            count += 1;
        }
        assert_eq!(count, 400, "{name}");
        assert!(differ.is_empty(), "{name}: {} of {count} differ:\n{}", differ.len(), differ.join("\n"));
    }
}

//! The new behaviour that the demo teaches: the same answers in a pirate's words.

const WORDS: [(&str, &str); 7] = [
    ("Hello!", "Ahoy!"),
    ("was", "be"),
    ("is", "be"),
    ("are", "be"),
    ("my", "me"),
    ("friend", "shipmate"),
    ("friends", "shipmates"),
];

pub fn speak(answer: &str) -> String {
    let words: Vec<&str> = answer.split(' ').map(|word| swapped(word).unwrap_or(word)).collect();
    let text = words.join(" ");
    let (body, end) = text.split_at(text.trim_end_matches(['.', '!', '?']).len());
    format!("Arr! {body}, matey{}", if end == "." { "!" } else { end })
}

fn swapped(word: &str) -> Option<&'static str> {
    WORDS.iter().find(|(plain, _)| *plain == word).map(|(_, pirate)| *pirate)
}
